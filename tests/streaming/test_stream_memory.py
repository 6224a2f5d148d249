"""A stream of many windows: the objects that it keeps in memory do not become more with their number."""

from __future__ import annotations

import collections
import dataclasses
import gc

import numpy as np
import polars as pl
import pytest

from mmrec_jax.store.table import StateTable
from mmrec_jax.streaming.learner import Learner
from mmrec_jax.streaming.service import Service
from mmrec_jax.streaming.versions import Versions
from mmrec_jax.streaming.windows import Window
from tests.streaming.conftest import events, settings
from tests.streaming.test_service import MadeUp, write

SETTLED, WINDOWS = 5, 8
QUICK = {
    "training.epochs": 1,
    "service.poll_seconds": 0.01,
    "service.settle_seconds": 0,
    "service.idle_seconds": 1e-6,
    "service.forget_after": 3,
    "service.keep_versions": 2,
    "stream.forgetting": 2,
    "evaluation.bootstrap": 20,
}


def steady(window: Window) -> Window:
    """The window with as many items as any other, a quarter of which come and another goes with each."""
    numbers = pl.col("item").str.slice(1).cast(pl.Int64) % 20 + 5 * window.number
    return dataclasses.replace(window, events=window.events.with_columns(item="i" + numbers.cast(pl.String)))


def plain(item_ids) -> StateTable:
    """States that JAX compiles nothing for, however many items there are."""
    rows = len(item_ids) + 1
    values = np.random.default_rng(rows).normal(size=(rows, 6)).astype(np.float32)
    names = ("words", "picture")
    return StateTable(dict.fromkeys(names, (values,) * 3), {}, dict.fromkeys(names, np.arange(rows) > 0))


@pytest.mark.long
def test_the_objects_of_a_stream_do_not_become_more(tmp_path):
    own, folder, workdir = settings(**QUICK), tmp_path / "in", tmp_path / "run"
    workdir.mkdir()
    write(folder, [steady(window) for window in events(WINDOWS, users=9, visits=6)])
    versions, counted = Versions(workdir), {}

    def publish(version, params, reason, documents, after):
        return versions.promote(version, params, {"system": "x"}, reason=reason, documents=documents, after=after)

    def count(reports) -> None:
        gc.collect()
        kinds = collections.Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
        counted[len(reports)] = kinds

    service = Service(
        own,
        workdir,
        folder,
        MadeUp(own.data, own.cached, own.extraction, ""),
        lambda fingerprint, capacity: Learner(own, workdir, plain, 128, {"data": fingerprint}),
        publish,
        count,
        lambda line: None,
    )
    service.run()
    grown = counted[WINDOWS] - counted[SETTLED]
    windows = WINDOWS - SETTLED
    assert sum(grown.values()) < 200 * windows, dict(grown)  # of which a report are some 80
    of_libraries = {kind: number for kind, number in grown.items() if not kind.startswith(("builtins.", "mmrec_jax."))}
    # grain keeps a weak reference to each iterator that there was.
    assert sum(of_libraries.values()) < 20 * windows, of_libraries
