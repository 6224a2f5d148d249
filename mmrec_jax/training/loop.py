"""The one training loop: it knows a task and a stream, and nothing of models, meshes or files of data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from mmrec_jax.errors import CheckpointError, ConfigError, Preempted, TrainingError
from mmrec_jax.training import manifest as manifests
from mmrec_jax.training.checkpoints import FOLDER, Checkpoint, Checkpoints, out_of_space
from mmrec_jax.training.config import TrainingConfig
from mmrec_jax.training.kept import KeptSteps
from mmrec_jax.training.lock import only_training_in
from mmrec_jax.training.memory import peak_memory_bytes, restart_peak_memory
from mmrec_jax.training.optimizers import build_optimizer, schedule_factor
from mmrec_jax.training.placement import OneDevice, Placement
from mmrec_jax.training.position import FitResult, Position
from mmrec_jax.training.processes import as_first_says, wait_for_all, writes
from mmrec_jax.training.progress import RunProgress
from mmrec_jax.training.step import Programs, TrainState, TrainStep, check_finite, fetch_window, seed_keys
from mmrec_jax.training.task import Stream, Task
from mmrec_jax.training.trees import host_copy, like, named_leaves
from mmrec_jax.training.writers import MetricsCsv, TensorBoardEvents, Writer, learning_curve
from mmrec_jax.types import Params

# Settings that change what is shown or how long a run goes on, but not the steps it takes.
_HARMLESS = {"epochs", "patience", "keep", "checkpoint_every_steps", "compilation_cache_dir", "tensorboard",
             "learning_curve", "progress"}  # fmt: skip


def fit(
    task: Task,
    frozen: Any,
    stream: Stream,
    config: TrainingConfig,
    workdir: str | Path,
    run: Mapping | None = None,
    warm_start: Params | None = None,
    kept: KeptSteps | None = None,
    stop: Callable[[], bool] = lambda: False,
    placement: Placement | None = None,
) -> FitResult:
    """Trains a task, or goes on with a run that was interrupted.

    A run that was killed at any moment and started again with the same arguments ends with the same bits in
    its parameters, its best parameters and `metrics.csv` as one that was left alone.

    Args:
        task: what to train.
        frozen: the pytree that the task reads and never trains; it is never saved.
        stream: training batches.
        config: how to train.
        workdir: takes `checkpoints/`, `metrics.csv`, `tensorboard/` and `learning_curve.png`. If it holds
            checkpoints, the run goes on from the newest.
        run: description of what is trained (system, modalities, data ...), plain JSON values, kept in the
            manifests; resuming compares it, except for its section `info`.
        warm_start: parameters to begin with in place of fresh ones; see `mmrec_jax.training.warm_start`.
        kept: holds what earlier calls compiled, and takes what this one does.
        stop: asked at each step boundary whether to save there and end.
        placement: where arrays lie; None for one device.

    Raises:
        Preempted: `stop` said so; the same call goes on from there.
        ConfigError: groups that do not fit the parameters; a monitored metric that validation does not give.
        TrainingError: values that are not finite, a full disk, another training in the same workdir.
        CheckpointError: the workdir holds a run of something else, or only damaged checkpoints.
    """
    if config.compilation_cache_dir not in ("", "off"):
        use_compilation_cache(config.compilation_cache_dir)
    try:
        with _opened(Path(workdir), config.keep) as checkpoints:
            place = placement or OneDevice()
            return _Run(
                task, frozen, stream, config, Path(workdir), run or {}, warm_start, checkpoints, kept, stop, place
            ).finish()
    except OSError as error:
        if not out_of_space(error):
            raise
        raise TrainingError(
            f"The disk is full: {error}. The checkpoints in {Path(workdir) / FOLDER} are intact: free some "
            "space and start the same command again; it goes on from the newest."
        ) from error


@contextlib.contextmanager
def _opened(workdir: Path, keep: int) -> Iterator[Checkpoints]:
    """The checkpoints, to write them in one process and to read them in the others."""
    with contextlib.ExitStack() as held:
        if writes():
            held.enter_context(only_training_in(workdir))
            checkpoints = held.enter_context(Checkpoints(workdir / FOLDER, keep))
        wait_for_all(f"checkpoints of {workdir.name}")
        if not writes():
            checkpoints = held.enter_context(Checkpoints(workdir / FOLDER, keep, read_only=True))
        yield checkpoints


def use_compilation_cache(directory: str | Path) -> None:
    """Keeps compiled programs on disk, so that the next start of the same run need not compile them."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # JAX opens its cache once; without this a directory set later is not used


