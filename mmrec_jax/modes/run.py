"""A run: its config, its directory, and the parts that are made once and shared by the modes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import config_dict
from rich.console import Console

from mmrec_jax import experiment
from mmrec_jax.config import RunConfig, from_json, resolve, to_json
from mmrec_jax.errors import ConfigError

if TYPE_CHECKING:
    from mmrec_jax.data.prepared import PreparedData

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Run:
    """A config and a workdir.

    Attributes:
        config: what to do.
        workdir: takes everything the run makes.
        console: where tables and messages go.
        shared_data: prepared data of another run, for its baselines.
    """

    config: RunConfig
    workdir: Path
    console: Console
    shared_data: PreparedData | None = None

    @functools.cached_property
    def data(self) -> PreparedData:
        """The prepared data, made on the first use."""
        if self.shared_data is not None:
            return self.shared_data
        prepared = experiment.prepare_data(self.config, self.workdir)
        self.console.print(prepared.describe())
        return prepared

    @functools.cached_property
    def store(self):
        """The hidden-state store, filled on the first use; None for systems by id."""
        return (
            experiment.ensure_states(self.config, self.data, self.workdir) if self.config.modalities else None
        )

    @functools.cached_property
    def table(self):
        """The catalogue's states in memory; None for systems by id."""
        return experiment.load_table(self.config, self.data, self.store) if self.store else None

    @functools.cached_property
    def frozen(self):
        """What the task reads and never trains."""
        return experiment.frozen_inputs(self.table, self.data)

    @functools.cached_property
    def task(self):
        """The task, with its validation."""
        task = experiment.build_task(self.config, self.table, self.data.num_items + 1)
        return replace(task, validator=self._validator())

    def _validator(self):
        from mmrec_jax.evaluation import evaluate
        from mmrec_jax.training.scorer import SequentialScorer

        ks = self.config.evaluation.ks
        settings = replace(self.config.evaluation, lists=False, slices=False, bootstrap=0)
        examples = self.data.examples("valid")

        def validate(task, params, frozen):
            result = evaluate(
                SequentialScorer(task, params, frozen),
                examples,
                self.data.popularity,
                length=self.config.model.length,
                config=settings,
            )
            return {
                f"{name}@{k}": result.metrics[f"{name}@{k}"] for name in ("HR", "NDCG", "MRR") for k in ks
            }

        return validate

    def description(self) -> dict:
        """What this run's checkpoints are of."""
        return experiment.description(self.config, self.data, self.store)

    def test(self, params):
        """The evaluation of parameters on the test split, and the scorer that made it."""
        import numpy as np

        from mmrec_jax.evaluation import evaluate
        from mmrec_jax.training.scorer import SequentialScorer

        scorer = SequentialScorer(self.task, params, self.frozen)
        present = (
            {name: np.asarray(mask) for name, mask in self.table.present.items()} if self.table else None
        )
        return scorer, evaluate(
            scorer,
            self.data.examples("test"),
            self.data.popularity,
            length=self.config.model.length,
            config=self.config.evaluation,
            present=present,
        )


def open_run(config: config_dict.ConfigDict | None, workdir: str | None) -> Run:
    """The run of a config file, or of a workdir that has one already.

    Raises:
        ConfigError: neither is given, or the config cannot work.
    """
    if config is None:
        if workdir is None or not (Path(workdir) / CONFIG_FILE).exists():
            raise ConfigError(
                "Name a config: --config=configs/crossan.py, or the --workdir of an earlier run."
            )
        settings = from_json(json.loads((Path(workdir) / CONFIG_FILE).read_text()))
    else:
        settings = resolve(config)
    directory = Path(workdir) if workdir else Path("runs") / settings.name
    directory.mkdir(parents=True, exist_ok=True)
    run = Run(settings, directory, Console())
    (directory / CONFIG_FILE).write_text(json.dumps(to_json(settings), indent=2))
    return run
