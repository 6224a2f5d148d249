"""How far a stream is: one checkpoint after each phase, whole or not there at all.

    stream/
      step_.../           the last two checkpoints: parameters, position, and the report of the window trained last
      position.json       position and report after a phase that left the parameters as they are in the last checkpoint
      finished.jsonl      a line for each report that nothing is added to, see `finished.Finished`

So what a save writes does not grow with the stream.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmrec_jax.errors import CheckpointError, TrainingError
from mmrec_jax.files import sync_all, write_whole
from mmrec_jax.streaming.finished import Finished
from mmrec_jax.streaming.windows import Window
from mmrec_jax.training import manifest as manifests
from mmrec_jax.training.checkpoints import Checkpoints, out_of_space
from mmrec_jax.types import Params

FOLDER = "stream"
POSITION = "position.json"
PHASES = ("test", "promote", "prune", "expand", "train")
"""What happens when a window comes: the model of the windows before is tested on it, put in service or not, pruned and
grown, and then trained on it. (The paper counts a turn from training to expansion; the order is the same.)"""


@dataclass
class StreamState:
    """The position in the stream, with plain values only.

    Attributes:
        window: number of the window that came last.
        phase: of `PHASES`, the last that is done with it.
        seen: name and number of events of each window so far.
        utilisation: rung -> of each slot, from the window that was trained last.
        sizes: of the batches (axes `distinct` and `step`), which the first training chose: sums over axes of other
            sizes are rounded otherwise.
        reports: one entry a window that was trained on, see `protocol`.
    """

    window: int = 0
    phase: str = PHASES[-1]
    seen: list[list] = field(default_factory=list)
    utilisation: dict[str, list[float]] = field(default_factory=dict)
    sizes: list[list[int]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def done(self, window: int, phase: str) -> bool:
        """Whether a phase of a window is done."""
        return (window, PHASES.index(phase)) <= (self.window, PHASES.index(self.phase))

    def check(self, window: Window) -> None:
        """Makes sure that a window is the one that came before under its number, or notes it.

        Raises:
            CheckpointError: it is another.
        """
        told = [window.name, len(window)]
        if window.number <= len(self.seen):
            if (before := list(self.seen[window.number - 1])) != told:
                raise CheckpointError(
                    f"window {window.number} was {before[0]!r} with {before[1]} events, and is {told[0]!r} with "
                    f"{told[1]}: the stream goes on with the data that it began with. Put it back, or choose another "
                    "--workdir."
                )
        else:
            self.seen.append(told)


class StreamCheckpoints:
    """Saves and finds a stream's state.

    Args:
        workdir: of the run.
        run: description of what is trained; a checkpoint of something else is refused.
    """

    def __init__(self, workdir: Path, run: Mapping[str, Any]) -> None:
        self._run = run
        self._checkpoints = Checkpoints(workdir / FOLDER)
        self._finished = Finished(workdir / FOLDER)
        self._position = workdir / FOLDER / POSITION
        self._saved: tuple[int, Params] | None = None  # step of the newest checkpoint and the parameters in it

    def close(self) -> None:
        """Releases the directory."""
        self._checkpoints.__exit__()

    def load(self) -> tuple[StreamState, Params | None]:
        """The newest state, or that of a stream that has not begun.

        Raises:
            CheckpointError: it is of something else, or all checkpoints are damaged.
        """
        found = self._checkpoints.resume()
        if found is None:
            return StreamState(), None
        checkpoint = found[0]
        manifests.check(checkpoint.manifest, self._run, None, f"The stream in {self._checkpoints.directory}")
        self._saved = checkpoint.step, checkpoint.params
        saved = self._after(checkpoint.step) or checkpoint.manifest["progress"]
        state = StreamState(**{key: value for key, value in saved.items() if key != "best_step"})
        if state.reports:
            finished = self._finished.before(state.reports[0]["window"])
            state.reports = [*finished, *state.reports]
            state.seen = [*([report["name"], report["events"]] for report in finished), *state.seen]
        return state, checkpoint.params

    def save(self, state: StreamState, params: Params) -> None:
        """Writes a state, and removes all checkpoints but the last two. Parameters that are the very ones of the newest
        checkpoint are not written again.

        Raises:
            TrainingError: the disk is full. What was saved before is as it was.
        """
        try:
            self._save(state, params)
        except OSError as error:
            if not out_of_space(error):
                raise
            raise TrainingError(
                f"{self._checkpoints.directory}: the disk is full, and the stream's position could not be written. "
                "Make room and give the same command again: it goes on after the last phase that was saved."
            ) from error

    def _save(self, state: StreamState, params: Params) -> None:
        finished, newest = state.reports[:-1], state.reports[-1:]
        self._finished.add(finished)
        short = dataclasses.asdict(dataclasses.replace(state, reports=newest, seen=state.seen[len(finished) :]))
        if self._saved is not None and params is self._saved[1]:
            write_whole(self._position, json.dumps({"of_step": self._saved[0], "state": short}))
            return
        step = state.window * len(PHASES) + PHASES.index(state.phase)
        self._checkpoints.save(step, params, None, {"step": np.int32(step)}, self._run, short)
        sync_all(self._checkpoints.directory)
        self._saved = step, params

    def _after(self, step: int) -> dict[str, Any] | None:
        """The position after the phases that followed a checkpoint and changed no parameters; None where there were
        none, or none that was finished."""
        if not self._position.exists():
            return None
        try:
            found = json.loads(self._position.read_text(encoding="utf-8"))
            return found["state"] if found["of_step"] == step else None
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self._position} is damaged ({error}): remove it, the stream goes on from the checkpoint before."
            ) from error
