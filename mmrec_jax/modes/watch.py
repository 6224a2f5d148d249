"""`--mode=stream --watch=DIR`: a model that is kept alive by the windows that arrive in a directory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_jax import experiment
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import Run
from mmrec_jax.modes.stream import stream_description, write_reports
from mmrec_jax.modes.versions import publish

if TYPE_CHECKING:
    from mmrec_jax.streaming.learner import Learner
    from mmrec_jax.streaming.versions import Change
    from mmrec_jax.types import Params


def watch(run: Run, directory: str) -> dict[str, Any]:
    """Takes in the windows of a directory as they arrive, and trains, tests and puts in service.

    Returns:
        The content of `stream.json`, once no window has come for `service.idle_seconds`.

    Raises:
        BadWindow: a window cannot be used, and `service.on_bad_window` is `stop`.
        ConfigError: the config can take in no windows.
    """
    from mmrec_jax.streaming import journal, stores
    from mmrec_jax.streaming.intake import Intake
    from mmrec_jax.streaming.service import Service
    from mmrec_jax.training.lock import only_training_in

    config, workdir = run.config, run.workdir
    if config.methods:
        raise ConfigError("methods is not read by --mode=stream, which trains on stored states from the first on.")
    if config.model.add_ids:
        raise ConfigError(
            "model.add_ids: a service that takes windows in knows nothing of the ids that will come: switch it off."
        )
    store = config.store or str(workdir / stores.CURRENT)
    intake = Intake(
        config.data,
        config.cached,
        config.extraction,
        store,
        config.service.on_bad_window == "skip",
        None if config.store else workdir / journal.FOLDER / journal.ENCODING,
    )

    def learner(fingerprint: str, capacity: int) -> Learner:
        return _learner(run, store, fingerprint, capacity)

    def put_in_service(
        version: int, params: Params, reason: str, documents: Mapping[str, Any], after: int
    ) -> Change | None:
        return publish(config, workdir, version, params, reason, documents, after)

    service = Service(
        config,
        workdir,
        Path(directory),
        intake,
        learner,
        put_in_service,
        lambda reports: write_reports(run, reports, brief=True, drawn=drawn_after(len(reports))),
        lambda line: run.console.print(line, soft_wrap=True),
    )
    run.console.print(f"Watching {directory}; working in {workdir}", soft_wrap=True)
    with only_training_in(workdir, "stream"):
        if not config.store:
            stores.begin(workdir)
        try:
            reports = service.run()
        except BaseException:
            with contextlib.suppress(OSError):  # as a full disk, of which the error itself tells more
                if service.reports:
                    write_reports(run, service.reports, brief=True)
            raise
        return write_reports(run, reports) if reports else {}


def drawn_after(windows: int) -> bool:
    """Whether reports are drawn anew after so many windows, which takes the longer the more there are: after each of
    the first 100, each tenth of the first 1,000, and so on."""
    return windows % 10 ** max(len(str(windows)) - 2, 0) == 0


def _learner(run: Run, store: str, fingerprint: str, capacity: int) -> Learner:
    """The learner of a stream whose store grows."""
    from mmrec_jax.store import HiddenStateStore
    from mmrec_jax.streaming.learner import Learner

    config = run.config
    wanted = {name: part.layers for name, part in config.cached.items()}
    made = HiddenStateStore.open(store)
    made.check(config.cached)
    description = stream_description(config, experiment.description(config, fingerprint, made))
    # Opened anew each time: items have come since.
    return Learner(
        config, run.workdir, lambda ids: HiddenStateStore.open(store).table(wanted, ids), capacity, description
    )
