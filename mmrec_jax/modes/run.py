"""A run: its config, its directory, and the parts that are made once and shared by the modes."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Bool
from ml_collections import config_dict
from rich.console import Console

from mmrec_jax import experiment
from mmrec_jax.comparison.config import is_comparison
from mmrec_jax.config import VALIDATED, RunConfig, resolve
from mmrec_jax.errors import CheckpointError, ConfigError, UserError
from mmrec_jax.files import check_local
from mmrec_jax.modes.versions import in_service
from mmrec_jax.modes.workdir import CONFIG_FILE, check_same_run, is_trained, keep_config, read_config
from mmrec_jax.systems import registry
from mmrec_jax.training.processes import first_alone, writes

if TYPE_CHECKING:
    from mmrec_jax.data.prepared import Examples, PreparedData
    from mmrec_jax.evaluation.evaluate import EvaluationResult
    from mmrec_jax.evaluation.scorer import Scorer
    from mmrec_jax.live import LiveBackbones, LiveCatalogue
    from mmrec_jax.parallel.placement import MeshPlacement
    from mmrec_jax.shards import Shards
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.store.table import StateTable
    from mmrec_jax.training.sequential import SequentialRecommendation
    from mmrec_jax.types import Params


@dataclass(frozen=True)
class Run:
    """A config and a workdir.

    Attributes:
        config: what to do.
        workdir: takes everything the run makes.
        console: where tables and messages go.
        baseline_of: the run that this one is to be compared with; its data is used.
        one_device: whether it uses the first device of the process alone, whatever the config says.
        trains: whether the run is to be made, from the source as it is now, and not only used.
    """

    config: RunConfig
    workdir: Path
    console: Console
    baseline_of: Run | None = None
    one_device: bool = False
    trains: bool = True

    def on_one_device(self) -> Run:
        """The same run for those who need the whole catalogue in one place."""
        if self.shards is None:
            return self
        made = replace(self, one_device=True)
        shared = ("data", "store", "live", "live_catalogue")
        made.__dict__.update({name: part for name, part in self.__dict__.items() if name in shared})
        return made

    @functools.cached_property
    def data(self) -> PreparedData:
        """The prepared data, made on the first use; of a trained run that is only used, what it was trained on."""
        if self.baseline_of is not None:
            return self.baseline_of.data
        kept = None if self.trains else self._data_of_checkpoint()
        if kept is not None:
            return kept
        try:
            return first_alone(lambda: experiment.prepare_data(self.config, self.workdir), "prepared data")
        except UserError:
            # A finished run is used where its raw data is not: in another folder, or on another machine.
            kept = None if experiment.has_source(self.config) else self._data_of_checkpoint()
            if kept is None:
                raise
            return kept

    def _data_of_checkpoint(self) -> PreparedData | None:
        """The data that the newest checkpoint was trained on, as it was prepared then; None where it is not here."""
        from mmrec_jax.data import open_prepared
        from mmrec_jax.data.layouts import STREAMED
        from mmrec_jax.training import load_params

        if self.config.data.source == STREAMED or not is_trained(self.workdir):
            return None
        fingerprint = load_params(self.workdir, "last")[1]["run"]["data"]
        directory = experiment.prepared_directory(self.config, self.workdir) / fingerprint[:16]
        if not directory.is_dir():
            return None
        source = self.config.data.source
        now = experiment.source_fingerprint(self.config)
        if now is None:
            self.console.print(f"{source} is not here; the data prepared from it before is used.")
        elif now != fingerprint:
            of_run = read_config(self.workdir)
            if of_run is None or source != of_run.data.source:
                return None  # named by the user: that the checkpoint is of other data is an error
            self.console.print(f"{source} is not as it was when the run was trained; the data prepared then is used.")
        return open_prepared(directory)

    @functools.cached_property
    def store(self) -> HiddenStateStore | None:
        """The hidden-state store, filled on the first use; None where no states come from one."""
        if not self.config.cached:
            return None
        trained = is_trained(self.workdir)
        return experiment.ensure_states(self.config, self.data.catalogue, self.workdir, self.shards, trained)

    @functools.cached_property
    def live(self) -> LiveBackbones | None:
        """The backbones that are run in the step; once something was trained, what that began with is not read."""
        return experiment.load_live(self.config, begins=not is_trained(self.workdir))

    @functools.cached_property
    def live_catalogue(self) -> LiveCatalogue | None:
        """Raw inputs of the catalogue for them, made on the first use."""
        if self.live is None:
            return None
        items, folder = self.data.catalogue, self.workdir / "inputs"
        root = experiment.source_directory(self.config) if experiment.has_source(self.config) else self.workdir
        live, made_of = self.live, self.data.fingerprint
        return first_alone(
            lambda: experiment.live_catalogue(self.config, live, items, root, folder, made_of), "inputs of backbones"
        )

    @functools.cached_property
    def table(self) -> StateTable | None:
        """The catalogue's states in memory, each row where the run's devices have it; None for systems by id."""
        if not self.config.modalities:
            return None
        return experiment.load_table(self.config, self.data, self.store, self.live_catalogue, self.shards)

    @functools.cached_property
    def present(self) -> dict[str, Bool[np.ndarray, " row"]] | None:
        """Modality -> catalogue rows that have it; a baseline is sliced like the run it is compared with."""
        if self.baseline_of is not None:
            return self.baseline_of.present
        if not self.config.modalities:
            return None
        return experiment.present_rows(self.config, self.data, self.store, self.live_catalogue)

    @functools.cached_property
    def shards(self) -> Shards | None:
        """What is split over the run's devices; None where there is one."""
        from mmrec_jax.parallel.placement import run_shards

        return None if self.one_device else run_shards(self.config.parallel)

    @functools.cached_property
    def placement(self) -> MeshPlacement | None:
        """Where the arrays of a training lie; None for one device."""
        from mmrec_jax.parallel.placement import MeshPlacement

        if self.shards is None:
            return None
        sizes = {name: part.backbone.sizes for name, part in self.live.backbones.items()} if self.live else {}
        return MeshPlacement(self.config.parallel, self.shards, sizes, self.data.num_items + 1)

    @functools.cached_property
    def frozen(self):
        """What the task reads and never trains: the catalogue on the run's devices, backbones on the host."""
        live = self.live.frozen(self.live_catalogue) if self.live and self.live_catalogue else None
        found = experiment.frozen_inputs(self.table, self.data, live)
        return found if self.placement is None else self.placement.catalogue(found)

    @functools.cached_property
    def task(self):
        """The task, with its validation."""
        task = experiment.build_task(self.config, self.table, self.data.num_items + 1, self.live, self.shards)
        return replace(task, validator=self._validator())

    @functools.cached_property
    def _valid(self) -> Examples:
        # Only when something is validated: the data of a stream's versions holds nothing out.
        return self.data.examples("valid")

    def _validator(self):
        from mmrec_jax.evaluation import evaluate

        ks = tuple(sorted({*self.config.evaluation.ks, int(self.config.training.monitor.split("@")[1])}))
        settings = replace(self.config.evaluation, ks=ks, lists=False, slices=False, bootstrap=0)

        def validate(task, params, frozen):
            result = evaluate(
                self.scorer(params, task, frozen),
                self._valid,
                self.data.popularity,
                length=self.config.model.length,
                config=settings,
            )
            return {f"{name}@{k}": result.metrics[f"{name}@{k}"] for name in VALIDATED for k in ks}

        return validate

    def check(self) -> None:
        """Finds out before anything is compiled whether the data can be trained on and evaluated.

        Raises:
            EmptySplitError: nothing is held out.
            ConfigError: a cut-off is larger than the catalogue, or a group of parameters has none.
        """
        from mmrec_jax.evaluation.topk import check_k
        from mmrec_jax.modes.groups import check_groups

        for split in ("valid", "test"):
            self.data.examples(split)
        monitored = int(self.config.training.monitor.split("@")[1])
        for key, k in (("evaluation.ks", max(self.config.evaluation.ks)), ("training.monitor", monitored)):
            try:
                check_k(k, self.data.num_items)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from error
        check_groups(self.config)

    def description(self) -> dict:
        """What this run's checkpoints are of."""
        return experiment.description(self.config, self.data.fingerprint, self.store, self.live)

    def fresh(self, key: Array) -> Params:
        """Parameters of the task as a training begins with them, on the host."""
        from mmrec_jax.training.step import Programs
        from mmrec_jax.training.trees import host_copy

        made = Programs(self.task.init)((), key, self.frozen)
        return host_copy(made if self.placement is None else self.placement.readable(made))

    def parameters(self, which: str = "best") -> Params:
        """Parameters of a checkpoint of this run.

        Args:
            which: `best` or `last`.

        Raises:
            CheckpointError: there is none, or it is of something else.
        """
        from mmrec_jax.training import load_params
        from mmrec_jax.training.manifest import check

        if not is_trained(self.workdir):
            raise CheckpointError(f"{self.workdir} holds no checkpoint: train first, or name another --workdir.")
        params, manifest = load_params(self.workdir, which, self.description())
        # The description agrees; the shapes may still be those of another version of this library.
        check(manifest, None, jax.eval_shape(self.task.init, jax.random.key(0), self.frozen), f"{self.workdir}")
        return params

    def test(self, params: Params) -> EvaluationResult:
        """The evaluation of parameters on the test split."""
        return self.evaluated(self.scorer(params))

    def scorer(self, params: Params, task: SequentialRecommendation | None = None, frozen=None) -> Scorer:
        """User and item vectors by parameters: of this run's task, or of another with what it reads."""
        task, frozen = task or self.task, frozen or self.frozen
        if self.placement is not None:
            from mmrec_jax.parallel.scorer import MeshScorer

            return MeshScorer(task, params, frozen, self.placement)
        from mmrec_jax.training.scorer import SequentialScorer

        return SequentialScorer(task, params, frozen)

    def evaluated(self, scorer) -> EvaluationResult:
        """The evaluation of a scorer on the test split."""
        from mmrec_jax.evaluation import evaluate

        return evaluate(
            scorer,
            self.data.examples("test"),
            self.data.popularity,
            length=self.config.model.length,
            config=self.config.evaluation,
            present=self.present,
        )


