"""`--mode=ab`: two finished runs on the same users, offline: whom would which of them have served better?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32
from rich.console import Console
from rich.table import Table

from mmrec_jax.comparison.sharing import settings_apart
from mmrec_jax.errors import EvaluationError
from mmrec_jax.evaluation import slices, top_items
from mmrec_jax.evaluation.config import EvaluationConfig
from mmrec_jax.evaluation.pairing import held_out, unpaired
from mmrec_jax.evaluation.report import markdown_rows
from mmrec_jax.evaluation.significance import Difference, differences
from mmrec_jax.modes.run import Run, open_run, terminal

METRICS = ("HR", "NDCG", "MRR")
LISTED = 10
REPORT = "ab"


@dataclass(frozen=True)
class Side:
    """What a run says about every user, users in the order of their ids."""

    ranks: Int32[np.ndarray, " user"]
    lists: np.ndarray  # ids of the first items, "user k"; "" where a list is shorter
    metrics: dict[str, float]


def ab(first: Path, second: Path, workdir: Path, console: Console | None = None) -> dict[str, Any]:
    """Compares the best checkpoints of two workdirs; writes `ab.md` and `ab.json` to `workdir`.

    Both are evaluated as the first run's config says, on the first run's test split; its training interactions say
    which items are new, tail, mid and head.

    Returns:
        The content of `ab.json`.

    Raises:
        CheckpointError: a workdir without a usable checkpoint.
        EvaluationError: the two have other users, held-out items or candidates, or leave other items out of a user's
            ranking.
    """
    console = console or terminal()
    run_a, run_b = open_run(None, first), open_run(None, second)
    evaluation = run_a.config.evaluation
    run_b = replace(run_b, config=replace(run_b.config, evaluation=evaluation))
    run_a.check()
    if texts := unpaired(held_out(run_a.data, evaluation), held_out(run_b.data, evaluation)):
        texts += settings_apart(run_a.config, run_b.config)
        raise EvaluationError(
            f"{first} and {second} cannot be compared user by user:\n  "
            + "\n  ".join(texts)
            + "\nTrain one of them again with the `data` of the other."
        )
    groups = _groups(run_a)
    a, b = _side(run_a), _side(run_b)
    content = {
        "a": {"workdir": str(first), "name": run_a.config.name, "metrics": a.metrics},
        "b": {"workdir": str(second), "name": run_b.config.name, "metrics": b.metrics},
        "users": len(a.ranks),
        "items": run_a.data.num_items,
        "differences": _asdicts(_paired(a.ranks, b.ranks, evaluation)),
        "slices": {
            title: {
                name: {"users": int(chosen.sum()), "differences": _asdicts(found)}
                for name, chosen in parts.items()
                if (found := _paired(a.ranks[chosen], b.ranks[chosen], evaluation))
            }
            for title, parts in groups.items()
        },
        "wins": wins(a.ranks, b.ranks, min(LISTED, run_a.data.num_items)),
        "overlap": overlap(a.lists, b.lists),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    for title, headings, rows in _tables(content, evaluation):
        grid = Table(title=title)
        for number, heading in enumerate(headings):
            grid.add_column(heading, justify="right" if number else "left")
        for row in rows:
            grid.add_row(*row)
        console.print(grid)
    (workdir / f"{REPORT}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    (workdir / f"{REPORT}.md").write_text(_document(content, evaluation), encoding="utf-8")
    console.print(f"Written: {workdir / REPORT}.md, .json", soft_wrap=True)
    return content


def wins(first: Int[np.ndarray, " user"], second: Int[np.ndarray, " user"], k: int) -> dict[str, float]:
    """Shares of users: whose held-out item the first or the second ranks higher, and who finds it in a list of k."""
    hit, other = first <= k, second <= k
    return {
        "a ranks higher": float(np.mean(first < second)),
        "b ranks higher": float(np.mean(first > second)),
        "equal": float(np.mean(first == second)),
        f"only a hits@{k}": float(np.mean(hit & ~other)),
        f"only b hits@{k}": float(np.mean(other & ~hit)),
        f"both hit@{k}": float(np.mean(hit & other)),
    }


def overlap(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """How much two lists of items of each user have in common; "" fills those that are short.

    Returns:
        `shared`: mean share of a list's items that the other has too (of the longer one's); `same_first`: share of
        users whose first items are equal; `same_items`: whose lists hold the same.
    """
    common = ((first[:, :, None] == second[:, None, :]) & (first != "")[:, :, None]).any(axis=2).sum(axis=1)
    longer = np.maximum((first != "").sum(axis=1), (second != "").sum(axis=1))
    return {
        "shared": float(np.mean(common / np.maximum(longer, 1))),
        "same_first": float(np.mean(first[:, 0] == second[:, 0])),
        "same_items": float(np.mean(common == longer)),
    }


def _side(run: Run) -> Side:
    config, length = run.config.evaluation, run.config.model.length
    scorer = run.scorer(run.parameters())
    result = run.evaluated(scorer)
    histories = run.data.examples("test").histories
    rows, _ = top_items(
        lambda users: scorer.user_vectors(histories.last(users, length)),
        len(histories),
        scorer.item_vectors(),
        min(LISTED, run.data.num_items),
        seen=histories if config.mask_history else None,
        user_block=config.user_block,
    )
    order = np.argsort(run.data.user_ids[result.users])
    return Side(result.ranks[order], run.data.item_ids[rows][order], result.metrics)


def _groups(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """What users are grouped by -> group -> mask, users in the order of their ids; groups that nobody is in are left
    out."""
    examples = run.data.examples("test")
    order = np.argsort(run.data.user_ids[examples.users])
    slicings = [
        slices.by_popularity(run.data.popularity, examples.targets),
        slices.by_history_length(examples.histories.lengths, run.config.evaluation.length_edges),
    ]
    return {
        part.title: {
            name: mask[order] for number, name in enumerate(part.names) if (mask := part.groups == number).any()
        }
        for part in slicings
    }


def _paired(first: np.ndarray, second: np.ndarray, config: EvaluationConfig) -> dict[str, Difference]:
    found = differences(
        first,
        second,
        config.ks,
        resamples=config.bootstrap or EvaluationConfig.bootstrap,
        confidence=config.confidence,
        seed=config.seed,
    )
    return {name: value for name, value in found.items() if name.split("@")[0] in METRICS}


def _asdicts(found: Mapping[str, Difference]) -> dict[str, dict[str, float]]:
    return {name: asdict(value) for name, value in found.items()}


def _tables(content: Mapping[str, Any], config: EvaluationConfig) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and cells of every table."""
    a, b = content["a"], content["b"]
    metrics = [
        [name, f"{100 * a['metrics'][name]:.2f}", f"{100 * b['metrics'][name]:.2f}", *_cells(value)]
        for name, value in content["differences"].items()
    ]
    lists = [name for name in a["metrics"] if name.startswith(("Coverage@", "Popularity@"))]
    for name in lists:
        unit = 100 if name.startswith("Coverage") else 1
        metrics.append([name, *(f"{unit * side['metrics'][name]:.2f}" for side in (a, b)), "", ""])
    shown = f"NDCG@{config.ks[0]}"
    groups = [
        [f"{title}: {name}", f"{part['users']:,}", *_cells(part["differences"][shown])]
        for title, parts in content["slices"].items()
        for name, part in parts.items()
    ]
    shares = content["wins"] | {
        f"the lists of {LISTED}: items in common": content["overlap"]["shared"],
        "same first item": content["overlap"]["same_first"],
        "same items": content["overlap"]["same_items"],
    }
    percent = [[name, f"{100 * value:.1f}"] for name, value in shares.items()]
    return [
        (f"A {a['name']} minus B {b['name']}, test split, percent", ["metric", "A", "B", "A minus B", "p"], metrics),
        (f"{shown} by slice, points", ["slice", "users", "A minus B", "p"], groups),
        ("users", ["", "percent"], percent),
    ]


def _cells(value: Mapping[str, float]) -> list[str]:
    span = f"{100 * value['mean']:+.2f} ({100 * value['low']:+.2f} to {100 * value['high']:+.2f})"
    return [span, f"{value['p_value']:.3f}"]


def _document(content: Mapping[str, Any], config: EvaluationConfig) -> str:
    a, b = content["a"], content["b"]
    parts = [
        "# Offline A/B",
        f"A: {a['name']} ({a['workdir']}). B: {b['name']} ({b['workdir']}).",
        f"{content['users']:,} users, {content['items']:,} items, full ranking; in brackets "
        f"{100 * config.confidence:g}% over users, paired. p is of one difference, not adjusted for their number.",
    ]
    for title, headings, rows in _tables(content, config):
        parts += [f"## {title}", markdown_rows(headings, rows)]
    return "\n\n".join(parts)
