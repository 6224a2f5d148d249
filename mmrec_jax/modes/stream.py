"""`--mode=stream`: cuts a log into windows and lives through them: trains on each, tests on the next, grows between."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mmrec_jax import experiment
from mmrec_jax.config import RunConfig, to_json
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import Run
from mmrec_jax.modes.workdir import is_trained, write_whole


def stream(run: Run) -> dict[str, Any]:
    """Runs a log's stream in the run's workdir, or goes on with it; writes `stream.json`, `stream.csv`, `quality.png`,
    `experts.png` and each tested user's rank in `ranks/`.

    Returns:
        The content of `stream.json`.

    Raises:
        TrainingError: another stream is under way in the workdir.
    """
    from mmrec_jax.training.lock import only_training_in

    with only_training_in(run.workdir, "stream"):
        return _stream(run)


def _stream(run: Run) -> dict[str, Any]:
    from mmrec_jax.streaming.protocol import StreamRun

    windows, catalogue, fingerprint = log_windows(run.config)
    data = run.config.data
    if max(data.user_core, data.item_core) > 1:
        run.console.print(
            f"Note: data.user_core={data.user_core} and data.item_core={data.item_core} count the events of the whole "
            "log, so that what a window holds depends on later ones. Set both to 0: stream.user_core and "
            "stream.item_core count within each window."
        )
    run.console.print(
        f"{len(windows)} windows of {sum(map(len, windows)):,} events, {len(catalogue):,} items; "
        f"training in {run.workdir}"
    )
    learner = stream_learner(run, catalogue, fingerprint)
    learner.foresee(windows)
    living = StreamRun(learner, say=run.console.print)
    try:
        reports = living.run(windows, last=len(windows))
    finally:
        living.close()
    return write_reports(run, reports)


def log_windows(config: RunConfig):
    """Windows of the configured log, the catalogue of their items, and a fingerprint of both.

    Raises:
        DataError: the source cannot be used as it is, or a window is left empty.
        ConfigError: it has no times.
    """
    import polars as pl

    from mmrec_jax.data import fingerprint
    from mmrec_jax.data.layouts import locate
    from mmrec_jax.data.log import core
    from mmrec_jax.data.readers import read_source
    from mmrec_jax.streaming.windows import cut

    source = locate(config.data)
    read = read_source(source, config.data)
    log = read.log
    if max(config.data.user_core, config.data.item_core) > 1:
        log = log.take(core(log, config.data.user_core, config.data.item_core)[0])
    windows = cut(log, read.catalogue["item"], config.stream)
    seen = pl.concat([window.events["item"] for window in windows]).unique()
    catalogue = read.catalogue.filter(pl.col("item").is_in(seen.implode()))
    return windows, catalogue, fingerprint.digest(fingerprint.contents(config.data, source.files))


def stream_learner(run: Run, catalogue, data: str):
    """The learner of a run over a catalogue, whose missing states are extracted.

    Args:
        run: the run.
        catalogue: records of the items that are known beforehand, the id in column `item`.
        data: fingerprint of what is learned from.

    Raises:
        ConfigError: `model.add_ids` with fewer rows than items.
    """
    from mmrec_jax.streaming.learner import Learner

    config = run.config
    capacity = config.stream.item_capacity or len(catalogue)
    if config.model.add_ids and capacity < len(catalogue):
        raise ConfigError(
            f"stream.item_capacity={capacity}: model.add_ids needs a row for each of the {len(catalogue)} items of the "
            "log from the first window on: set it to 0."
        )
    store = None
    if config.cached:
        store = experiment.ensure_states(config, catalogue, run.workdir, trained=is_trained(run.workdir))
    wanted = {name: part.layers for name, part in config.cached.items()}
    description = stream_description(config, experiment.description(config, data, store))
    states = None if store is None else (lambda ids: store.table(wanted, ids))
    return Learner(config, run.workdir, states, capacity, description)


def stream_description(config: RunConfig, description: dict[str, Any]) -> dict[str, Any]:
    """What a stream's checkpoints are of: the settings of the stream and of the training are among it."""
    training = {
        key: value
        for key, value in dataclasses.asdict(config.training).items()
        if key not in ("keep", "log_every", "checkpoint_every_steps", "compilation_cache_dir", "tensorboard",
                       "learning_curve", "progress")
    }  # fmt: skip
    return description | {"stream": to_json(config)["stream"], "training": json.loads(json.dumps(training))}


def write_reports(run: Run, reports, brief: bool = False, drawn: bool = True) -> dict[str, Any]:
    """Writes the reports to the workdir and, unless told otherwise, draws them; prints the table unless `brief`."""
    from mmrec_jax.streaming import reports as shown

    metrics = [f"{name}@{run.config.evaluation.ks[0]}" for name in ("HR", "NDCG")]
    found = shown.summary(reports, metrics[1])
    content = {
        "name": run.config.name,
        "learner": run.config.stream.learner,
        "summary": found,
        "windows": list(reports),
        "config": to_json(run.config),
    }
    workdir: Path = run.workdir
    write_whole(workdir / "stream.json", json.dumps(content, indent=2))
    write_whole(workdir / "stream.csv", shown.as_csv(reports, metrics[1]))
    if drawn:
        shown.plot_quality(reports, workdir / "quality.png", metrics)
        shown.plot_experts(reports, workdir / "experts.png")
    if brief:
        return content
    run.console.print(shown.table(reports, f"{run.config.name}: tested on the next window, percent"))
    lost = f"; forgetting of {metrics[1]} {100 * found['forgetting']['mean']:.2f} points" if found["forgetting"] else ""
    run.console.print(
        f"{found['windows']} windows tested, {found['seconds']:.0f} s, {found['recompilations']} programs compiled "
        f"after the first window{lost}"
    )
    run.console.print(f"Written: {workdir}/stream.json, stream.csv, quality.png, experts.png", soft_wrap=True)
    return content