def open_run(config: config_dict.ConfigDict | None, workdir: str | Path | None, *, trains: bool = False) -> Run:
    """The run of a config, or of a workdir that has one already.

    Args:
        config: of the run; None for the one that the workdir keeps.
        workdir: None for `runs/<config's name>`. Without a config, that of a stream stands for its version in service.
        trains: whether the run is to be made, and not only used: the workdir then keeps the config, and the source is
            read as it is now.

    Raises:
        ConfigError: neither is given, the config cannot work, or the workdir is a URL or holds a trained run of another
            one.
    """
    check_local("workdir", workdir)
    if is_comparison(config):
        raise ConfigError("The config is that of a comparison: add --mode=compare.")
    if config is not None:
        settings = resolve(config)
    elif workdir is None:
        raise ConfigError("Name a config, such as --config=configs/crossan.py, or the --workdir of an earlier run.")
    else:
        workdir = Path(workdir) if trains else in_service(Path(workdir))
        found = read_config(workdir)
        if found is None:
            raise ConfigError(f"{workdir} is no workdir of a run: it has no {CONFIG_FILE}. Name a --config.")
        settings = found
    directory = Path(workdir) if workdir else Path("runs") / settings.name
    run = Run(settings, directory, terminal(), trains=trains)
    if config is not None:
        changes = check_same_run(settings, directory)
        if changes:
            run.console.print("Changed since the run began: " + "; ".join(changes))
        if trains and writes():
            keep_config(settings, directory)
            if told := registry.hint(settings):
                run.console.print(told, soft_wrap=True)
    keep_compiled_programs(settings)
    return run


def terminal() -> Console:
    """Where the modes write; of several processes, one does. Titles are printed as they are, brackets included."""
    return Console(markup=False, emoji=False, highlight=False, quiet=not writes())


def keep_compiled_programs(config: RunConfig) -> None:
    """Keeps compiled programs on disk, for all runs of a user, where `training.compilation_cache_dir` says.

    By default: in $JAX_COMPILATION_CACHE_DIR if set, else in the user's own cache folder. A folder that cannot be
    made is no reason to stop.
    """
    from mmrec_jax.training import use_compilation_cache

    named = config.training.compilation_cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if named == "off":
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(named) if named else caches / "mmrec_jax" / "compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    use_compilation_cache(directory)
