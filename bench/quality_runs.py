"""What the quality benchmarks share: configs with settings, runs that are trained once, and means over seeds."""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from rich.console import Console

from mmrec_jax import modes
from mmrec_jax.config import resolve
from mmrec_jax.evaluation.metrics import gain_table, metric_names, rank_cells
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.seeds import seed_differences, seed_means
from mmrec_jax.modes.results import RANKS
from mmrec_jax.modes.workdir import read_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
K = 10
METRICS = (f"HR@{K}", f"NDCG@{K}")

Gains = Mapping[str, Float[np.ndarray, "seed user"]]
"""Metric -> what each user adds to it in each seed's run; the mean over all of it is the metric."""


def arguments(description: str, *, seeds: int, workdir: str) -> argparse.ArgumentParser:
    """The options of every quality benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_numbers, default=list(range(seeds)), help="e.g. 0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs") / workdir, help="takes all runs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value in the config, e.g. training.epochs=2; may be repeated",
    )
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as keys and values: numbers, true, false and lists as in JSON, all else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def load_config(name: str, values: Mapping[str, Any]) -> ConfigDict:
    """`configs/NAME.py` without baselines, shown users and other extras, with the given values."""
    config: ConfigDict = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    quiet = {
        "baselines": (),
        "show_users": 0,
        "evaluation.bootstrap": 0,
        "evaluation.slices": False,
        "training.tensorboard": False,
        "training.learning_curve": False,
    }
    config.update_from_flattened_dict(quiet | dict(values))
    return config


def trained(config: ConfigDict, workdir: Path) -> modes.Run:
    """The finished run of a config in a workdir: a run that was finished before is only opened, one that was stopped
    goes on.
    """
    before = read_config(workdir)
    run = modes.open_run(config, workdir, trains=True)
    if before != resolve(config) or not (workdir / "results.json").exists():
        modes.train(run)
    return run


def ranks(workdir: Path) -> Int[np.ndarray, " user"]:
    """Rank of each user's held-out item, users in the order of their ids."""
    return pl.read_parquet(workdir / RANKS).sort("user")["rank"].fill_null(MISS).to_numpy()


def gains(ranks_of_seeds: Sequence[Int[np.ndarray, " user"]]) -> Gains:
    """What each user adds to each of `METRICS`."""
    table = gain_table((K,))
    every = np.stack([table[rank_cells(found, (K,))] for found in ranks_of_seeds])
    return {metric: every[..., metric_names((K,)).index(metric)] for metric in METRICS}


def summary(model: Sequence[Int[np.ndarray, " user"]]) -> dict[str, Any]:
    """Mean, 95% interval and the seeds' own values of each metric, as fractions of 1; from each seed's ranks."""
    found = seed_means(np.stack(model), (K,))
    return {
        metric: {
            "mean": found[metric].mean,
            "interval": (found[metric].low, found[metric].high),
            "seeds": list(found[metric].seeds),
        }
        for metric in METRICS
    }


def change(
    first: Sequence[Int[np.ndarray, " user"]], second: Sequence[Int[np.ndarray, " user"]]
) -> dict[str, dict[str, Any]]:
    """Difference of two models, first minus second, with its 95% interval; from each seed's ranks."""
    found = seed_differences(np.stack(first), np.stack(second), (K,))
    return {
        metric: {"mean": found[metric].mean, "interval": (found[metric].low, found[metric].high)} for metric in METRICS
    }


def output() -> Console:
    """Where the tables go: wide enough for them also where there is no terminal."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=140)


def write(content: Mapping[str, Any], path: Path) -> None:
    """Writes a benchmark's figures and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    print(f"\nFigures: {path}")
