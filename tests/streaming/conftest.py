"""A stream over a small log, with states made up instead of extracted."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from mmrec_jax.config import RunConfig, base, modality, resolve
from mmrec_jax.store.table import StateTable
from mmrec_jax.streaming.learner import Learner
from mmrec_jax.streaming.windows import Window

WIDTH, ITEMS = 6, 40


def events(windows: int = 4, users: int = 24, visits: int = 8, seed: int = 0) -> list[Window]:
    """Windows in which users walk along the items; a third of the users and some items are of each window alone."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(1, windows + 1):
        names, items, times = [], [], []
        for user in range(users):
            stranger = user % 3 == 0
            names += [f"u{user}_{number}" if stranger else f"u{user}"] * visits
            last = 12 + 7 * number  # items appear by and by
            items += [f"i{n}" for n in (rng.integers(last) + np.arange(visits)) % last]
            times += (number * 1000 + np.sort(rng.permutation(900)[:visits])).tolist()
        frame = pl.DataFrame({"user": names, "item": items, "time": times}).sort("time", maintain_order=True)
        made.append(Window(number, f"w{number}", frame))
    return made


def states(item_ids) -> StateTable:
    """Random states of three layers of two modalities; some items have no picture."""
    rngs = [np.random.default_rng(int(item[1:])) for item in item_ids]
    values = np.zeros((len(item_ids) + 1, 2, 3, WIDTH), np.float32)
    for row, rng in enumerate(rngs, 1):
        values[row] = rng.normal(size=(2, 3, WIDTH))
    present = np.array([False, *(int(item[1:]) % 7 > 0 for item in item_ids)])
    return StateTable(
        {
            name: tuple(jnp.asarray(values[:, m, layer]) for layer in range(3))
            for m, name in enumerate(("words", "picture"))
        },
        {},
        {"words": jnp.asarray(np.arange(len(item_ids) + 1) > 0), "picture": jnp.asarray(present)},
    )


def settings(system: str = "linear", only: str = "", **changes) -> RunConfig:
    """A config that trains in a moment, of both modalities or one; `changes` are flat keys."""
    config = base("tiny")
    config.model.system = system
    if system != "sasrec":
        config.modalities.words = modality(kind="text", backbone="none", template="{title}", layers=(0, 1, 2))
        if only != "words":
            config.modalities.picture = modality(kind="image", backbone="none", column="picture", layers=(0, 1, 2))
    values = {
        "model.width": 8,
        "model.length": 5,
        "model.window": "chunks",
        "user.blocks": 1,
        "training.epochs": 2,
        "training.batch_size": 16,
        "training.patience": 0,
        "training.progress": False,
        "training.learning_rate": 1e-2,
        "evaluation.ks": (5, 10),
        "training.monitor": "NDCG@5",
        "stream.user_core": 0,
        "stream.validation": "user",
        "stream.valid_candidates": "seen",
        "stream.windows": 4,
    }
    if system == "xsmoe":
        values["model.bottleneck"] = 3
    config.update_from_flattened_dict(values | changes)
    return resolve(config)


def learner(config: RunConfig, workdir, capacity: int = ITEMS) -> Learner:
    """Over made-up states; nothing for systems by id."""

    def of_modalities(item_ids):
        found = states(item_ids)
        names = config.modalities
        return StateTable({n: found.values[n] for n in names}, {}, {n: found.present[n] for n in names})

    given = of_modalities if config.modalities else None
    return Learner(config, workdir, given, capacity, {"system": config.model.system})


@pytest.fixture(scope="session")
def windows() -> list[Window]:
    """Four windows."""
    return events()
