"""Exact top-k over a catalogue that is split over eight fake devices: time and memory.

    python bench/sharded_topk.py [--items 10000000] [--width 64] [--users 64]

Every device scores its own rows and finds its own best k; only these are merged. Prints a JSON line: seconds for all
users, the size of the item vectors on a device, what the process holds and takes at its peak, and whether the lists are
those that numpy finds over the whole array for some users.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmrec_jax.evaluation.blocks import array_producer
from mmrec_jax.evaluation.topk import top_items
from mmrec_jax.parallel import ParallelConfig, make_mesh
from mmrec_jax.parallel.topk import RowCatalogue
from mmrec_jax.shards import Shards
from mmrec_jax.training.memory import peak_memory_bytes, restart_peak_memory

CHECKED = 4


def block(start: int, stop: int, width: int) -> np.ndarray:
    """Vectors of rows, the same however they are asked for."""
    made = [
        np.random.default_rng(chunk).standard_normal((100_000, width), dtype=np.float32)
        for chunk in range(start // 100_000, -(-stop // 100_000))
    ]
    first = start // 100_000 * 100_000
    return np.concatenate(made)[start - first : stop - first]


def expected(users: np.ndarray, rows: int, k: int) -> np.ndarray:
    """The best k of some users by numpy, chunk by chunk; a chunk's best with the best so far."""
    best, items = np.full((len(users), k), -np.inf, np.float32), np.zeros((len(users), k), np.int64)
    for start in range(0, rows, 500_000):
        stop = min(start + 500_000, rows)
        scores = users @ block(start, stop, users.shape[1]).T
        if start == 0:
            scores[:, 0] = -np.inf
        chosen = np.argpartition(-scores, k, axis=1)[:, :k]
        best = np.concatenate([best, np.take_along_axis(scores, chosen, axis=1)], axis=1)
        items = np.concatenate([items, chosen + start], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, items = np.take_along_axis(best, order, axis=1), np.take_along_axis(items, order, axis=1)
    return items


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--k", type=int, default=20)
    arguments = parser.parse_args()
    rows, width = arguments.items, arguments.width
    shards = Shards(make_mesh(ParallelConfig()))
    filled = -(-rows // shards.row_parts) * shards.row_parts

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(filled)
        return block(start, stop, width)

    vectors = jax.make_array_from_callback((filled, width), shards.split(shards.rows, filled), part)
    catalogue = RowCatalogue(jax.block_until_ready(vectors), shards, rows)
    users = np.random.default_rng(1).standard_normal((arguments.users, width), dtype=np.float32)
    producer = array_producer(users)
    first = time.perf_counter()
    top_items(producer, arguments.users, catalogue, arguments.k)
    compiled = time.perf_counter() - first
    held = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    restart_peak_memory()
    start = time.perf_counter()
    found, _ = top_items(producer, arguments.users, catalogue, arguments.k)
    seconds = time.perf_counter() - start
    peak = peak_memory_bytes()
    same = np.array_equal(found[:CHECKED], expected(users[:CHECKED], rows, arguments.k))
    print(
        json.dumps(
            {
                "items": rows,
                "width": width,
                "users": arguments.users,
                "k": arguments.k,
                "seconds": round(seconds, 2),
                "seconds_with_compilation": round(compiled, 2),
                "vectors_mib_a_device": round(filled // shards.row_parts * width * 4 / 2**20),
                "held_mib": round(held / 2**20),
                "peak_mib": round(peak / 2**20),
                "as_numpy_finds": same,
            }
        )
    )


if __name__ == "__main__":
    main()
