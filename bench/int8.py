"""What int8 hidden states cost in quality and save in memory, against float32.

    python bench/int8.py --store DIR
    python bench/int8.py --store DIR --config scientific --set data.source=DIR [--set modalities.title.backbone=DIR]

DIR is a float32 store (`--config.extraction.dtype=float32` makes one) of the embedded MovieLens data with the
modalities and layers of configs/crossan.py, or of another config's. It is quantised into a second store, and each seed
is trained on both.
Quality is compared twice: the same parameters (trained on float32) evaluated on both stores, which shows what the
rounding alone does, and trained and evaluated on each, which has the noise of two trainings in it. Promises: at most
1% of relative NDCG@10, and a quarter of the memory. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from quality_runs import arguments, change, gains, load_config, output, ranks, settings, trained, write
from rich.table import Table

from mmrec_jax.backbones.config import resolve_layers
from mmrec_jax.config import RunConfig, resolve
from mmrec_jax.modes import Run
from mmrec_jax.store import HiddenStateStore, StateTable
from mmrec_jax.store.arrays import chunk_rows, open_array
from mmrec_jax.store.store import PRESENT

METRIC = "NDCG@10"
LOSS, SHARE = 0.01, 0.25


def quantised(source: HiddenStateStore, config: RunConfig, location: Path) -> HiddenStateStore:
    """An int8 store of a float32 store's states, of the config's modalities and layers; made once."""
    if (location / "finished").exists():
        return HiddenStateStore.open(location)
    store = HiddenStateStore.create(location, source.item_ids)
    for name, modality in config.modalities.items():
        info = source.modalities[name]
        if info.dtype != "float32":
            raise SystemExit(f"{source.location}: {name} is {info.dtype}; a float32 store is needed.")
        layers = resolve_layers(modality.layers, info.fingerprint["depth"], name)
        columns = [info.layers.index(layer) for layer in layers]
        store.add_modality(name, dataclasses.replace(info, dtype="int8", layers=layers))
        values, status = open_array(source.files, f"{name}/values"), source.status(name)
        step = chunk_rows(values)
        for start in range(0, len(source.item_ids), step):
            rows = np.arange(start, min(start + step, len(source.item_ids)))
            states = values[rows[0] : rows[-1] + 1].read().result()[:, columns]
            states[status[rows] != PRESENT] = 0
            store.write(name, rows, states, status[rows])
    (location / "finished").touch()
    return store


def nbytes(table: StateTable) -> int:
    """Memory of the states and their scales; the masks are the same in any type."""
    parts = (*table.values.values(), *table.scales.values())
    return sum(layer.nbytes for layers in parts for layer in layers)


def main() -> None:
    """Trains what is not trained yet, prints the tables, writes `int8_CONFIG.json`."""
    parser = arguments(__doc__ or "", seeds=5, workdir="int8")
    parser.add_argument("--store", required=True, help="float32 store of the config's items")
    parser.add_argument("--config", default="crossan", help="name of a file in configs/")
    options = parser.parse_args()

    values = settings(options.set)
    config = resolve(load_config(options.config, values))
    small = quantised(HiddenStateStore.open(options.store), config, options.workdir / options.config / "store")
    stores = {"float32": options.store, "int8": small.location}
    found: dict[str, list[np.ndarray]] = {"float32": [], "int8, float32's parameters": [], "int8": []}
    memory = dict.fromkeys(stores, 0)
    for seed in options.seeds:
        runs = {}
        for dtype, store in stores.items():
            workdir = options.workdir / options.config / f"{dtype}_{seed}"
            runs[dtype] = trained(
                load_config(options.config, values | {"training.seed": seed, "store": store}), workdir
            )
            found[dtype].append(ranks(workdir))
        found["int8, float32's parameters"].append(_evaluated_on(runs["float32"], small.location))
        for dtype, run in runs.items():
            if run.table is not None:
                memory[dtype] = nbytes(run.table)

    models = {name: gains(ranks_of_seeds) for name, ranks_of_seeds in found.items()}
    base = models["float32"][METRIC].mean()
    table = Table(title=f"{METRIC} of configs/{options.config}.py, percent, mean of {len(options.seeds)} seeds")
    for heading in ("states", METRIC, "relative change, %", "95% interval"):
        table.add_column(heading, justify="right")
    results: dict[str, Any] = {}
    for name, model in models.items():
        mean = float(model[METRIC].mean())
        if name == "int8":
            low, high = change(found[name], found["float32"])[METRIC]["interval"]
            span = float(low / base), float(high / base)
        else:
            # The same trainings on both sides: only the users are drawn.
            span = _paired(models["float32"][METRIC], model[METRIC])
        relative = float(mean / base - 1)
        results[name] = {METRIC: mean, "relative change": relative, "interval": span}
        cells = [f"{100 * relative:+.2f}", f"[{100 * span[0]:+.2f}, {100 * span[1]:+.2f}]"]
        table.add_row(name, f"{100 * mean:.3f}", *(cells if name != "float32" else ["", ""]))
    console = output()
    console.print(table)
    share = memory["int8"] / memory["float32"]
    console.print(
        f"Memory of the states: {memory['float32'] / 2**20:.1f} MiB in float32, {memory['int8'] / 2**20:.1f} MiB in "
        f"int8 with scales: {share:.4f} (promised: {SHARE}).\n"
        f"Loss of {METRIC} promised: at most {100 * LOSS:.0f}%, relative."
    )
    write(
        {"seeds": options.seeds, "quality": results, "memory": memory | {"share": share}},
        options.workdir / f"int8_{options.config}.json",
    )


def _evaluated_on(run: Run, store: str) -> np.ndarray:
    """Ranks of a run's best parameters with the states of another store."""
    other = Run(dataclasses.replace(run.config, store=store), run.workdir, run.console)
    result = other.test(other.parameters())
    order = np.argsort(other.data.user_ids[result.users])
    return result.ranks[order]


def _paired(before: np.ndarray, after: np.ndarray, draws: int = 5000) -> tuple[float, float]:
    """95% interval of the relative change of the mean, users drawn with replacement."""
    users = before.shape[1]
    counts = np.random.default_rng(0).multinomial(users, np.full(users, 1 / users), size=draws)
    low, high = np.quantile((counts @ after.mean(axis=0)) / (counts @ before.mean(axis=0)) - 1, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
