"""What growth is worth on a stream: XSMoE, its ablations and baselines under one protocol, several seeds each.

    python bench/streaming.py [--variants=xsmoe,finetune,...] [--seeds=0,1,2] [--windows=N] [--out=runs/streaming]

Every variant is an argument of `configs/xsmoe.py`. Reported are the means over windows of HR@10 and NDCG@10, with
intervals of a bootstrap over users (the same draw for all variants, a user of a window being one unit with all its
targets) and of the noise between seeds, and paired differences to the first variant; HR@10 averaged by user within a
window, where it differs; forgetting of NDCG@10 (docs/streaming.md); training seconds; the time of a step in the last
window as a ratio to the first, for the same number of targets; programs compiled after the first window. A run that
was finished before is read from its workdir, one that was stopped goes on.

    python bench/streaming.py --time [--set=training.epochs=3] [--out=runs/streaming]

times an epoch on the first window with the parameters that a stream begins with and with those after nine expansions:
the same events, batches and compiled programs, in turns.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from quality_runs import output, write
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("HR@10", "NDCG@10")
VARIANTS = (
    "",
    "without_expansion",
    "without_pruning",
    "experts",
    "finetune",
    "replay",
    "retrain_all",
    "retrain_window",
    "frozen",
    "text",
    "image",
)
"""Arguments of the config; the first is what the others are compared with."""


def run(variant: str, seed: int, workdir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `stream.json` of one run."""
    from mmrec_jax import modes

    config = runpy.run_path(str(ROOT / "configs" / "xsmoe.py"))["get_config"](variant)
    config.update_from_flattened_dict({"training.seed": seed, "training.progress": False, **settings})
    done = workdir / "stream.json"
    if done.exists() and json.loads(done.read_text(encoding="utf-8"))["config"] == as_json(config):
        return json.loads(done.read_text(encoding="utf-8"))
    return modes.stream(modes.open_run(config, workdir, trains=True))


def as_json(config) -> dict[str, Any]:
    """The config as `stream.json` keeps it."""
    from mmrec_jax.config import resolve, to_json

    return json.loads(json.dumps(to_json(resolve(config))))


def growth_time(workdir: Path, settings: Mapping[str, Any], repeats: int = 5) -> dict[str, Any]:
    """Seconds of an epoch's steps on the first window, by how often the parameters were expanded, and their ratio."""
    from mmrec_jax import modes
    from mmrec_jax.modes.stream import log_windows, stream_learner
    from mmrec_jax.streaming import growth

    config = runpy.run_path(str(ROOT / "configs" / "xsmoe.py"))["get_config"]("")
    config.update_from_flattened_dict({"training.progress": False, "training.epochs": 2, **settings})
    opened = modes.open_run(config, workdir, trains=True)
    windows, catalogue, data = log_windows(opened.config)
    learner = stream_learner(opened, catalogue, data)
    learner.observe(windows[0])
    grown = {0: learner.fresh()}
    rng = np.random.default_rng(0)
    for number in range(1, opened.config.model.capacity):
        grown[number] = growth.expand(grown[number - 1], number, rng)[0]
    taken: dict[int, list[float]] = {0: [], max(grown): []}
    for _ in range(repeats):
        for expansions, seconds in taken.items():
            shutil.rmtree(learner.folder(1), ignore_errors=True)
            facts = learner.train(1, grown[expansions]).facts
            seconds.append(facts["step_seconds"] / facts["epochs"])
    first, last = (float(np.median(seconds)) for seconds in taken.values())
    return {"seconds": taken, "ratio": last / first}


def user_gains(workdir: Path) -> pl.DataFrame:
    """Columns `window`, `user`, `count` (targets) and the sums of each of `METRICS` over them."""
    frames = []
    for path in sorted((workdir / "ranks").glob("*.parquet")):
        hit = pl.col("rank").is_not_null() & (pl.col("rank") <= 10)
        gains = pl.read_parquet(path).select(
            "user",
            pl.when(hit).then(1.0).otherwise(0.0).alias(METRICS[0]),
            pl.when(hit).then(1 / (1 + pl.col("rank").cast(pl.Float64)).log(2)).otherwise(0.0).alias(METRICS[1]),
        )
        each = gains.group_by("user").agg(pl.len().alias("count"), pl.col(*METRICS).sum())
        frames.append(each.with_columns(pl.lit(int(path.stem)).alias("window")))
    return pl.concat(frames).sort("window", "user")


def resampled(
    runs: Mapping[str, Sequence[pl.DataFrame]], draws: int = 2000
) -> tuple[dict[str, Float[np.ndarray, "draw metric"]], dict[str, Float[np.ndarray, "seed metric"]]]:
    """Means over windows, in resamples and as observed for each seed.

    In a draw each window's users are taken with replacement, the same for all runs. The seeds' part of a draw is a
    t-variate of each variant's own, with their deviations' unbiased variance: with few seeds, resampling them would
    make intervals too short.

    Args:
        runs: variant -> gains of each seed, of the same users and windows.
        draws: resamples.
    """
    first = next(iter(runs.values()))[0]
    windows = first["window"].to_numpy()
    numbers = np.unique(windows)
    users, *of_seeds = np.random.default_rng(0).spawn(1 + len(runs))
    weights = np.concatenate(
        [users.multinomial(n := int((windows == w).sum()), np.full(n, 1 / n), size=draws) for w in numbers], axis=1
    ).astype(np.float64)
    found, observed = {}, {}
    for (name, seeds), rng in zip(runs.items(), of_seeds, strict=True):
        each = []
        for frame in seeds:
            assert frame.select("window", "user", "count").equals(first.select("window", "user", "count")), name
            each.append(_mean_of_windows(np.vstack([weights, np.ones(len(windows))]), windows, frame))
        observed[name] = np.stack([one[-1] for one in each])
        apart = observed[name] - observed[name].mean(axis=0)
        found[name] = np.mean([one[:-1] for one in each], axis=0) + _of_training(len(seeds), draws, rng) @ apart
    return found, observed


