"""The one place where training steps are jitted, donated and counted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.errors import TrainingError
from mmrec_jax.training.compilations import process_counter
from mmrec_jax.training.optimizers import parameter_groups
from mmrec_jax.training.task import Task
from mmrec_jax.training.trees import host_copy, named_leaves
from mmrec_jax.types import Params


@struct.dataclass
class Window:
    """Sums of the step's metrics since they were last fetched, kept on the device so that no step waits for
    the host.

    Attributes:
        sums: metric -> sum over steps.
        steps: how many steps that were.
    """

    sums: dict[str, Float[Array, ""]]
    steps: Int[Array, ""]


@struct.dataclass
class Health:
    """The first step whose loss or gradients were not finite.

    Attributes:
        first_bad_step: -1 while all was finite.
        bad: at that step, whether the loss (entry 0) and the gradient of each parameter (in the tree's order)
            were not finite.
    """

    first_bad_step: Int[Array, ""]
    bad: Bool[Array, " loss_and_parameter"]


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: steps taken.
        params: what is trained.
        optimizer: optax state.
        average: exponential moving average of `params`; None where it is off.
        window: metrics since the last fetch.
        health: whether all values were finite so far.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: Any
    average: Params | None
    window: Window
    health: Health

    @property
    def evaluated(self) -> Params:
        """The parameters to validate and to serve: the average where there is one."""
        return self.params if self.average is None else self.average


class TrainStep:
    """A compiled step of one task: `state, batch -> state`.

    The random key of a step is a fixed key folded with the step's number, so that a resumed run draws what an
    undisturbed one draws. The state is donated: a state that was passed in must not be used again.
    """

    def __init__(self, task: Task, optimizer: optax.GradientTransformation, seed: int, ema_decay: float = 0.0):
        self._task = task
        self._optimizer = optimizer
        self._ema_decay = ema_decay
        init_key, self._key = jax.random.split(jax.random.key(seed))
        self.init_key = init_key
        self._compiled = process_counter()
        self._jitted = jax.jit(self._step, donate_argnums=0)
        self._known: set[tuple] = set()
        self.recompilations = 0

    def init(self, params: Params, frozen: Any, batch: Any) -> TrainState:
        """The state before the first step; `batch` is only looked at for the names of the task's metrics."""
        # By way of the host: copies that are safe to donate, without the weak types that would compile a
        # second step.
        params = jax.device_put(host_copy(params))
        _, metrics = jax.eval_shape(self._task.loss, params, frozen, batch, self._key)
        for name, value in metrics.items():
            if value.shape != ():
                raise TrainingError(
                    f"Metric {name!r} of task {self._task.name} has shape {value.shape}: make it a scalar."
                )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            optimizer=self._optimizer.init(params),
            average=jax.tree.map(jnp.copy, params) if self._ema_decay else None,
            window=_empty_window(["loss", "gradient_norm", *metrics]),
            health=Health(jnp.full((), -1, jnp.int32), jnp.zeros(1 + len(jax.tree.leaves(params)), bool)),
        )

    def warm_up(self, state: TrainState, frozen: Any, batches: Iterable[Any]) -> int:
        """Compiles the step for every given batch's shapes by a dry call on a copy; returns how many
        programs."""
        before = self._compiled.count
        spare = host_copy(state)
        for batch in batches:
            if _shapes(batch) not in self._known:
                self._known.add(_shapes(batch))
                self._jitted(jax.device_put(spare), frozen, jax.device_put(batch), self._key)
        return self._compiled.count - before

    def __call__(self, state: TrainState, frozen: Any, batch: Any) -> TrainState:
        """One step; returns as soon as it is queued. A shape that warm-up did not see compiles here, and is
        counted."""
        before = self._compiled.count
        known = _shapes(batch) in self._known
        # Tracing may move constants to the device; a step that is compiled already may not move anything.
        with contextlib.nullcontext() if known else jax.transfer_guard("allow"):
            state = self._jitted(state, frozen, batch, self._key)
        if self._compiled.count != before:
            self._known.add(_shapes(batch))
            self.recompilations += 1
            shapes = [f"{name}{list(leaf.shape)}" for name, leaf in named_leaves(batch).items()]
            logging.warning(
                "The training step was compiled again after warm-up, for a batch of %s: the stream's "
                "warmup_batches() should have it.",
                ", ".join(shapes),
            )
        return state

    def _step(self, state: TrainState, frozen: Any, batch: Any, key: Array) -> TrainState:
        rng = jax.random.fold_in(key, state.step)
        (loss, metrics), gradients = jax.value_and_grad(self._task.loss, has_aux=True)(state.params, frozen, batch, rng)
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradients)])
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1.0 - self._ema_decay)
        metrics = {"loss": loss, "gradient_norm": jnp.sqrt(jnp.sum(squares)), **metrics}
        window = Window(
            {name: total + metrics[name].astype(jnp.float32) for name, total in state.window.sums.items()},
            state.window.steps + 1,
        )
        # A sum of squares is finite only where every entry is: one pass that the gradient norm needs anyway.
        bad = ~jnp.isfinite(jnp.concatenate([loss.astype(jnp.float32)[None], squares]))
        first = state.health.first_bad_step < 0
        health = Health(
            jnp.where(first & bad.any(), state.step, state.health.first_bad_step),
            jnp.where(first, bad, state.health.bad),
        )
        return TrainState(state.step + 1, params, optimizer, average, window, health)


def _shapes(batch: Any) -> tuple:
    """What decides which compiled program a batch needs."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _empty_window(names: Iterable[str]) -> Window:
    sums, steps = jax.device_put(({name: np.zeros((), np.float32) for name in names}, np.zeros((), np.int32)))
    return Window(sums, steps)


def fetch_window(state: TrainState) -> tuple[TrainState, dict[str, float], int]:
    """Sums of the metrics since the last fetch, over how many steps, and the state with an empty window."""
    window = jax.device_get(state.window)
    sums = {name: float(value) for name, value in window.sums.items()}
    return dataclasses.replace(state, window=_empty_window(sums)), sums, int(window.steps)


def check_finite(state: TrainState, groups: tuple[tuple[str, float], ...], batches_per_epoch: int) -> None:
    """Aborts a run whose loss or gradients were not finite at any step so far.

    Raises:
        TrainingError: names the first such step, whether the loss was finite, the parameter groups and
            parameters.
    """
    health = host_copy(state.health)
    step = int(health.first_bad_step)
    if step < 0:
        return
    loss_is_bad, *bad = health.bad.tolist()
    group_of = parameter_groups(state.params, groups)
    names = [name for name, is_bad in zip(named_leaves(state.params), bad, strict=True) if is_bad]
    by_group: dict[str, list[str]] = {}
    for name in names:
        by_group.setdefault(f"{name.split('/')[0]} (learning-rate group {group_of[name]})", []).append(name)
    where = "; ".join(f"{group}: {len(members)} parameters, first {members[0]}" for group, members in by_group.items())
    raise TrainingError(
        f"Step {step + 1} (epoch {step // batches_per_epoch + 1}): the loss was "
        f"{'not ' if loss_is_bad else ''}finite{f', gradients not finite in {where}' if where else ''}. "
        "The run was stopped before this state was saved; earlier checkpoints are intact. Lower the learning "
        "rate of that group, set training.clip_norm or training.warmup_steps, or check the inputs for values "
        "that are not finite."
    )
