"""`--mode=compare`: every method with every seed, each in a process of its own, and one table of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mmrec_jax.comparison import tables
from mmrec_jax.comparison.config import Comparison
from mmrec_jax.comparison.jobs import Failure, Job, run_jobs
from mmrec_jax.comparison.outcomes import Outcome, outcomes, results_of
from mmrec_jax.comparison.plan import Trial, trials, variants
from mmrec_jax.comparison.plot import plot
from mmrec_jax.comparison.sharing import SharedData, check_backbones, check_data, extractions, share_places
from mmrec_jax.config import RunConfig
from mmrec_jax.errors import ConfigError, TrainingError
from mmrec_jax.evaluation.topk import check_k
from mmrec_jax.modes.run import terminal
from mmrec_jax.modes.workdir import keep_config
from mmrec_jax.training.lock import only_training_in

REPORT, LOG = "comparison", "log.txt"


def compare(comparison: Comparison, workdir: Path, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Trains what is not trained yet; writes `comparison.md`, `.json`, `.csv` and `.png` to the workdir.

    All configs are parsed and the data is prepared before the first run begins. A second call goes on where the first
    was stopped: finished runs are only read.

    Args:
        comparison: what to compare.
        workdir: takes everything: `runs/METHOD/seed_N`, and what the runs share.
        folder: that config files are relative to.
        console: where to write.

    Returns:
        The content of `comparison.json`.

    Raises:
        ConfigError: a config that cannot be used; all of them are named.
        EvaluationError: the methods are not evaluated on the same users, items and candidates.
        TrainingError: runs failed; the table of the others is written before. Or another comparison is under way in
            the workdir.
    """
    console = console or terminal()
    with only_training_in(workdir, "comparison"):
        return _compared(comparison, workdir, folder, console)


def _compared(comparison: Comparison, workdir: Path, folder: Path, console: Console) -> dict[str, Any]:
    rows = share_places(variants(comparison, folder), workdir)
    planned = trials(rows, comparison.seeds, workdir)
    console.print(f"{len(planned)} runs: {len(rows)} {'stages' if comparison.plan == 'staged' else 'methods'}, seeds "
                  f"{', '.join(map(str, comparison.seeds))}; in {workdir}")  # fmt: skip
    owners = _owners(planned)
    for trial in planned:
        if trial.title != owners[trial.workdir]:
            console.print(f"{trial.title}: the same as {owners[trial.workdir]}, trained once", soft_wrap=True)
    shared = check_data(rows, console)
    try:
        check_k(max(comparison.ks), len(shared.held_out.candidates))
    except ConfigError as error:
        raise ConfigError(f"ks: {error}") from error
    finished = _finished(planned, shared)
    missing = extractions(rows, shared)
    check_backbones({trial.variant.name: trial.config for trial in planned if trial.title not in finished}, missing)
    failed = _run(comparison, planned, finished, missing, workdir, console)
    finished = _finished(planned, shared)
    for trial in planned:
        if (owner := owners[trial.workdir]) in failed and trial.title not in failed:
            failed[trial.title] = Failure(f"the same as {owner}, which failed", failed[owner].log)
        if trial.title not in finished and trial.title not in failed:
            failed[trial.title] = Failure("it left no results of this config and data", trial.workdir / LOG)
    found = outcomes(comparison, planned, finished, shared.held_out)
    content = _write(comparison, found, shared, failed, workdir, console)
    if failed:
        rest = "the tables are of the others" if found else "there is nothing to compare"
        raise TrainingError(
            f"{len(failed)} jobs failed; {rest}.\n  "
            + "\n  ".join(_in_words(title, failure) for title, failure in failed.items())
            + "\nThe same command tries these again, and repeats no other."
        )
    return content


def _owners(planned: Sequence[Trial]) -> dict[Path, str]:
    """Workdir -> title of the trial that is trained there, for those that are the same training."""
    return {trial.workdir: trial.title for trial in reversed(planned)}


