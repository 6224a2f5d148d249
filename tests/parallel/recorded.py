"""The command line of the library, which writes down the users of each training step that this process takes.

python -m tests.parallel.recorded FILE FLAGS...
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from mmrec_jax import main
from mmrec_jax.training.step import TrainStep


def record(path: str) -> None:
    """Each step appends a line: its number, and the users of each part of the batch that is on devices of this process.

    The line is written before the step is queued, so that no step of a checkpoint can lack it.
    """
    lines = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    take, taken = TrainStep.__call__, []

    def recorded(self, state, frozen, batch):
        with jax.transfer_guard("allow"):
            taken.append(taken[-1] + 1 if taken else int(state.step))
            parts = {shard.index[0].start or 0: shard.data for shard in batch.users.addressable_shards}
            users = {start: np.asarray(part).tolist() for start, part in parts.items()}
        os.write(lines, json.dumps({"step": taken[-1], "users": users}).encode() + b"\n")
        return take(self, state, frozen, batch)

    TrainStep.__call__ = recorded


@dataclass
class Attempt:
    """What the processes of one start wrote down.

    Attributes:
        first, last: steps, by number; -1 where none was taken.
        users: step -> row of the batch -> user, of all processes.
    """

    first: int
    last: int
    users: dict[int, dict[int, int]]


def read(folder: Path) -> Attempt:
    """The files of one start; no two processes may have trained the same row of a step."""
    users: dict[int, dict[int, int]] = defaultdict(dict)
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            found = json.loads(line)
            for start, part in found["users"].items():
                rows = {int(start) + place: user for place, user in enumerate(part)}
                assert not rows.keys() & users[found["step"]].keys(), (path, found)
                users[found["step"]] |= rows
    return Attempt(min(users, default=-1), max(users, default=-1), dict(users))


def trained(attempts: list[Attempt]) -> dict[int, dict[int, int]]:
    """The steps that made the last state: what was taken after a checkpoint that others went on from does not count."""
    steps: dict[int, dict[int, int]] = {}
    for attempt in attempts:
        if attempt.users:
            steps = {step: users for step, users in steps.items() if step < attempt.first} | attempt.users
    return steps


if __name__ == "__main__":
    record(sys.argv[1])
    sys.argv = ["mmrec_jax", *sys.argv[2:]]
    main.run()
