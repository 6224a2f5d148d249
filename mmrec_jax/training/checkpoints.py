"""Checkpoints on Orbax: the newest ones and the best one, each whole or not there at all.

Every checkpoint is one Orbax step (written beside, then renamed) with the items `params`, `average` (where a
moving average is on), `state` (optimiser and running metrics) and `manifest` (JSON). The best parameters are
those of the step that the newest manifest names as best: the reference and the state it belongs to are saved
at once, so there is no moment at which best and last disagree. Frozen weights are never in a checkpoint.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmrec_jax.errors import CheckpointError, TrainingError
from mmrec_jax.training import manifest as manifests
from mmrec_jax.training.processes import several
from mmrec_jax.training.trees import host_copy, named_leaves, nested
from mmrec_jax.types import Params

FOLDER = "checkpoints"
UNREADABLE = "unreadable"
_STEP = "step"
_TREES = ("params", "average", "state")
_UNFINISHED = ".orbax-checkpoint-tmp"  # what Orbax calls a directory that it is still writing
_NO_SPACE = {errno.ENOSPC: "No space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "File too large"}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and verified.

    Attributes:
        step: training steps taken.
        params: nested dict of numpy arrays.
        average: moving average of the parameters, or None.
        state: optimiser state and running metrics, leaf name -> array; empty where only parameters were read.
        manifest: see `manifest.build`.
    """

    step: int
    params: Params
    average: Params | None
    state: dict[str, Any]
    manifest: dict

    @property
    def evaluated(self) -> Params:
        """The parameters that were validated: the moving average where there is one."""
        return self.params if self.average is None else self.average

    @property
    def best_step(self) -> int | None:
        """Step of the best parameters so far; None before the first evaluation."""
        return self.manifest["progress"].get("best_step")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they lie; made if absent, unless `read_only`.
        keep: how many of the newest to keep, beside the best of each of them.
        read_only: for readers beside a running training: nothing is cleaned up, moved or deleted.
    """

    def __init__(self, directory: str | Path, keep: int = 2, read_only: bool = False):
        import orbax.checkpoint as ocp  # a quarter of a second that `--help` need not wait for

        self._ocp = ocp
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._read_only = read_only
        self._best_of: dict[int, int | None] = {}
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        elif not self.directory.is_dir():
            raise CheckpointError(f"{self.directory}: there is no such directory of checkpoints.")
        kinds: dict[str, Any] = {"item_names": (*_TREES, "manifest")}
        alone = ocp.options.MultiprocessingOptions()
        if several():  # what is saved is whole in each process: one writes, and all read, without meeting for it
            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process_{me}")
            trees = {name: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for name in _TREES}
            manifest = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
            kinds = {"item_handlers": {**trees, "manifest": manifest}}
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                step_prefix=_STEP,
                create=False,
                enable_async_checkpointing=False,
                save_root_metadata=False,
                lightweight_initialize=True,
                multiprocessing_options=alone,
            ),
            **kinds,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, newest first."""
        found = [re.fullmatch(rf"{_STEP}_(\d+)", path.name) for path in self.directory.iterdir()]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def save(
        self, step: int, params: Params, average: Params | None, state: Any, run: Mapping, progress: Mapping
    ) -> None:
        """Writes one checkpoint, then removes those that are neither new nor best.

        Where the disk is full, what a finished save would have removed is removed first and the save tried
        again.

        Raises:
            TrainingError: the disk is full all the same, or cannot be written to. Earlier checkpoints are as they were.
        """
        trees = {"params": host_copy(params), "state": nested(named_leaves(host_copy(state)))}
        if average is not None:
            trees["average"] = host_copy(average)
        body = manifests.build(run, progress, trees)
        try:
            self._write(step, trees, body)
        except Exception as error:  # Orbax passes on whatever the file system's library says
            self._remove_unfinished()
            if not out_of_space(error):
                raise self._not_written(step, trees, error) from error
            self._make_room()
            try:
                self._write(step, trees, body)
            except Exception as again:
                self._remove_unfinished()
                raise self._not_written(step, trees, error) from again
        self._best_of[step] = progress.get("best_step")
        self._remove_superseded(self.steps()[: self._keep])

    def _write(self, step: int, trees: Mapping[str, Any], body: dict) -> None:
        # Asked first because Orbax, meeting a full disk, fills the terminal with the tracebacks of its threads.
        if shutil.disk_usage(self.directory).free < _bytes_on_disk(trees):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        args = {name: self._ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(
            step, args=self._ocp.args.Composite(manifest=self._ocp.args.JsonSave(body), **args), force=True
        )

    def _remove_superseded(self, kept: list[int]) -> None:
        """Removes every checkpoint that is neither in `kept` nor the best one of one in it."""
        needed = set(kept) | {self._best_step(step) for step in kept}
        for step in self.steps():
            if step not in needed:
                # Renamed first, which is all or nothing: a kill in the middle of deleting leaves no half
                # checkpoint.
                doomed = self._rename(step, self.directory / f"{_STEP}_{step}{_UNFINISHED}")
                shutil.rmtree(doomed, ignore_errors=True)

    def _make_room(self) -> None:
        """Removes what the save that failed would have removed; the newest sound checkpoint and its best
        stay."""
        newest = next(self.usable(), None)
        if newest is not None:
            logging.warning("%s: the disk is full; removing checkpoints older than the last.", self.directory)
            self._remove_superseded([newest.step])

    def _best_step(self, step: int) -> int | None:
        if step not in self._best_of:
            try:
                self._best_of[step] = self.read(step, state=False).best_step
            except CheckpointError:
                self._best_of[step] = None
        return self._best_of[step]

    def _rename(self, step: int, target: Path) -> Path:
        """Takes a checkpoint out of the list."""
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (self.directory / f"{_STEP}_{step}").rename(target)
        self._manager.reload()
        return target

    def _remove_unfinished(self) -> None:
        """Removes what a killed or failed save left behind."""
        for path in self.directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _not_written(self, step: int, trees: Mapping[str, Any], error: Exception) -> TrainingError:
        need = _bytes_on_disk(trees) / 2**20
        free = shutil.disk_usage(self.directory).free / 2**20
        steps = self.steps()
        if out_of_space(error):
            what = "The disk is full"
            remedy = f"free some space (at least {2 * need:.1f} MiB, or raise the quota)"
        else:
            what = f"A checkpoint could not be written ({_first_line(error)})"
            remedy = "see to the directory (permissions, quota, network)"
        kept = f"The checkpoint of step {steps[0]} is intact" if steps else "There is no earlier checkpoint"
        return TrainingError(
            f"{what}: the checkpoint of step {step} needs about {need:.1f} MiB in {self.directory}, where "
            f"{free:.1f} MiB are free. {kept}: {remedy} and start the same command again; it goes on from there and "
            "ends as if nothing had happened."
        )

    def read(self, step: int, state: bool = True) -> Checkpoint:
        """Reads and verifies one checkpoint; without `state`, only what serving needs.

        Raises:
            CheckpointError: it is damaged; says how.
        """
        try:
            items = [path.name for path in (self.directory / f"{_STEP}_{step}").iterdir() if path.is_dir()]
            wanted = [name for name in ("params", "average", "state") if name in items and (state or name != "state")]
            manifest = self._restored(step, manifest=self._ocp.args.JsonRestore())["manifest"]
            args = {name: self._ocp.args.StandardRestore(_template(manifest, name)) for name in wanted}
            found = self._restored(step, **args)
            stored = [name for name in manifest["checksums"] if state or name != "state"]
            trees = {name: host_copy(found[name]) for name in stored}
            manifests.verify(manifest, trees)
        except Exception as error:  # whatever way the bytes are damaged, the reader meets it as another exception
            raise CheckpointError(
                f"Checkpoint {self.directory / f'{_STEP}_{step}'} is damaged: {_first_line(error)}"
            ) from error
        return Checkpoint(step, trees["params"], trees.get("average"), named_leaves(trees.get("state", {})), manifest)

    def _restored(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=self._ocp.args.Composite(**args))

    def usable(self, state: bool = True) -> Iterator[Checkpoint]:
        """Sound checkpoints, newest first; a damaged one is passed over with a warning."""
        for step in self.steps():
            try:
                yield self.read(step, state)
            except CheckpointError as error:
                logging.warning("%s Passing over it; the one before is used.", error)

    def resume(self) -> tuple[Checkpoint, Checkpoint | None] | None:
        """The newest sound checkpoint together with the best one it names; None in an empty directory.

        A checkpoint whose best one is damaged is passed over as well, as long as an older one is whole; if
        there is none, the newest sound one is returned with None for the best. Damaged ones are moved to
        `unreadable/`.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        steps = self.steps()
        if not steps:
            return None
        sound = list(self.usable())
        if not sound:
            raise CheckpointError(
                f"{self.directory}: all {len(steps)} checkpoints are damaged (steps {steps}). Delete the "
                "directory to train from the beginning."
            )
        by_step = {checkpoint.step: checkpoint for checkpoint in sound}
        self._best_of = {checkpoint.step: checkpoint.best_step for checkpoint in sound}
        whole = [c for c in sound if c.best_step is None or c.best_step in by_step]
        chosen = whole[0] if whole else sound[0]
        for step in steps:
            if step > chosen.step or step not in by_step:
                self._rename(step, self.directory / UNREADABLE / f"{_STEP}_{step}")
        self._remove_superseded(self.steps()[: self._keep])  # a kill may have come before the last save did
        if not whole:
            logging.warning(
                "%s: the best checkpoint (step %s) is damaged; the next evaluation starts a new best.",
                self.directory,
                chosen.best_step,
            )
        return chosen, None if chosen.best_step is None else by_step.get(chosen.best_step)


def out_of_space(error: BaseException | None) -> bool:
    """Whether an exception says that the disk, a quota or a file-size limit is exhausted, in whatever
    library's words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        text = str(error)
        if any(f"os_error_code='{code}'" in text or words in text for code, words in _NO_SPACE.items()):
            return True
        error = error.__cause__ or error.__context__
    return False


def _template(manifest: Mapping, name: str) -> Any:
    """What Orbax is told to read a tree as: numpy arrays of the types that were saved, of which it finds the shapes.

    Told nothing, it asks TensorStore about each array, whose answers stay in memory for ever (`Spec.to_json`, 0.1.86);
    so it is with manifests that have no types.
    """
    types = manifest.get("dtypes", {}).get(name)
    return None if types is None else jax.tree.map(lambda text: np.empty(0, jnp.dtype(text)), types)


def _bytes_on_disk(trees: Mapping[str, Any]) -> int:
    """Room that a checkpoint takes at most: its arrays, and a kilobyte for the description of each."""
    return sum(leaf.nbytes + 1024 for leaf in jax.tree.leaves(trees)) + 2**16


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def checkpoint_directory(directory: str | Path) -> Path:
    """The folder of checkpoints of a workdir, or the given folder itself."""
    inside = Path(directory) / FOLDER
    return inside if inside.is_dir() else Path(directory)


def load_params(directory: str | Path, which: str = "best", run: Mapping | None = None) -> tuple[Params, dict]:
    """Parameters for serving or evaluation, without the optimiser's state.

    Args:
        directory: a workdir, or its folder of checkpoints.
        which: `best` or `last`.
        run: description of what the parameters are meant for; the sections it has are compared with the
            checkpoint's.

    Returns:
        Nested dict of numpy arrays (the moving average where one was kept), and the checkpoint's manifest.

    Raises:
        CheckpointError: no checkpoint, only damaged ones, or one of another system, width or set of
            modalities.
    """
    if which not in ("best", "last"):
        raise CheckpointError(f"which={which!r}: choose best or last.")
    with Checkpoints(checkpoint_directory(directory), read_only=True) as checkpoints:
        for checkpoint in checkpoints.usable(state=False):
            if which == "best" and checkpoint.best_step not in (None, checkpoint.step):
                try:
                    checkpoint = checkpoints.read(checkpoint.best_step, state=False)
                except CheckpointError as error:
                    logging.warning("%s Looking for an older best one.", error)
                    continue
            wanted = checkpoint.manifest["run"] | dict(run or {})
            manifests.check(checkpoint.manifest, wanted, None, f"{checkpoints.directory}, step {checkpoint.step},")
            return checkpoint.evaluated, checkpoint.manifest
        other = " (which='last' needs only the newest)" if which == "best" else ""
        raise CheckpointError(
            f"{checkpoints.directory}: no usable checkpoint among steps {checkpoints.steps()}{other}."
        )
