"""What the experts of XSMoE's ladders cost: a training step with ten in use, with one in ten slots, and with one slot.

    python bench/ladder_speed.py [--width 384] [--items 3500]

Two modalities with random states of 3 layers, so two rungs each, bottleneck 64, item vectors and user encoder of width
128, batches of 256 users with 10 events and a target each, drawn by popularity (Zipf) from the catalogue: the paper's
sizes at --width 768. Steps of all forms are timed in turn, so that what else the machine does falls on all of them.
Prints a line for each form: the median step, its relation to that of one slot, and the share of this machine's rate of
float32 products that the step's useful flops reach. Useful are those that the equations need on distinct items and real
events, forward, and backward for what is trained; of slots in use alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_speed import product_rate

from mmrec_jax import config as configs
from mmrec_jax.objectives import log_popularity
from mmrec_jax.sequence import SasRecConfig
from mmrec_jax.store.table import StateTable
from mmrec_jax.streaming import growth
from mmrec_jax.systems import CatalogueShape, StateShape, system
from mmrec_jax.training.items import CatalogueItems, SequentialFrozen
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.training.step import TrainState, TrainStep
from mmrec_jax.training.trees import host_copy
from mmrec_jax.types import Params, SequenceBatch

MODALITIES, RUNGS, BOTTLENECK, OUT, BATCH, LENGTH = ("text", "image"), 2, 64, 128, 256, 10


def random_table(rows: int, width: int) -> StateTable:
    """Random states for every row; row 0 is padding."""
    rng = np.random.default_rng(0)
    values = {
        name: tuple(jax.device_put(rng.standard_normal((rows, width), np.float32)) for _ in range(RUNGS + 1))
        for name in MODALITIES
    }
    return StateTable(values, {}, dict.fromkeys(MODALITIES, jnp.arange(rows) > 0), complete=True)


def random_batch(rows: int, seed: int) -> SequenceBatch:
    """Full histories of popular items."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, rows)
    events = rng.choice(np.arange(1, rows), (BATCH, LENGTH + 1), p=shares / shares.sum())
    items, positions, counts = np.unique(events, return_inverse=True, return_counts=True)
    padded = np.zeros(-(-(len(items) + 1) // 256) * 256, np.int32)
    padded[1 : len(items) + 1] = items
    told = np.zeros_like(padded)
    told[1 : len(items) + 1] = counts
    leaves: dict[str, Any] = {
        "items": padded,
        "counts": told,
        "positions": (positions.reshape(events.shape) + 1).astype(np.int32),
        "steps": np.arange(BATCH * LENGTH, dtype=np.int32),
        "users": np.arange(BATCH, dtype=np.int32),
    }
    return SequenceBatch(**leaves)


def task_of(rows: int, width: int, capacity: int) -> SequentialRecommendation:
    """The paper's sizes beside the backbone's width."""
    made = configs.base("xsmoe")
    made.model.system, made.model.width, made.fusion.kind, made.model.capacity = "xsmoe", OUT, "add", capacity
    made.model.bottleneck = BOTTLENECK
    made.modalities = {name: configs.modality(template="{title}") for name in MODALITIES}
    settings = configs.resolve(made)
    shape = CatalogueShape(rows, dict.fromkeys(MODALITIES, StateShape(width, RUNGS + 1)))
    module = system("xsmoe").build(settings, shape)
    user = SasRecConfig(OUT, LENGTH)
    return SequentialRecommendation(CatalogueItems(module), user, settings.objective, settings.scoring, MODALITIES)


def useful_flops(items: int, events: int, width: int, used: int) -> float:
    """Multiply-adds of the equations, counted twice each.

    A slot in use has two products forward and, for the gates and the states below, two backward; of the first rung,
    whose input is frozen, one backward. One slot of each rung is trained, and has two more for its matrices.
    """
    slot = 2 * items * width * BOTTLENECK
    rungs = used * (4 * RUNGS - 1) * slot + RUNGS * 2 * slot
    routers = (3 * RUNGS - 1) * 2 * items * width * (used + 1)
    heads = 3 * 2 * items * width * OUT
    user = events * 3 * 2 * (2 * OUT * OUT * 4 + 2 * 2 * OUT * 4 * OUT)
    return len(MODALITIES) * (rungs + routers + heads) + user + events * 3 * 2 * OUT * items


def grown(params: Params, experts: int) -> Params:
    """The parameters after as many windows as give each rung so many experts."""
    rng = np.random.default_rng(0)
    for window in range(1, experts):
        params, _, full = growth.expand(params, window, rng)
        assert not full
    return params


def main() -> None:
    """Times all forms and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--items", type=int, default=3500)
    parser.add_argument("--capacity", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    rows, width, capacity = arguments.items + 1, arguments.width, arguments.capacity
    rate = product_rate()
    frozen = SequentialFrozen(random_table(rows, width), log_popularity(jnp.arange(rows)))
    batch = random_batch(rows, 0)
    items, events = int((batch.items > 0).sum()), BATCH * LENGTH
    forms = [
        ("one slot", 1, 1),
        (f"1 of {capacity} slots", capacity, 1),
        (f"{capacity} of {capacity} slots", capacity, capacity),
    ]
    steps: dict[int, TrainStep] = {}
    states: list[TrainState] = []
    for _, slots, used in forms:
        task = task_of(rows, width, slots)
        step = steps.setdefault(slots, TrainStep(task, optax.adam(1e-3), seed=0))
        params = grown(host_copy(jax.jit(task.init)(jax.random.key(0), frozen)), used)
        states.append(step.init(params, frozen, batch))
        step.warm_up(states[-1], frozen, [batch])
    batch = jax.device_put(batch)
    seconds: list[list[float]] = [[] for _ in forms]
    for _ in range(arguments.rounds):
        for number, (_, slots, _) in enumerate(forms):
            start = time.perf_counter()
            states[number] = jax.block_until_ready(steps[slots](states[number], frozen, batch))
            seconds[number].append(time.perf_counter() - start)
    rate = (rate + product_rate()) / 2
    print(f"{items} items and {events} events a step, width {width}; products at {rate / 1e9:.0f} GFLOP/s")
    first = statistics.median(seconds[0])
    for (name, _, used), times in zip(forms, seconds, strict=True):
        median = statistics.median(times)
        share = useful_flops(items, events, width, used) / median / rate
        print(f"{name:>16}: {1e3 * median:6.1f} ms, {median / first:.2f} of one slot, {share:.2f} of the product rate")
    print(f"recompilations: {sum(step.recompilations for step in steps.values())}")


if __name__ == "__main__":
    main()