def _of_training(seeds: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draw seed"]:
    """Weights of the seeds' deviations, whose sum is t with `seeds` - 1 degrees of freedom at the scale of a mean's."""
    if seeds == 1:
        return np.zeros((draws, 1))
    return rng.normal(size=(draws, seeds)) / np.sqrt(seeds * rng.chisquare(seeds - 1, size=(draws, 1)))


def _mean_of_windows(weights: Float[np.ndarray, "draw unit"], windows, frame: pl.DataFrame):
    """Mean over windows of the weighted mean over their targets."""
    sums, count = frame.select(METRICS).to_numpy(), frame["count"].to_numpy()
    parts = []
    for window in np.unique(windows):
        own = windows == window
        parts.append(weights[:, own] @ sums[own] / (weights[:, own] @ count[own])[:, None])
    return np.mean(parts, axis=0)


def main() -> None:
    """Runs, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(v or "xsmoe" for v in VARIANTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/streaming"))
    parser.add_argument("--time", action="store_true", help="time epochs before and after growth instead")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config, for all runs")
    given = parser.parse_args()
    settings = {"stream.windows": given.windows}
    settings |= {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    if given.time:
        found = growth_time(given.out / "time", settings)
        print(f"seconds of an epoch, medians of turns: {found['seconds']}; ratio {found['ratio']:.3f}")
        write(found, given.out / "time.json")
        return
    seeds = [int(seed) for seed in given.seeds.split(",")]
    gains, contents = {}, {}
    for name in given.variants.split(","):
        places = [given.out / f"{name}_{given.windows}_{seed}" for seed in seeds]
        variant = "" if name == "xsmoe" else name
        contents[name] = [run(variant, seed, place, settings) for seed, place in zip(seeds, places, strict=True)]
        gains[name] = [user_gains(place) for place in places]
    draws, observed = resampled(gains)
    report(contents, draws, observed, given.out / "streaming.json")


def report(contents, draws, observed, path: Path) -> None:
    """The table, and the figures behind it."""
    from mmrec_jax.streaming.reports import forgetting

    first = next(iter(contents))
    grid = Table(title="means over windows, percent (95% over users and seeds)")
    others = ("HR@10 by user", "forgetting", "train s", "last/first", "compiled")
    for column in ("variant", *METRICS, *(f"{m} to {first}" for m in METRICS), *others):
        grid.add_column(column, justify="left" if column == "variant" else "right")
    figures: dict[str, Any] = {}
    for name, runs in contents.items():
        means, spans = observed[name].mean(axis=0), np.quantile(draws[name], [0.025, 0.975], axis=0)
        apart = np.quantile(draws[name] - draws[first], [0.025, 0.975], axis=0)
        change = means - observed[first].mean(axis=0)
        seconds = float(np.mean([one["summary"]["training_seconds"] for one in runs]))
        ratios = [one["summary"]["time_ratio"] for one in runs if one["summary"]["time_ratio"] is not None]
        compiled = [one["summary"]["recompilations"] for one in runs]
        by_user = [one["summary"]["by_user"]["HR@10"] for one in runs if "by_user" in one["summary"]]
        # Anew: a run of before may have told it by another definition.
        forgot = [lost["mean"] for one in runs if (lost := forgetting(one["windows"], METRICS[1]))]
        grid.add_row(
            name,
            *(f"{100 * m:.2f} ({100 * low:.2f}-{100 * high:.2f})" for m, low, high in zip(means, *spans, strict=True)),
            *(
                "" if name == first else f"{100 * m:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
                for m, low, high in zip(change, *apart, strict=True)
            ),
            f"{100 * np.mean(by_user):.2f}" if by_user else "",
            f"{100 * np.mean(forgot):.2f}" if forgot else "",
            f"{seconds:.0f}",
            f"{np.mean(ratios):.2f}" if ratios else "",
            str(max(compiled)),
        )
        figures[name] = {
            "metrics": {
                metric: {
                    "mean": float(means[at]),
                    "interval": spans[:, at].tolist(),
                    "seeds": observed[name][:, at].tolist(),
                    "difference": float(change[at]),
                    "difference_interval": apart[:, at].tolist(),
                }
                for at, metric in enumerate(METRICS)
            },
            "training_seconds": seconds,
            "time_ratios": ratios,
            "recompilations": compiled,
            "by_user": by_user,
            "forgetting": forgot,
            "peak_memory_bytes": [one["summary"]["peak_memory_bytes"] for one in runs],
        }
    output().print(grid)
    write(figures, path)


if __name__ == "__main__":
    main()