def _finished(planned: Sequence[Trial], shared: SharedData) -> dict[str, dict[str, Any]]:
    """Title -> results of every trial that has them."""
    found = {trial.title: results_of(trial, shared.fingerprints[trial.variant.name]) for trial in planned}
    return {title: results for title, results in found.items() if results is not None}


def _run(
    comparison: Comparison,
    planned: Sequence[Trial],
    finished: Mapping[str, dict[str, Any]],
    missing: Sequence[RunConfig],
    workdir: Path,
    console: Console,
) -> dict[str, Failure]:
    """Extracts the hidden states that are missing, then trains; title -> failure of what failed."""
    owners = _owners(planned)
    todo = [trial for trial in planned if trial.title not in finished and trial.title == owners[trial.workdir]]
    if finished:
        console.print(f"{len(finished)} of them were finished before.")
    needed = {(trial.config.store, name) for trial in todo for name in trial.config.cached}
    jobs: list[Job] = []
    extracting: dict[tuple[str, str], str] = {}
    for number, config in enumerate(missing):
        made = [(config.store, name) for name in config.modalities]
        if needed.isdisjoint(made):
            continue
        place = workdir / "extraction" / str(number)
        keep_config(config, place)
        title = f"hidden states of {', '.join(config.modalities)} in {config.store}"
        extracting |= dict.fromkeys(made, title)
        jobs.append(Job(title, "extraction", (f"--workdir={place}", "--mode=extract"), place / LOG))
    for trial in todo:
        (trial.workdir / "results.json").unlink(missing_ok=True)  # of what was run there before
        keep_config(trial.config, trial.workdir)
        before = owners[trial.after.workdir] if trial.after else ""
        read = {extracting.get((trial.config.store, name), "") for name in trial.config.cached}
        after = {before, *read} - {"", *finished}
        flags = (f"--workdir={trial.workdir}",)
        jobs.append(Job(trial.title, trial.variant.name, flags, trial.workdir / LOG, tuple(sorted(after))))
    known = {trial.variant.name: finished[trial.title]["training"]["seconds"]
             for trial in planned if trial.title in finished}  # fmt: skip
    return run_jobs(jobs, comparison.jobs, console, known)


def _write(
    comparison: Comparison,
    rows: Sequence[Outcome],
    shared: SharedData,
    failed: Mapping[str, Failure],
    workdir: Path,
    console: Console,
) -> dict[str, Any]:
    if rows:
        for table in tables.tables(comparison, rows):
            console.print(table)
        for line in tables.notes(comparison, shared.held_out):
            console.print(line)
    picture, records = (workdir / f"{REPORT}{ending}" for ending in (".png", ".csv"))
    for path in (picture, records):
        path.unlink(missing_ok=True)  # of a comparison before
    content = tables.content(comparison, rows, shared.held_out, failed)
    (workdir / f"{REPORT}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    page = tables.document(comparison, rows, shared.held_out, failed)
    (workdir / f"{REPORT}.md").write_text(page, encoding="utf-8")
    written = [".md", ".json"]
    if rows:
        records.write_text(tables.as_csv(comparison, rows), encoding="utf-8")
        written.append(".csv")
        if _drawn(picture, rows, f"NDCG@{comparison.ks[0]}", console):
            with (workdir / f"{REPORT}.md").open("a", encoding="utf-8") as file:
                file.write(f"\n![accuracy against cost]({picture.name})\n")
            written.append(".png")
    console.print(f"Written: {workdir / REPORT}{', '.join(written)}", soft_wrap=True)
    return content


def _drawn(path: Path, rows: Sequence[Outcome], metric: str, console: Console) -> bool:
    """Draws the plot; one that cannot be drawn is told, and ends nothing: all figures are written without it."""
    try:
        plot(path, rows, metric)
    except Exception as error:
        path.unlink(missing_ok=True)
        console.print(f"Warning: no plot, {path} could not be drawn: {type(error).__name__}: {error}", soft_wrap=True)
        return False
    return True


def _in_words(title: str, failure: Failure) -> str:
    log = f" (log: {failure.log})" if failure.log else ""
    return f"{title}{log}:\n    " + failure.error.replace("\n", "\n    ")
