"""What one of several processes makes of a batch and holds of a store, beside what a process that is alone does.

    python bench/hosts.py [--items 500000] [--batch 8192]

Batches: milliseconds of the host for a batch of ids (users of up to 11 events, popular items more often) over 256
devices, whole and for the devices of 4 and of 64 processes; and for images of 224 x 224 of 256 items, 8 devices, whole
and a half. Store: two int8 layers of 256 values an item, read by one process and by two, with the memory that this
takes each at its peak. Prints a JSON line each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, LAYERS, EVENTS = 256, 2, 11


def batch_milliseconds(items: int, batch: int, own: tuple[int, ...] | None) -> float:
    """Median time to make a batch of ids for 256 devices."""
    from mmrec_jax.data.batches import TrainingStream
    from mmrec_jax.data.rows import Rows

    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.08, 40 * batch) + 1, EVENTS)
    ends = np.cumsum(lengths)
    events = (items * rng.random(ends[-1]) ** 3).astype(np.int32) + 1
    rows = Rows(events, np.arange(len(lengths), dtype=np.int32), ends - lengths, ends, EVENTS)
    settings: dict[str, Any] = {"seed": 0, "shard_index": 0, "shard_count": 1, "size_multiple": 256, "epochs": 0}
    stream = TrainingStream(
        rows, num_items=items, batch_size=batch, fingerprint="", groups=256, own_groups=own, **settings
    )
    stream.close()
    return _median(lambda step: stream._batch(step), 30)


def image_milliseconds(own: tuple[int, ...] | None) -> float:
    """Median time to make the pixels of a batch of 256 items for 8 devices."""
    from mmrec_jax.backbones.image import ImagePreprocessor
    from mmrec_jax.live.inputs import RawInputs
    from mmrec_jax.live.parts import ByLength
    from mmrec_jax.share import Share

    pixels = (224, 224, 3)
    values = np.zeros(2048 * int(np.prod(pixels)), np.uint8)
    starts = np.arange(2049) * int(np.prod(pixels))
    inputs = RawInputs(values, starts, np.arange(2048) > 0, pixels)
    preprocess = ImagePreprocessor.__new__(ImagePreprocessor)
    layout = ByLength(inputs, preprocess, (1,), 8)
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(np.arange(1, 2048), 256, replace=False)) for _ in range(20)]
    sizes = layout.sizes((256,))
    return _median(lambda step: layout.batch(rows[step], sizes, Share(8, own)), 20)


def _median(make: Any, count: int) -> float:
    taken = []
    for step in range(count):
        start = time.perf_counter()
        make(step)
        taken.append(1e3 * (time.perf_counter() - start))
    return float(np.median(taken))


def write_store(folder: Path, items: int) -> None:
    """A store of random states."""
    from mmrec_jax.store.store import PRESENT, HiddenStateStore, ModalityInfo

    store = HiddenStateStore.create(folder, [str(item) for item in range(items)])
    store.add_modality("words", ModalityInfo(WIDTH, tuple(range(LAYERS)), "mean", "int8", {"depth": LAYERS}))
    rng = np.random.default_rng(0)
    for start in range(0, items, 50_000):
        rows = np.arange(start, min(start + 50_000, items))
        states = rng.standard_normal((len(rows), LAYERS, WIDTH), np.float32)
        store.write("words", rows, states, np.full(len(rows), PRESENT, np.uint8))


def read_store(folder: Path, items: int, port: int, processes: int, process: int, told: Any) -> None:
    """Reads the rows of one process."""
    import jax

    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    from mmrec_jax.parallel import ParallelConfig
    from mmrec_jax.parallel.placement import run_shards
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.training.memory import peak_memory_bytes, restart_peak_memory

    shards = run_shards(ParallelConfig())
    store, names = HiddenStateStore.open(folder), [str(item) for item in range(items)]
    assert jax.device_count() == processes
    restart_peak_memory()
    before, start = peak_memory_bytes(), time.perf_counter()
    table = store.table({"words": tuple(range(LAYERS))}, names, shards)
    seconds = time.perf_counter() - start
    leaves = jax.tree.leaves((table.values, table.scales))
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    told.put((process, held, peak_memory_bytes() - before, seconds))


def main(items: int, batch: int) -> None:
    for processes, own in ((1, None), (4, tuple(range(64))), (64, tuple(range(4)))):
        took = batch_milliseconds(10_000_000, batch, own)
        print(json.dumps({"batch": batch, "processes": processes, "milliseconds": round(took, 2)}), flush=True)
    for processes, own in ((1, None), (2, (0, 1, 2, 3))):
        took = image_milliseconds(own)
        print(json.dumps({"images": 256, "processes": processes, "milliseconds": round(took, 2)}), flush=True)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_store(store, items)
        for processes in (1, 2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            told = spawn.Queue()
            started = [
                spawn.Process(target=read_store, args=(store, items, port, processes, process, told))
                for process in range(processes)
            ]
            for each in started:
                each.start()
            for process, held, peak, seconds in sorted(told.get(timeout=120) for _ in started):
                line = {"items": items, "processes": processes, "process": process, "seconds": round(seconds, 2)}
                print(json.dumps(line | {"held_mib": held >> 20, "peak_mib": peak >> 20}), flush=True)
            for each in started:
                each.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=8192)
    main(**vars(parser.parse_args()))
