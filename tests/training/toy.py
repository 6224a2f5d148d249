"""A small task and stream for the training tests; run as a script it is the program that the kill tests kill.

python toy.py WORKDIR '{"epochs": 3}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mmrec_jax.training import TrainingConfig, fit
from mmrec_jax.training.trees import host_copy, named_leaves


@struct.dataclass
class Batch:
    """Rows of the table and what to predict for them."""

    rows: jax.Array
    targets: jax.Array


class ToyStream:
    """Endless batches, reshuffled each epoch; every third batch has another shape."""

    def __init__(self, batches_per_epoch: int = 7, seed: int = 0, poisoned_step: int | None = None):
        self.batches_per_epoch = batches_per_epoch
        self._seed, self._taken, self._poisoned = seed, 0, poisoned_step

    def _batch(self, number: int, size: int) -> Batch:
        rng = np.random.default_rng([self._seed, number])
        rows = rng.integers(0, 32, size).astype(np.int32)
        targets = np.sin(rows[:, None] * np.arange(1, 5)).astype(np.float32)
        if number == self._poisoned:
            targets[0, 0] = np.nan
        return Batch(rows, targets)

    def __next__(self) -> Batch:
        number = self._taken
        self._taken += 1
        return self._batch(number, 24 if number % 3 == 2 else 16)

    def get_state(self) -> dict:
        return {"taken": self._taken}

    def set_state(self, state: dict) -> None:
        self._taken = state["taken"]

    def warmup_batches(self):
        return [self._batch(0, 16), self._batch(0, 24)]


class ToyTask:
    """Regression on rows of a frozen table, with dropout so that the random key matters."""

    name = "toy"

    def __init__(self, width: int = 8):
        self.width = width

    def init(self, rng, frozen):
        down, up = jax.random.split(rng)
        width = frozen.shape[1]
        return {
            "items": {"down": {"kernel": jax.random.normal(down, (width, self.width)) * 0.3}},
            "users": {"up": {"kernel": jax.random.normal(up, (self.width, 4)) * 0.3, "bias": jnp.zeros(4)}},
        }

    def _predict(self, params, x):
        hidden = jnp.tanh(x @ params["items"]["down"]["kernel"])
        return hidden @ params["users"]["up"]["kernel"] + params["users"]["up"]["bias"]

    def inputs(self, frozen, batch, rng):
        return frozen[batch.rows], batch

    def loss(self, params, frozen, inputs, rng):
        x, batch = inputs
        x = x * jax.random.bernoulli(rng, 0.9, x.shape)
        error = jnp.mean((self._predict(params, x) - batch.targets) ** 2)
        return error, {"batch_size": jnp.float32(batch.rows.shape[0])}

    def validate(self, params, frozen):
        rows = np.arange(32)
        targets = np.sin(rows[:, None] * np.arange(1, 5)).astype(np.float32)
        return {"score": -float(jnp.mean((self._predict(params, frozen) - targets) ** 2))}


def table() -> np.ndarray:
    """The frozen table of 32 rows."""
    return np.random.default_rng(7).normal(size=(32, 6)).astype(np.float32)


def config(**changes) -> TrainingConfig:
    """Settings that suit the toy."""
    settings = {"epochs": 3, "learning_rate": 1e-2, "monitor": "score", "log_every": 3, "progress": False,
                "tensorboard": False, "learning_curve": False}  # fmt: skip
    return TrainingConfig(**settings | changes)


def train(
    workdir: Path, *, stream=None, task=None, run=None, warm_start=None, kept=None, stop=lambda: False, **changes
):
    """A run of the toy."""
    return fit(
        task or ToyTask(), table(), stream or ToyStream(), config(**changes), workdir,
        run or {"system": "toy", "width": 8}, warm_start, kept, stop=stop,
    )  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = train(folder, **json.loads(sys.argv[2]))
    leaves = {name: leaf.tobytes().hex() for name, leaf in named_leaves(host_copy(result.params)).items()}
    summary = {"best": leaves, "best_step": result.best_step, "step": result.step}
    (folder / "summary.json").write_text(json.dumps(summary, sort_keys=True))
