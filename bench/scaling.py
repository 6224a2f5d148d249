"""What a training step of the cached systems costs with more modalities, items and longer histories.

    python bench/scaling.py [--system iisan] [--rows modalities items lengths layers]

Random int8 states of 7 layers x 768 (or as the row says), batch 64, synthetic histories, the input pipeline included.
Each row of the table is a process of its own; memory is its peak above what it held before it loaded anything, beside
the store's size. Prints a Markdown table. The promises: time grows at most linearly in the number of modalities, and
does not depend on the number of items (of which a step reads those of its batch) nor on the backbone's depth (of which
the store holds the selected layers).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

WIDTH, BATCH, USERS, TIMED = 768, 64, 3000, 60
BASE = {"modalities": 2, "items": 20_000, "length": 10, "layers": 7}
ROWS: dict[str, list[dict[str, int]]] = {
    "modalities": [BASE | {"modalities": n} for n in (1, 2, 3, 4, 6, 8)],
    "items": [BASE | {"modalities": 1, "items": n} for n in (10_000, 100_000, 1_000_000)],
    "lengths": [BASE | {"length": n} for n in (10, 50, 200)],
    "layers": [BASE | {"layers": n} for n in (2, 4, 7, 13)],
}


def make_source(directory: Path, items: int, length: int) -> None:
    """Users with histories of the full length over all items, drawn by a popularity that few items dominate."""
    rng = np.random.default_rng(0)
    events = length + 3  # the last two are held out
    share = np.cumsum(rng.lognormal(sigma=1.5, size=items))
    drawn = np.searchsorted(share, rng.random(USERS * events) * share[-1])
    log = pl.DataFrame(
        {
            "user": np.repeat(np.arange(USERS), events),
            "item": drawn,
            "timestamp": np.tile(np.arange(events), USERS),
        }
    )
    log.write_parquet(directory / "interactions.parquet")
    pl.DataFrame({"item": np.arange(items), "title": ["item"] * items}).write_parquet(directory / "items.parquet")


def measure(system_name: str, modalities: int, items: int, length: int, layers: int) -> dict[str, Any]:
    """One row: milliseconds a step and peak memory."""
    import jax
    import jax.numpy as jnp
    import optax
    from train_speed import memory

    from mmrec_jax import config as configs
    from mmrec_jax.data import DataConfig, prepare, training_batches
    from mmrec_jax.objectives import log_popularity
    from mmrec_jax.sequence import SasRecConfig
    from mmrec_jax.store.table import StateTable
    from mmrec_jax.systems import CatalogueShape, StateShape, system
    from mmrec_jax.training.items import CatalogueItems, SequentialFrozen
    from mmrec_jax.training.pages import release_freed_pages
    from mmrec_jax.training.sequential import SequentialRecommendation
    from mmrec_jax.training.step import Programs, TrainStep

    names = [f"modality_{n}" for n in range(modalities)]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        make_source(directory, items, length)
        data = prepare(
            DataConfig(source=folder, user_core=0, item_core=0, candidates="catalogue"), directory / "prepared"
        )
        stream = training_batches(data, batch_size=BATCH, length=length, epochs=3)
        release_freed_pages()
        base, rng, rows = memory("RssAnon"), np.random.default_rng(0), data.num_items + 1

        def layer() -> jax.Array:
            return jax.device_put(rng.integers(-127, 128, (rows, WIDTH), dtype=np.int8))

        scales = jnp.full(rows, 0.01)
        table = StateTable(
            {name: tuple(layer() for _ in range(layers)) for name in names},
            dict.fromkeys(names, (scales,) * layers),
            dict.fromkeys(names, jnp.arange(rows) > 0),
            complete=True,
        )
        frozen = SequentialFrozen(table, log_popularity(jnp.asarray(data.popularity)))
        made = configs.base(system_name)
        made.model.system = system_name
        made.model.length = length
        made.fusion.kind = "concat" if system_name == "iisan" else "momef"
        made.modalities = {name: configs.modality(template="{title}") for name in names}
        settings, chosen = configs.resolve(made), system(system_name)
        shape = CatalogueShape(rows, dict.fromkeys(names, StateShape(WIDTH, layers)))
        task = SequentialRecommendation(
            CatalogueItems(chosen.build(settings, shape)),
            SasRecConfig(settings.model.width, length),
            settings.objective,
            settings.scoring,
            chosen.parts(settings),
        )
        step = TrainStep(task, optax.adam(1e-3), seed=0)
        batches = stream.warmup_batches()
        state = step.init(Programs(task.init)((), jax.random.key(0), frozen), frozen, batches[0])
        step.warm_up(state, frozen, batches)
        seconds, distinct = [], []
        for _ in range(TIMED):
            start = time.perf_counter()
            batch = next(stream)
            state = step(state, frozen, jax.device_put(batch))
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - start)
            distinct.append(int((batch.items > 0).sum()))
        stream.close()
        return {
            "ms": 1e3 * statistics.median(seconds),
            "distinct": statistics.mean(distinct),
            "store": table.nbytes / 2**20,
            "peak": (memory("VmHWM") - memory("RssFile") - base) / 2**20,
        }


def main() -> None:
    """Measures the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=("crossan", "iisan"), default="crossan")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.system, **arguments.one)))
        return
    print("| modalities | items | length | layers | distinct items a batch | ms a step | µs an item | store | peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in (row for name in arguments.rows for row in ROWS[name]):
        if arguments.system == "iisan" and row["modalities"] != 2:
            continue
        command = [sys.executable, __file__, "--system", arguments.system, "--one", json.dumps(row)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        sizes = " | ".join(f"{row[key]:,}" for key in BASE)
        print(
            f"| {sizes} | {found['distinct']:.0f} | {found['ms']:.1f} | {1e3 * found['ms'] / found['distinct']:.0f} | "
            f"{found['store']:.0f} MiB | {found['peak']:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
