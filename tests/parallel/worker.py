"""One process of a run over several: what it did and measured, printed as JSON.

python -m tests.parallel.worker CASE SHOP WORKDIR PORT PROCESSES PROCESS
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from mmrec_jax.errors import ConfigError
from mmrec_jax.live.inputs import RawInputs
from mmrec_jax.store import loading
from mmrec_jax.training.processes import first_alone
from mmrec_jax.training.trees import named_leaves
from tests.parallel.runs import LORA, SHARED, SMALL, SOFTMAX, encoded, live_run, measured, shop_run, take_steps


class Recorded:
    """An array of a store, which notes the rows that are read of it."""

    def __init__(self, array, rows: set[int]):
        self._array, self._rows = array, rows

    def __getattr__(self, name):
        return getattr(self._array, name)

    def __getitem__(self, part: slice):
        self._rows.update(range(part.start, part.stop))
        return self._array[part]


@contextmanager
def rows_read(rows: set[int]):
    """Notes the rows of the store that are read."""
    open_array = loading.open_array
    with mock.patch.object(loading, "open_array", lambda *names: Recorded(open_array(*names), rows)):
        yield


@contextmanager
def inputs_read(rows: set[int]):
    """Notes the catalogue rows whose raw inputs are read."""
    take = RawInputs.__getitem__
    with mock.patch.object(RawInputs, "__getitem__", lambda self, row: rows.add(int(row)) or take(self, row)):
        yield


def mistaken() -> str:
    """What a caller makes of a mistake that the first process alone can make."""

    def make() -> str:
        if jax.process_index() == 0:
            raise ConfigError("of the first\nalone")
        return "made"

    try:
        return first_alone(make, "a mistake")
    except ConfigError as error:
        return f"handled: {error}"


def as_configured(shop: Path, workdir: Path) -> dict[str, Any]:
    """The defaults, and which rows this process reads."""
    stored, encoded_rows = set[int](), set[int]()
    found = {"mistake": [mistaken(), first_alone(lambda: "made", "no mistake")]}
    with rows_read(stored):
        found |= measured(shop_run(shop, workdir, (8, 1, 1), **SMALL))
    live = live_run(shop, workdir / "live", (8, 1, 1), **LORA)
    with inputs_read(encoded_rows):
        found["live"] = encoded(live)
    with inputs_read(stepped := set[int]()):
        steps = take_steps(live, 1)
    found |= {"live_steps": steps.metrics, "live_gradients": [named_leaves(tree) for tree in steps.gradients]}
    return found | {"stored": sorted(stored), "encoded": sorted(encoded_rows), "stepped": sorted(stepped)}


def otherwise(shop: Path, workdir: Path) -> dict[str, Any]:
    """What else a mesh can be told to do, with the axis `data` between two processes and `model` inside them."""
    sizes = (2, 4, 1)
    own = {"parallel__encode": "own", "parallel__rules": SHARED}
    return {
        "own": measured(shop_run(shop, workdir, sizes, **SMALL, **own)),
        "local": measured(shop_run(shop, workdir, sizes, **SMALL, **own, parallel__negatives="local")),
        "softmax": measured(shop_run(f"{shop},words", workdir, sizes, **SOFTMAX)),
        # Heads and hidden units over the devices of a process, the width over the processes.
        "live": measured(live_run(shop, workdir / "live", sizes, (("embed", "data"),), **LORA)),
    }


CASES = {"as_configured": as_configured, "otherwise": otherwise}


def main(case: str, shop: str, workdir: str, port: str, processes: str, process: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    assert len(jax.devices()) == 8
    assert len(jax.local_devices()) == 8 // int(processes)
    print(json.dumps(CASES[case](Path(shop), Path(workdir)), default=np.ndarray.tolist))


if __name__ == "__main__":
    main(*sys.argv[1:])
