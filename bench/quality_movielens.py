"""Quality on the embedded MovieLens data: text, image and both by each fusion, means of 5 seeds with intervals.

    python bench/quality_movielens.py

5-core, leave-one-out, full ranking, histories of 50. Two questions: are both modalities at least as good as the
better one alone, and is MOMEF at least as good as concat and sum? The intervals (95%) cover users and seeds.
Stopped and started again, it goes on where it was. `--only text,momef` takes some of the variants, `--store DIR`
another hidden-state store (the sample's own is int8).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict
from quality_runs import (
    METRICS,
    arguments,
    change,
    load_config,
    output,
    ranks,
    settings,
    summary,
    trained,
    write,
)
from rich.table import Table

TEXT, IMAGE = "overview", "poster"
SINGLE = {"text": TEXT, "image": IMAGE}
FUSED = ("momef", "concat", "sum")
VARIANTS = (*SINGLE, *FUSED, "id")


def variant_config(variant: str, values: dict[str, Any]) -> ConfigDict:
    """The config of a variant: `text`, `image`, a fusion of both, or `id` (the ID-only SASRec)."""
    config = load_config("sasrec" if variant == "id" else "crossan", values)
    if variant in SINGLE:
        for name in set(config.modalities) - {SINGLE[variant]}:
            del config.modalities[name]
    elif variant in FUSED:
        config.fusion.kind = variant
        if variant != "momef":
            config.fusion.expert = "mlp"  # the default: these have no experts
    return config


def main() -> None:
    """Trains what is not trained yet, prints the tables, writes `quality_movielens.json`."""
    parser = arguments(__doc__ or "", seeds=5, workdir="quality_movielens")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[*SINGLE, *FUSED],
        help=f"variants, of {', '.join(VARIANTS)}",
    )
    parser.add_argument("--store", default="", help="a store with overview and poster; default: the sample's")
    options = parser.parse_args()
    if unknown := set(options.only) - set(VARIANTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown; choose from {', '.join(VARIANTS)}")

    values = settings(options.set)
    if options.store:
        values["store"] = options.store
    every = {}
    for variant in options.only:
        found = []
        for seed in options.seeds:
            workdir = options.workdir / f"{variant}_{seed}"
            own = {"store": ""} if variant == "id" else {}
            trained(variant_config(variant, values | own | {"training.seed": seed}), workdir)
            found.append(ranks(workdir))
        every[variant] = found

    results = {variant: summary(found) for variant, found in every.items()}
    console = output()
    table = Table(title=f"movielens-small, test, percent, mean of {len(options.seeds)} seeds [95% interval]")
    for heading in ("", *METRICS, *(f"{metric} of the seeds" for metric in METRICS)):
        table.add_column(heading, justify="right")
    for variant, result in results.items():
        table.add_row(
            variant,
            *[_cell(result[metric]["mean"], result[metric]["interval"]) for metric in METRICS],
            *[" ".join(f"{100 * value:.2f}" for value in result[metric]["seeds"]) for metric in METRICS],
        )
    console.print(table)

    differences: dict[str, Any] = {}
    table = Table(title="differences, points [95% interval]")
    for heading in ("", *METRICS):
        table.add_column(heading, justify="right")
    for first, second in _questions(results):
        name = f"{first} minus {second}"
        differences[name] = change(every[first], every[second])
        table.add_row(name, *[_cell(found["mean"], found["interval"]) for found in differences[name].values()])
    if differences:
        console.print(table)
    content = {"seeds": options.seeds, "variants": results, "differences": differences}
    write(content, options.workdir / "quality_movielens.json")


def _questions(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs to compare, of what was measured: MOMEF with the better single modality and with the other fusions."""
    if "momef" not in results:
        return []
    single = sorted((name for name in SINGLE if name in results), key=lambda name: -results[name]["NDCG@10"]["mean"])
    others = [*single[:1], *(name for name in (*FUSED[1:], "id") if name in results)]
    return [("momef", other) for other in others]


def _cell(mean: float, span: tuple[float, float]) -> str:
    return f"{100 * mean:.2f} [{100 * span[0]:.2f}, {100 * span[1]:.2f}]"


if __name__ == "__main__":
    main()