class _Run:
    """One call of `fit`."""

    def __init__(self, task, frozen, stream, config, workdir, run, warm_start, checkpoints, kept, stop, placement):
        self.task: Task = task
        self.stream: Stream = stream
        self.config: TrainingConfig = config
        self.workdir: Path = workdir
        self.checkpoints: Checkpoints = checkpoints
        self.kept: KeptSteps | None = kept
        self.stop: Callable[[], bool] = stop
        self.stopped = False
        self.run = {**run, "info": {**run.get("info", {}), "training": dataclasses.asdict(config)}}
        self.placement: Placement = placement
        self.frozen = placement.frozen(frozen)
        self.position = Position(config.seed, stream.batches_per_epoch)
        self.recompilations_told = 0
        self.state = self._begin(warm_start)
        self.writers: list[Writer] = [MetricsCsv(workdir / "metrics.csv", self.position.step)] if writes() else []
        if config.tensorboard and writes():
            self.writers.append(TensorBoardEvents(workdir / "tensorboard", self.position.step))
        shown = config if writes() else dataclasses.replace(config, progress=False)
        self.progress = RunProgress(task.name, shown, stream.batches_per_epoch, self.position.step)

    @property
    def epochs_done(self) -> int:
        return self.position.step // self.position.batches_per_epoch

    @property
    def patience_is_out(self) -> bool:
        return bool(self.config.patience) and self.position.stale > self.config.patience

    def finish(self) -> FitResult:
        """Trains to the end and returns the best."""
        try:
            if self.epochs_done < self.config.epochs and not self.patience_is_out:
                self._train()
        finally:
            self.progress.close()
            for writer in self.writers:
                writer.close()
        if self.config.learning_curve and writes():
            curve = self.workdir / "learning_curve.png"
            learning_curve(curve, self.position.history, self.config.monitor, self.position.best_step)
        params, step, value = self._best()
        return FitResult(
            params=params,
            best_step=step,
            best_value=value,
            history=self.position.history,
            step=self.position.step,
            stopped_early=self.epochs_done < self.config.epochs,
        )

    def _best(self) -> tuple[Params, int, float]:
        """The best parameters, from their checkpoint, with their step and value.

        A finished run whose best checkpoint was damaged since has its last parameters instead.
        """
        position = self.position
        if position.best_step is None or position.best_value is None:
            position.best_step = position.step
            position.best_value = self._evaluate()[self.config.monitor]
            params = host_copy(self.placement.readable(self.state.evaluated))
            return params, position.best_step, position.best_value
        best = self.checkpoints.read(position.best_step, state=False)
        return best.evaluated, position.best_step, position.best_value

    def _begin(self, warm_start: Params | None) -> TrainState:
        """The state to start from: fresh, warm-started or of the newest sound checkpoint."""
        found = self._found()
        if warm_start is None:
            params = Programs(self.task.init)((), seed_keys(self.config.seed)[0], self.frozen)
        else:
            params = warm_start
        if found is not None:
            self._check_same_run(found[0], params)
        optimizer = build_optimizer(self.config, params, self.stream.batches_per_epoch, shared=self.kept is not None)
        options = {"gradient_norm": self.config.clip_norm > 0}  # which is needed for clipping anyway
        if self.kept is None:
            self.step = TrainStep(
                self.task, optimizer, self.config.seed, self.config.ema_decay, placement=self.placement, **options
            )
        else:
            self.step = self.kept.step(self.task, self.config, params, optimizer, placement=self.placement)
        batches = list(self.stream.warmup_batches())
        state = self.step.init(params, self.frozen, batches[0])
        if found is not None:
            state = self._restored(state, *found)
        self.step.warm_up(state, self.frozen, batches)
        restart_peak_memory()
        return state

    def _found(self) -> tuple[Checkpoint, Checkpoint | None] | None:
        """The checkpoint to go on from, and the best one, as the process says that writes them."""
        found = self.checkpoints.resume() if writes() else None
        newest, best = (-1, -1) if found is None else (found[0].step, -1 if found[1] is None else found[1].step)
        newest, best = as_first_says([newest, best])
        if writes() or newest < 0:
            return found
        return self.checkpoints.read(newest), None if best < 0 else self.checkpoints.read(best)

    def _check_same_run(self, checkpoint: Checkpoint, params: Params) -> None:
        where = f"Checkpoint {self.checkpoints.directory} of step {checkpoint.step}"
        manifests.check(checkpoint.manifest, self.run, params, where)
        saved = checkpoint.manifest["progress"]
        for name, now in (("seed", self.config.seed), ("batches_per_epoch", self.stream.batches_per_epoch)):
            if saved[name] != now:
                raise CheckpointError(
                    f"{where}: {name} was {saved[name]} and is now {now}, which makes it another run: choose "
                    "another --workdir or change the config back."
                )
        before, now = checkpoint.manifest["run"]["info"]["training"], self.run["info"]["training"]
        before = json.loads(json.dumps(dataclasses.asdict(TrainingConfig()))) | before  # keys its version did not know
        relevant = [
            line
            for name in sorted(before.keys() | now.keys())
            if name not in _HARMLESS
            for line in manifests.differences({name: before.get(name)}, {name: now.get(name)})
        ]
        if relevant:
            logging.warning("%s goes on with other training settings: %s", where, "; ".join(relevant))
        if self.config.schedule == "cosine" and before["epochs"] != self.config.epochs:
            self._warn_of_stretched_schedule(checkpoint.step, before["epochs"], where)

    def _warn_of_stretched_schedule(self, step: int, before: int, where: str) -> None:
        """Says what other epochs than before do to learning rates that fall until the last step, if any are left."""
        per_epoch, epochs = self.stream.batches_per_epoch, self.config.epochs
        schedules = [
            schedule_factor(dataclasses.replace(self.config, epochs=number), per_epoch) for number in (before, epochs)
        ]
        if step < epochs * per_epoch:
            shares = [f"{float(factor(step)):.0%}" for factor in schedules if factor]
            logging.warning(
                "%s: training.epochs was %d and is now %d, which stretches the cosine schedule: the learning rates go "
                "from %s to %s of their highest at once. Another --workdir trains all epochs on one schedule.",
                where, before, epochs, *shares,
            )  # fmt: skip

    def _restored(self, state: TrainState, newest: Checkpoint, best: Checkpoint | None) -> TrainState:
        """The saved state in the structure of a fresh one; sets the position and the stream."""
        self.position = Position(**newest.manifest["progress"])
        if best is None:
            self.position.best_step, self.position.best_value = None, None
        self.stream.set_state(newest.manifest["progress"]["stream"])
        fresh = host_copy(self.placement.readable(state))
        changed = named_leaves({"optimizer": fresh.optimizer, "window": fresh.window})
        wanted, found = manifests.describe(changed), manifests.describe(newest.state)
        if wanted != found or (newest.average is None) != (state.average is None):
            lines = manifests.differences(found, wanted) or ["training.ema_decay: switched on or off"]
            raise CheckpointError(
                f"Checkpoint of step {newest.step}: its optimiser state is of other settings: "
                f"{'; '.join(lines[:5])}. Change training.optimizer, clip_norm, schedule, warmup_steps and "
                "ema_decay back, or choose another --workdir."
            )
        parts = like({"optimizer": state.optimizer, "window": state.window}, newest.state)
        return self.placement.state(
            dataclasses.replace(
                fresh,
                step=fresh.step + np.int32(newest.step),
                params=like(state.params, named_leaves(newest.params)),
                average=None if newest.average is None else like(state.params, named_leaves(newest.average)),
                **parts,
            )
        )

    def _train(self) -> None:
        while self.epochs_done < self.config.epochs and not self.patience_is_out:
            self._advance()
            if self.position.step % self.position.batches_per_epoch == 0:
                self._end_epoch()
            # The order is: evaluate, then save the state together with the stream's position, then take the
            # next batch. So a checkpoint holds the verdict on its own parameters, a restart neither repeats
            # nor skips an evaluation, and its first batch is the one that the undisturbed run would have
            # taken.
            self._save()
            if self.stopped:
                raise Preempted(
                    f"after step {self.position.step}, which is saved in {self.checkpoints.directory}", True
                )

    def _advance(self) -> None:
        """Takes steps up to the next checkpoint, with one batch of look-ahead on its way to the device."""
        position, every = self.position, self.config.checkpoint_every_steps
        start = time.perf_counter()
        with jax.transfer_guard("disallow"):
            batch = self.placement.batch(next(self.stream))
            while batch is not None:
                self.state = self.step(self.state, self.frozen, batch)
                position.step += 1
                self.stopped = self.stop()
                saves = position.step % position.batches_per_epoch == 0 or (every and position.step % every == 0)
                saves = saves or self.stopped
                # None before a checkpoint: the position that is saved must not be ahead of the steps.
                batch = None if saves else self.placement.batch(next(self.stream))
                if position.step % self.config.log_every == 0:
                    self._write("train", self._collect())
                    self.progress.advance(position.step)
            self._check_finite()
        position.epoch_seconds += time.perf_counter() - start

    def _collect(self) -> dict[str, float]:
        """Means of the scalar training metrics since the last call; sums of all are added to the epoch's."""
        self._check_finite()
        self.state, sums, steps = fetch_window(self.state)
        position = self.position
        position.epoch_steps += steps
        for name, value in sums.items():
            position.epoch_sums[name] = (np.asarray(position.epoch_sums.get(name, 0.0)) + value).tolist()
        return {name: float(value) / max(steps, 1) for name, value in sums.items() if not value.ndim}

    def _check_finite(self) -> None:
        check_finite(self.state, self.config.groups, self.position.batches_per_epoch)

    def _write(self, split: str, values: Mapping[str, float]) -> None:
        epoch = math.ceil(self.position.step / self.position.batches_per_epoch)
        for writer in self.writers:
            writer.write(self.position.step, epoch, split, values)

    def _end_epoch(self) -> None:
        """Closes the epoch's account, and evaluates where it is due."""
        position = self.position
        self._collect()
        means = {name: np.asarray(value) / position.epoch_steps for name, value in position.epoch_sums.items()}
        entry: dict[str, Any] = {
            "epoch": self.epochs_done,
            "step": position.step,
            "seconds": position.epoch_seconds,
            "recompilations": self.step.recompilations - self.recompilations_told,
            "train": {name: float(value) for name, value in means.items() if not value.ndim},
            "measured": {name: value.tolist() for name, value in means.items() if value.ndim},
        }
        self._write("train_epoch", entry["train"])
        past = self.epochs_done - self.config.eval_from
        if self.epochs_done >= self.config.epochs or (past >= 0 and past % self.config.eval_every == 0):
            start = time.perf_counter()
            entry["valid"] = self._evaluate()
            entry["valid_seconds"] = time.perf_counter() - start
            self._write("valid", entry["valid"])
        entry["peak_memory_bytes"] = peak_memory_bytes()
        restart_peak_memory()
        position.history.append(entry)
        position.epoch_sums, position.epoch_steps, position.epoch_seconds = {}, 0, 0.0
        self.recompilations_told = self.step.recompilations
        self.progress.epoch(entry, position.best_value, position.best_step)

    def _evaluate(self) -> dict[str, float]:
        """Validates, and notes whether these are the best parameters so far."""
        position, monitor = self.position, self.config.monitor
        metrics = {name: float(value) for name, value in self.task.validate(self.state.evaluated, self.frozen).items()}
        if monitor not in metrics:
            raise ConfigError(f"training.monitor={monitor!r}: validation gives only {sorted(metrics)}.")
        value = metrics[monitor]
        if not math.isfinite(value):
            raise TrainingError(f"Validation metric {monitor} is {value} after step {position.step}.")
        sign = 1 if self.config.monitor_mode == "max" else -1
        if position.best_value is None or sign * value > sign * position.best_value:
            position.best_value, position.best_step, position.stale = value, position.step, 0
        else:
            position.stale += 1
        return metrics

    def _save(self) -> None:
        self.position.stream = self.stream.get_state()
        state = self.placement.readable(self.state)
        if writes():
            self.checkpoints.save(
                self.position.step,
                state.params,
                state.average,
                {"optimizer": state.optimizer, "window": state.window},
                self.run,
                dataclasses.asdict(self.position),
            )
        wait_for_all(f"checkpoint {self.position.step}")
