"""A training step over eight fake devices against the same step on one, at equal total work.

    python bench/sharded_step.py [--batch 64] [--data 8 --model 1]

The main job of the README (configs/crossan.py on the sample, int8 states) with a batch that eight devices can share.
Both are compiled in one process and take turns, so that the machine is in the same state for both. Fake devices share
the processor's cores: what the sharded step costs beyond the other is the price of cutting up and of moving, without
any gain from more devices. Prints a JSON line: medians in milliseconds, their ratio, compile times, and the number of
collectives.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import argparse
import importlib.util
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mmrec_jax import experiment
from mmrec_jax.config import resolve
from mmrec_jax.modes.run import Run, terminal
from mmrec_jax.training.optimizers import build_optimizer
from mmrec_jax.training.placement import OneDevice, Placement
from mmrec_jax.training.step import Programs, TrainStep, seed_keys

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "crossan.py"
COLLECTIVE = re.compile(r"= .*? (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def make_run(sizes: tuple[int, int], batch: int, folder: Path) -> Run:
    """The run over a mesh."""
    spec = importlib.util.spec_from_file_location("crossan_config", CONFIG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.training.batch_size = batch
    config.parallel.data, config.parallel.model = sizes
    return Run(resolve(config), folder, terminal())


def stepper(run: Run) -> tuple[Callable[[int], float], float, dict[str, int]]:
    """A function that takes so many steps and gives the seconds of one, seconds of compilation, and collectives."""
    place: Placement = run.placement or OneDevice()
    stream = experiment.training_stream(run.config, run.data, shards=run.shards)
    frozen = place.frozen(run.frozen)
    params = Programs(run.task.init)((), seed_keys(0)[0], frozen)
    step = TrainStep(run.task, build_optimizer(run.config.training, params, 1), seed=0, placement=place)
    batches = list(stream.warmup_batches())
    start = time.perf_counter()
    held: list[Any] = [step.init(params, frozen, batches[0])]
    step.warm_up(held[0], frozen, batches)
    compiling = (time.perf_counter() - start) / len(batches)
    found: dict[str, int] = {}
    for program in (step._inputs, step._gradients, step._updated):
        text = next(iter(program._compiled.values())).as_text() or ""
        for kind in COLLECTIVE.findall(text):
            found[kind] = found.get(kind, 0) + 1

    def take(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            held[0] = step(held[0], frozen, place.batch(next(stream)))
        jax.block_until_ready(held[0])
        return (time.perf_counter() - start) / count

    return take, compiling, found


def main() -> None:
    """Takes turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--data", type=int, default=8)
    parser.add_argument("--model", type=int, default=1)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, compiling_one, _ = stepper(make_run((1, 1), arguments.batch, Path(folder)))
        many, compiling, moves = stepper(make_run((arguments.data, arguments.model), arguments.batch, Path(folder)))
        one(3)
        many(3)
        turns = [(one(arguments.steps), many(arguments.steps)) for _ in range(arguments.turns)]
    first, second = (statistics.median(times) for times in zip(*turns, strict=True))
    print(
        json.dumps(
            {
                "batch": arguments.batch,
                "mesh": [arguments.data, arguments.model, 1],
                "one_device_ms": round(1e3 * first, 2),
                "sharded_ms": round(1e3 * second, 2),
                "ratio": round(second / first, 3),
                "compile_seconds_a_shape": [round(compiling_one, 1), round(compiling, 1)],
                "collectives": moves,
            }
        )
    )


if __name__ == "__main__":
    main()
