"""A training epoch of CROSSAN or IISAN at the paper's sizes, against this machine's matrix-product rate.

    python bench/train_speed.py --source DIR [--system iisan]

DIR holds `users.tsv` and `items.tsv` (Amazon Industrial & Scientific as the IISAN authors publish it). Two modalities
with random states of 7 layers x 768 in float32, batch 64, L = 10, the real sequences; the input pipeline is part of the
epoch. Useful flops are those of the equations on the distinct items and the real events of each batch: padding and
anything computed twice count for nothing. The rate of a float32 product of two 2048 x 2048 matrices is measured before
and after every epoch in the same process. Prints medians, the peak memory against what must be held, and the seconds of
an evaluation on the test split: all items and users encoded, exact ranks over the full catalogue.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmrec_jax import config as configs
from mmrec_jax.data import DataConfig, PreparedData, prepare, training_batches
from mmrec_jax.evaluation import EvaluationConfig, evaluate
from mmrec_jax.objectives import log_popularity
from mmrec_jax.sequence import SasRecConfig
from mmrec_jax.store.table import StateTable
from mmrec_jax.systems import CatalogueShape, StateShape, system
from mmrec_jax.training.items import CatalogueItems, SequentialFrozen
from mmrec_jax.training.pages import release_freed_pages
from mmrec_jax.training.scorer import SequentialScorer
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.training.step import Programs, TrainStep
from mmrec_jax.types import Params

LAYERS, WIDTH, BOTTLENECK, OUT, BATCH, LENGTH = 7, 768, 64, 64, 64, 10
MODALITIES = ("text", "image")
TOWERS = {"crossan": 2, "iisan": 3}


def product_rate(size: int = 2048, repeats: int = 5) -> float:
    """Flops a second of a float32 matrix product: the median of a few."""
    a = jnp.ones((size, size))
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(a))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(multiply(a))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def useful_flops(items: int, events: int, system_name: str) -> float:
    """Multiply-adds of the equations, counted twice each: forward, and backward for weights and inputs.

    Frozen states need no gradient, so the first block of a tower has none for its input. Candidates are the batch's
    distinct items. The two matrices of each of IISAN's heads are multiplied together once a step.
    """
    towers = TOWERS[system_name]
    block = 2 * 2 * WIDTH * BOTTLENECK
    tower = 3 * LAYERS * block - block / 2 + 3 * 2 * WIDTH * OUT
    fusion = 3 * (2 * 2 * OUT * OUT)
    user = 3 * 2 * (2 * OUT * OUT * 4 + 2 * 2 * OUT * 4 * OUT)
    scores = 3 * 2 * OUT * items
    heads = towers * 3 * 2 * WIDTH * WIDTH * OUT if system_name == "iisan" else 0
    return items * towers * (tower + fusion) + heads + events * (user + scores)


def random_table(rows: int) -> StateTable:
    """Random states for every row; row 0 is padding."""
    rng = np.random.default_rng(0)

    def layer() -> jax.Array:
        values = rng.standard_normal((rows, WIDTH), dtype=np.float32)
        values[0] = 0
        return jax.device_put(values)

    present = jnp.arange(rows) > 0
    return StateTable(
        {name: tuple(layer() for _ in range(LAYERS)) for name in MODALITIES},
        {},
        dict.fromkeys(MODALITIES, present),
        complete=True,
    )


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    """Runs the epochs and prints one JSON line a run and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="directory with users.tsv and items.tsv")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--system", choices=TOWERS, default="crossan")
    arguments = parser.parse_args()
    data = DataConfig(source=arguments.source, user_core=0, max_length=13)
    with tempfile.TemporaryDirectory() as folder:
        run(data, Path(folder), arguments.epochs, arguments.system)


def run(config: DataConfig, folder: Path, epochs: int, system_name: str) -> None:
    """Prepares, warms up, and measures."""
    data = prepare(config, folder)
    stream = training_batches(data, batch_size=BATCH, length=LENGTH, seed=0, epochs=epochs + 1)
    product_rate()
    release_freed_pages()
    base = memory("RssAnon")
    table = random_table(data.num_items + 1)
    frozen = SequentialFrozen(table, log_popularity(jnp.asarray(data.popularity)))
    made = configs.base(system_name)
    made.model.system = system_name
    made.fusion.kind = "concat" if system_name == "iisan" else "momef"
    made.modalities = {name: configs.modality(template="{title}") for name in MODALITIES}
    settings, chosen = configs.resolve(made), system(system_name)
    shape = CatalogueShape(data.num_items + 1, dict.fromkeys(MODALITIES, StateShape(WIDTH, LAYERS)))
    task = SequentialRecommendation(
        CatalogueItems(chosen.build(settings, shape)),
        SasRecConfig(OUT, LENGTH),
        settings.objective,
        settings.scoring,
        chosen.parts(settings),
    )
    step = TrainStep(task, optax.adam(1e-3), seed=0)
    batches = stream.warmup_batches()
    state = step.init(Programs(task.init)((), jax.random.key(0), frozen), frozen, batches[0])
    step.warm_up(state, frozen, batches)
    held = table.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.optimizer)))
    held += step.activation_bytes(state, frozen, batches[-1])
    records, peak = [], 0
    for epoch in range(epochs):
        before = product_rate()
        release_freed_pages()  # those of the products
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        seconds = flops = 0.0
        start = time.perf_counter()
        with jax.transfer_guard("disallow"):
            for _ in range(stream.batches_per_epoch):
                batch = next(stream)
                state = step(state, frozen, jax.device_put(batch))
                items, events = int((batch.items > 0).sum()), int((batch.positions[:, :-1] > 0).sum())
                flops += useful_flops(items, events, system_name)
            jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        # Without the pages of program files, which the system shares among processes and takes back when it likes.
        peak = max(peak, memory("VmHWM") - memory("RssFile") - base)
        rate = (before + product_rate()) / 2
        records.append({"seconds": seconds, "rate": rate / 1e9, "share": flops / seconds / rate})
        print(json.dumps({"epoch": epoch + 1} | {key: round(value, 3) for key, value in records[-1].items()}))
    median = {key: statistics.median(record[key] for record in records) for key in records[0]}
    print(f"epoch: {median['seconds']:.2f} s, product rate {median['rate']:.0f} GFLOP/s (medians of {epochs})")
    print(f"share of the product rate: {median['share']:.3f} (promise: 0.40)")
    print(f"recompilations after warm-up: {step.recompilations} (promise: 0)")
    print(
        f"peak memory above the {base / 2**20:.0f} MiB that the process has before it loads anything: "
        f"{peak / 2**20:.0f} MiB, {peak / held:.2f}x the {held / 2**20:.0f} MiB that must be held (promise: 1.2)"
    )
    stream.close()
    seconds = evaluation_seconds(data, task, state.params, frozen)
    users = len(data.examples("test"))
    print(f"evaluation of {users:,} users over {data.num_items:,} items: {seconds:.2f} s (promise: 1.5)")


def evaluation_seconds(
    data: PreparedData, task: SequentialRecommendation, params: Params, frozen: SequentialFrozen, rounds: int = 5
) -> float:
    """Median seconds of a full evaluation, compiled before; items and users are encoded anew each time."""
    examples, taken = data.examples("test"), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        scorer = SequentialScorer(task, params, frozen)
        config = EvaluationConfig(lists=False, slices=False, bootstrap=0)
        evaluate(scorer, examples, data.popularity, length=LENGTH, config=config)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
