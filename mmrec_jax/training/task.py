"""What the loop knows of the thing it trains, and of the stream it trains on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from jaxtyping import Array, Float

from mmrec_jax.types import Params


class Task(Protocol):
    """A model with its objective and its validation; it knows no loop, no mesh and no files.

    `params` is what is trained and `frozen` what is not: two separate pytrees. `frozen` reaches the compiled
    step as an argument, so that a catalogue's hidden states are not baked into the program.
    """

    @property
    def name(self) -> str:
        """Short name of the task, shown in progress and messages."""

    def init(self, rng: Array, frozen: Any) -> Params:
        """Fresh parameters: a nested dict of arrays; pure, traced by `jax.jit`."""

    def inputs(self, frozen: Any, batch: Any, rng: Array) -> Any:
        """What a step reads: the batch with the rows of `frozen` that it names; traced by `jax.jit`.

        It is compiled as a program of its own. Inside the step XLA's CPU backend fuses the look-ups into everything
        that reads them, which made the step of the main job 1.5 times as slow.
        """

    def loss(
        self, params: Params, frozen: Any, inputs: Any, rng: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ...]]]:
        """Mean loss of a batch and further metrics; pure, traced by `jax.jit`. `rng` is that of `inputs`.

        Metrics are averaged over an epoch. Scalars are written out; arrays go to the run's history alone. Of `frozen`
        it reads weights that are not looked up by rows, such as those of a backbone.
        """

    def validate(self, params: Params, frozen: Any) -> dict[str, float]:
        """Metrics on the validation split; a host function that jits what it needs inside."""


class Stream(Protocol):
    """An endless stream of training batches: pytrees of numpy arrays.

    The arrays of a batch must not be written to after they were handed out: on CPU the device may share their
    memory.
    """

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that make one epoch."""

    def __next__(self) -> Any:
        """The next batch."""

    def get_state(self) -> dict:
        """The position in the stream after the batches handed out so far, as plain JSON values."""

    def set_state(self, state: dict) -> None:
        """Goes to a position that `get_state` gave."""

    def warmup_batches(self) -> Iterable[Any]:
        """One representative batch of every shape that can occur; the position in the stream stays as it
        is."""
