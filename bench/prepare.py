"""Prepares 10 million synthetic interactions (200k users, 100k items): seconds, peak memory and their limits.

    python bench/prepare.py

The interactions are made first, in another process, so that the peak is that of the preparation alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from mmrec_jax.data import DataConfig, prepare, training_batches

SECONDS_LIMIT = 180
GIB_LIMIT = 4
FIRST_TIME, TIME_SPAN = 1_400_000_000, 300_000_000  # seconds since 1970


def make_source(directory: Path, suffix: str, interactions: int, users: int, items: int, seed: int) -> None:
    """Writes the interactions, in no order, and items.parquet; few users and items have most events."""
    rng = np.random.default_rng(seed)

    def drawn(size: int) -> np.ndarray:
        share = np.cumsum(rng.lognormal(sigma=1.5, size=size))
        return np.searchsorted(share, rng.random(interactions) * share[-1]).astype(np.int32)

    log = pl.DataFrame(
        {
            "user": drawn(users),
            "item": drawn(items),
            "timestamp": FIRST_TIME + rng.integers(0, TIME_SPAN, interactions),
        }
    )
    path = directory / f"interactions.{suffix}"
    log.write_parquet(path) if suffix == "parquet" else log.write_csv(path)
    names = [f"item number {item}" for item in range(items)]
    pl.DataFrame({"item": np.arange(items), "title": names}).write_parquet(directory / "items.parquet")


def main() -> None:
    """Runs the benchmark; the exit code is 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sizes = (arguments.format, arguments.interactions, arguments.users, arguments.items, arguments.seed)
        maker = multiprocessing.get_context("spawn").Process(target=make_source, args=(directory, *sizes))
        maker.start()
        maker.join()
        # Two random events of one user and item may fall into the same second: that is no fault here.
        config = DataConfig(source=str(directory), user_core=5, item_core=5, repeated_events="keep")
        began = time.perf_counter()
        prepared = prepare(config, directory / "prepared")
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        written = sum(path.stat().st_size for path in prepared.directory.rglob("*") if path.is_file()) / 2**20
        began = time.perf_counter()
        stream = training_batches(prepared, batch_size=64, length=10)
        for _ in range(1000):
            next(stream)
        batch = (time.perf_counter() - began) / 1000
        stream.close()
    print(prepared.describe())
    print(f"prepared in {seconds:.1f} s: {seconds / SECONDS_LIMIT:.2f} of the limit of {SECONDS_LIMIT} s")
    print(f"peak memory {peak:.2f} GiB: {peak / GIB_LIMIT:.2f} of the limit of {GIB_LIMIT} GiB")
    print(f"on disk {written:.0f} MiB; the first 1000 batches of 64 x 11 took {batch * 1e3:.2f} ms each")
    sys.exit(seconds > SECONDS_LIMIT or peak > GIB_LIMIT)


if __name__ == "__main__":
    main()
