"""Versions of a model that were put in service, and which of them is in service.

    versions/
      0007/            the version of window 7: the documents and links it was given, and its parameters in checkpoints/
      service.json     which one is in service, and how that came about

A version appears under its name only when it is whole, and it is there before `service.json` names it; so whoever is
killed, or loses power, leaves the version before in service. A version is a directory that `Recommender.load` opens.

Changes are made one at a time. A promotion is decided on while some version is in service: it names the change that
put it there, and does nothing where somebody has rolled back since.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrec_jax.errors import CheckpointError
from mmrec_jax.files import sync, sync_all, write_whole
from mmrec_jax.types import Params

FOLDER = "versions"
POINTER = "service.json"
_HIDDEN = "."  # begins the names of directories that are being made or removed
_LOGGED = 1000  # changes that `service.json` keeps


@dataclass(frozen=True)
class Change:
    """A version that was put in service.

    Attributes:
        number: of the change, from 1.
        version: the window whose training made it.
        rolled_back: whether by a roll-back, and not by promotion.
        reason: in words.
        time: when, UTC.
    """

    number: int
    version: int
    rolled_back: bool
    reason: str
    time: str


class Versions:
    """The versions below a workdir.

    Args:
        workdir: takes the folder `versions`, on the first promotion.
    """

    def __init__(self, workdir: Path) -> None:
        self.directory = workdir / FOLDER

    def numbers(self) -> list[int]:
        """Versions that are there, oldest first."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdigit())

    def path(self, version: int) -> Path:
        """The directory of a version, which `Recommender.load` opens.

        Raises:
            CheckpointError: it is not there.
        """
        path = self.directory / f"{version:04d}"
        if not path.is_dir():
            known = ", ".join(map(str, self.numbers())) or "none"
            raise CheckpointError(f"{self.directory} has no version {version}; there is {known}.")
        return path

    def changes(self) -> list[Change]:
        """How the version in service came to be it, oldest first.

        Raises:
            CheckpointError: the file that says so is damaged.
        """
        path = self.directory / POINTER
        try:
            return [Change(**change) for change in json.loads(path.read_text(encoding="utf-8"))["changes"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}): remove it and put a version in service with --rollback=VERSION."
            ) from error

    def in_service(self) -> int | None:
        """The version in service; None before the first promotion."""
        changes = self.changes()
        return changes[-1].version if changes else None

    def parameters(self, version: int) -> Params:
        """A version's parameters, as numpy arrays.

        Raises:
            CheckpointError: it is not there, or damaged.
        """
        from mmrec_jax.training import load_params

        return load_params(self.path(version), "last")[0]

    def document(self, version: int, name: str) -> Any:
        """The content of a JSON document of a version.

        Raises:
            CheckpointError: it is not there, or damaged.
        """
        path = self.path(version) / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): roll back to another version.") from error

    def promote(
        self,
        version: int,
        params: Params,
        description: Mapping[str, Any],
        *,
        reason: str,
        documents: Mapping[str, Any] | None = None,
        links: Mapping[str, str] | None = None,
        after: int | None = None,
    ) -> Change | None:
        """Makes a version and puts it in service. One that has its number already is replaced.

        Args:
            version: the window whose training made it.
            params: its parameters.
            description: of what is trained, as in the manifests of checkpoints.
            reason: why it is promoted.
            documents: file name -> JSON content.
            links: name -> what a symbolic link of that name leads to, relative to the version's directory.
            after: number of the change that the promotion was decided on (0: none was); None asks for no such thing.

        Returns:
            The change; None where a roll-back came after the change `after`: it stays, and nothing is made.
        """
        from mmrec_jax.training.checkpoints import FOLDER as CHECKPOINTS
        from mmrec_jax.training.checkpoints import Checkpoints

        self.directory.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if after is not None and any(change.rolled_back for change in self._since(after)):
                return None
            self._remove_leftovers()
            unfinished = self.directory / f"{_HIDDEN}{version:04d}"
            unfinished.mkdir()
            for name, content in (documents or {}).items():
                (unfinished / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
            for name, leads_to in (links or {}).items():
                (unfinished / name).symlink_to(leads_to)
            progress = {"step": version, "best_step": version, "reason": reason}
            with Checkpoints(unfinished / CHECKPOINTS) as checkpoints:
                checkpoints.save(version, params, None, {"version": np.int32(version)}, description, progress)
            sync_all(unfinished)
            target = self.directory / f"{version:04d}"
            if target.exists():
                self._remove(target)
            unfinished.rename(target)
            sync(self.directory)
            return self._put_in_service(version, reason, rolled_back=False)

    def roll_back(self, version: int | None = None) -> Change:
        """Puts an earlier version in service.

        Args:
            version: which; None for the one that was in service before the present one.

        Raises:
            CheckpointError: there is no such version, none before, or its parameters are damaged.
        """
        if not self.directory.is_dir():
            raise CheckpointError(f"{self.directory}: no version is in service, so there is none to go back to.")
        with self._alone():  # a promotion that is under way is finished first, and then taken back
            changes = self.changes()
            if not changes and version is None:
                raise CheckpointError(f"{self.directory}: no version is in service, so there is none to go back to.")
            now = changes[-1].version if changes else None
            if version is None:
                version = self._before(changes)
            if version == now:
                raise CheckpointError(f"{self.directory}: version {version} is in service already.")
            self.parameters(version)
            return self._put_in_service(version, f"rolled back from version {now}", rolled_back=True)

    def clean(self, keep: int) -> list[int]:
        """Removes old versions: all but the newest `keep`, the one in service and the one before it.

        Args:
            keep: how many of the newest stay; 0 keeps them all.

        Returns:
            The versions removed.
        """
        if not keep:
            return []
        with self._alone():
            changes = self.changes()
            needed = set(self.numbers()[-keep:])
            needed |= {changes[-1].version} if changes else set()
            with contextlib.suppress(CheckpointError):
                needed.add(self._before(changes))
            removed = [number for number in self.numbers() if number not in needed]
            for number in removed:
                self._remove(self.path(number))
        return removed

    def _since(self, number: int) -> list[Change]:
        return [change for change in self.changes() if change.number > number]

    def _before(self, changes: list[Change]) -> int:
        """The version that a roll-back goes to: the last one in service that is another than the present one, and not
        one that was left by a roll-back before."""
        there = set(self.numbers())
        # What a roll-back left behind was found wanting: rolling back twice goes two versions back.
        trail: list[int] = []
        for change in changes:
            trail = trail[: trail.index(change.version)] if change.version in trail else trail
            trail.append(change.version)
        found = [version for version in trail[:-1] if version in there]
        if not found:
            raise CheckpointError(
                f"{self.directory}: there is no version before {trail[-1] if trail else 'the first'}; there is "
                f"{', '.join(map(str, sorted(there))) or 'none'}. Name one with --rollback=VERSION."
            )
        return found[-1]

    def _put_in_service(self, version: int, reason: str, *, rolled_back: bool) -> Change:
        changes = self.changes()
        number = changes[-1].number + 1 if changes else 1
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        change = Change(number, version, rolled_back, reason, moment)
        kept = [*changes, change][-_LOGGED:]
        content = {"version": version, "changes": [vars(each) for each in kept]}
        write_whole(self.directory / POINTER, json.dumps(content, indent=2))
        return change

    def _remove(self, path: Path) -> None:
        # Renamed first, which is all or nothing: a kill in the middle of deleting leaves no half version.
        doomed = path.with_name(f"{_HIDDEN}{path.name}-removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.directory.glob(f"{_HIDDEN}[0-9]*"):
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process changes the versions: a roll-back may come while the service promotes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(os.fspath(self.directory / ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
