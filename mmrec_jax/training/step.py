"""The one place where training steps are jitted, donated and counted."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax import slots
from mmrec_jax.errors import TrainingError
from mmrec_jax.training.compilations import process_counter
from mmrec_jax.training.optimizers import parameter_groups
from mmrec_jax.training.pages import keep_freed_pages, release_freed_pages
from mmrec_jax.training.placement import OneDevice, Placement
from mmrec_jax.training.task import Task
from mmrec_jax.training.trees import host_copy, named_leaves, placed
from mmrec_jax.types import Params


@struct.dataclass
class Window:
    """Sums of the step's metrics since they were last fetched, kept on the device so that no step waits for
    the host.

    Attributes:
        sums: metric -> sum over steps, in the metric's shape.
        steps: how many steps that were.
    """

    sums: dict[str, Float[Array, ...]]
    steps: Int[Array, ""]


@struct.dataclass
class Health:
    """The first step whose loss was not finite, and where that came from.

    From that step on the parameters stand still, so that they show what they were when it began.

    Attributes:
        first_bad_step: -1 while every loss was finite.
        gradients: which gradients (in the order of the parameters) of that step were not finite.
    """

    first_bad_step: Int[Array, ""]
    gradients: Bool[Array, " parameter"]


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


class Programs:
    """One function, compiled for each of the shapes it is called with, and nothing else kept.

    `jax.jit` keeps, beside each program, all that it was made of: for the main job's step as much memory again.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self._function, self._options = function, options
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def has(self, shapes: Any) -> bool:
        """Whether the program for these shapes is there."""
        return shapes in self._compiled

    def compiled(self, shapes: Any, *arguments: Any) -> jax.stages.Compiled:
        """The program for arguments that `shapes` tells from others; compiled on the first call."""
        if shapes not in self._compiled:
            jitted: Any = jax.jit(self._function, **self._options)
            # Tracing may move constants to the device; a program that is compiled may not move anything.
            with jax.transfer_guard("allow"):
                self._compiled[shapes] = jitted.lower(*arguments).compile()
            jitted.clear_cache()
        return self._compiled[shapes]

    def __call__(self, shapes: Any, *arguments: Any) -> Any:
        """Runs it."""
        return self.compiled(shapes, *arguments)(*arguments)


_MOST_QUEUED = {"cpu": 1}
"""Steps that may be queued before the host waits for the first of them, by backend; 2 on all others.

A queued step holds its memory already. On a CPU the update of a step is time enough to queue the next one.
"""


class TrainStep:
    """A compiled step of one task: `state, batch -> state`.

    The random key of a step is a fixed key folded with the step's number, so that a resumed run draws what an
    undisturbed one draws. The state is donated: a state that was passed in must not be used again.
    """

    def __init__(
        self,
        task: Task,
        optimizer: optax.GradientTransformation,
        seed: int,
        ema_decay: float = 0.0,
        gradient_norm: bool = False,
        placement: Placement | None = None,
    ):
        keep_freed_pages()
        self._task = task
        self._placement = placement or OneDevice()
        self._optimizer = optimizer
        self._ema_decay = ema_decay
        self._gradient_norm = gradient_norm
        self._key = self._step_key(seed)
        self._compiled = process_counter()
        # Three programs. Looked-up rows are kept from being looked up again wherever they are read (`Task.inputs`), and
        # the update, a program of many small parts, is compiled once and not for every shape of a batch.
        self._inputs = Programs(self._read)
        self._gradients = Programs(self._differentiate)
        self._updated = Programs(self._update, donate_argnums=0)
        self._running: collections.deque[Array] = collections.deque()
        self._most_queued = _MOST_QUEUED.get(jax.default_backend(), 2)
        self.recompilations = 0

    def begin(self, optimizer: optax.GradientTransformation, seed: int) -> None:
        """Makes ready for another training of the same task with what is compiled; the optimizer must be one whose
        update is the same function."""
        self._optimizer, self._key, self.recompilations = optimizer, self._step_key(seed), 0
        self._running.clear()

    def _step_key(self, seed: int) -> Array:
        """The key that steps fold their number into, where they read it."""
        key = seed_keys(seed)[1]
        return jax.random.wrap_key_data(self._placement.state(np.asarray(jax.random.key_data(key))))

    def init(self, params: Params, frozen: Any, batch: Any) -> TrainState:
        """The state before the first step; `batch` is only looked at for the names of the task's metrics."""
        # By way of the host: copies that are safe to donate, without the weak types that would compile a
        # second step.
        params = jax.device_put(host_copy(self._placement.readable(params)))
        inputs = _shapes_given(self._task.inputs, frozen, batch, self._key)
        _, metrics = _shapes_given(self._task.loss, params, frozen, inputs, self._key)
        own: dict[str, tuple[int, ...]] = dict.fromkeys(["loss", *["gradient_norm"] * self._gradient_norm], ())
        sound = jnp.zeros(len(jax.tree.leaves(params)), bool)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            optimizer=self._optimizer.init(params),
            average=jax.tree.map(jnp.copy, params) if self._ema_decay else None,
            window=jax.device_put(_empty_window(own | {name: value.shape for name, value in metrics.items()})),
            health=Health(jnp.full((), -1, jnp.int32), sound),
        )
        return state if isinstance(self._placement, OneDevice) else self._placed(state)

    def _placed(self, state: TrainState) -> TrainState:
        """The state over the devices, where every step leaves it."""
        state = self._placement.state(host_copy(state))
        self._updated = Programs(
            self._update, donate_argnums=0, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state)
        )
        return state

    def warm_up(self, state: TrainState, frozen: Any, batches: Iterable[Any]) -> int:
        """Compiles the step for every given batch's shapes by a dry call on a copy; returns how many programs."""
        place = self._placement
        spare = host_copy(place.readable(state))
        _unsound(state)
        before = self._compiled.count
        for batch in batches:
            if not self._gradients.has(_shapes(batch)):
                jax.block_until_ready(self._run(place.state(spare), frozen, place.batch(batch)))
        self._running.clear()
        del spare
        gc.collect()  # what was traced refers to itself
        release_freed_pages()
        return self._compiled.count - before

    def activation_bytes(self, state: TrainState, frozen: Any, batch: Any) -> int:
        """Memory that one step of these shapes needs beside the state and `frozen`, by the compiler's own account."""
        inputs = _shapes_given(self._read, frozen, batch, state.step, self._key)
        compiled = self._gradients.compiled(_shapes(batch), state.params, frozen, inputs, state.step, self._key)
        read = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((inputs, compiled.out_info)))
        analysis = compiled.memory_analysis()
        return read + (analysis.temp_size_in_bytes if analysis is not None else 0)

    def __call__(self, state: TrainState, frozen: Any, batch: Any) -> TrainState:
        """One step, queued. A shape that warm-up did not see is compiled here, and counted."""
        before = self._compiled.count
        state = self._run(state, frozen, batch)
        if self._compiled.count != before:
            self.recompilations += 1
            shapes = [f"{name}{list(leaf.shape)}" for name, leaf in named_leaves(batch).items()]
            logging.warning(
                "The training step was compiled again after warm-up, for a batch of %s: the stream's "
                "warmup_batches() should have it.",
                ", ".join(shapes),
            )
        return state

    @property
    def functions(self) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
        """What a step runs, one after another, for whoever compiles it elsewhere: look up, differentiate, update."""
        return self._read, self._differentiate, self._update

    def _run(self, state: TrainState, frozen: Any, batch: Any) -> TrainState:
        if len(self._running) == self._most_queued:
            jax.block_until_ready(self._running.popleft())
        shapes = _shapes(batch)
        inputs = self._inputs(shapes, frozen, batch, state.step, self._key)
        metrics, gradients = self._gradients(shapes, state.params, frozen, inputs, state.step, self._key)
        self._running.append(metrics["loss"])
        return self._updated((), state, gradients, metrics)

    def _read(self, frozen: Any, batch: Any, step: Array, key: Array) -> Any:
        return self._task.inputs(frozen, batch, jax.random.fold_in(key, step))

    def _differentiate(
        self, params: Params, frozen: Any, inputs: Any, step: Array, key: Array
    ) -> tuple[dict[str, Array], Params]:
        """The step's metrics, the loss among them, and the gradients."""
        rng = jax.random.fold_in(key, step)
        (loss, metrics), gradients = jax.value_and_grad(self._task.loss, has_aux=True)(params, frozen, inputs, rng)
        return {"loss": loss, **metrics}, gradients

    def _update(self, state: TrainState, gradients: Params, metrics: dict[str, Array]) -> TrainState:
        gradients = slots.masked_gradients(gradients, state.params)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.params)
        health = _examined(state.health, state.step, metrics["loss"], gradients)
        params = jax.tree.map(
            lambda new, old: jnp.where(health.first_bad_step < 0, new, old),
            slots.held(optax.apply_updates(state.params, updates), state.params),
            state.params,
        )
        average = state.average
        if average is not None:
            average = slots.held(optax.incremental_update(params, average, 1.0 - self._ema_decay), average)
        if self._gradient_norm:
            metrics = {**metrics, "gradient_norm": optax.tree.norm(gradients)}
        window = Window(
            {name: total + metrics[name].astype(jnp.float32) for name, total in state.window.sums.items()},
            state.window.steps + 1,
        )
        return TrainState(state.step + 1, params, optimizer, average, window, health)


def seed_keys(seed: int) -> tuple[Array, Array]:
    """The keys of a run: one for initial parameters, one that each step folds its number into."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    return init_key, step_key


def _examined(health: Health, step: Array, loss: Array, gradients: Params) -> Health:
    """Looks into the gradients at the first loss that is not finite, and only then.

    A gradient that is not finite spoils its parameter, and that the next loss: so the loss alone, which costs
    nothing to look at, tells when to look further. Looking at every gradient in every step costs up to 6%. The
    parameters are not looked at here: a conditional that reads donated buffers makes XLA copy them in every step.
    """
    is_first = ~jnp.isfinite(loss) & (health.first_bad_step < 0)
    bad = jax.lax.cond(is_first, lambda: _not_finite(gradients), lambda: health.gradients)
    return Health(jnp.where(is_first, step, health.first_bad_step), bad)


def _unsound(state: TrainState) -> Bool[Array, " leaf"]:
    """Which parameters hold a value that is not finite, on all devices of a mesh."""
    return _jitted_not_finite(state.step.sharding)(state.params)


@functools.cache
def _jitted_not_finite(out: jax.sharding.Sharding) -> Callable[[Any], Array]:
    return jax.jit(_not_finite, out_shardings=out if isinstance(out, jax.sharding.NamedSharding) else None)


def _not_finite(tree: Any) -> Bool[Array, " leaf"]:
    """Which leaves hold a value that is not finite."""
    return jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def _shapes_given(function: Callable[..., Any], *arguments: Any) -> Any:
    """`jax.eval_shape`, which keeps what it traced of each function for as long as that lives or longer; this keeps
    nothing."""
    jitted: Any = jax.jit(lambda *given: function(*given))
    shapes = jitted.eval_shape(*arguments)
    jitted.clear_cache()
    return shapes


def _shapes(batch: Any) -> tuple:
    """What decides which compiled program a batch needs."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _empty_window(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """A `Window` of zeros on the host, for metrics of these shapes."""
    sums: Any = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    steps: Any = np.zeros((), np.int32)
    return Window(sums, steps)


def fetch_window(state: TrainState) -> tuple[TrainState, dict[str, np.ndarray], int]:
    """Sums of the metrics since the last fetch, over how many steps, and the state with an empty window."""
    window = jax.device_get(state.window)
    sums = {name: np.asarray(value, np.float64) for name, value in window.sums.items()}
    zeros = _empty_window({name: value.shape for name, value in sums.items()})
    empty = jax.tree.map(lambda old, zero: placed(zero, old.sharding), state.window, zeros)
    return dataclasses.replace(state, window=empty), sums, int(window.steps)


def check_finite(state: TrainState, groups: tuple[tuple[str, float], ...], batches_per_epoch: int) -> None:
    """Aborts a run whose loss was not finite at any step so far, or whose parameters are not now.

    Raises:
        TrainingError: names the first such step, the parameter groups and parameters.
    """
    health, bad_now = jax.device_get((state.health, _unsound(state)))
    step = int(health.first_bad_step)
    if step < 0 and not bad_now.any():
        return

    def told(bad) -> str:
        return _by_group(state.params, bad.tolist(), groups)

    if step < 0:
        step = int(jax.device_get(state.step)) - 1
        what = f"parameters are not finite though the loss still is: {told(bad_now)}"
    elif bad_now.any():
        what = (
            "the loss is not finite, because the step before left parameters that are not (a gradient that is not "
            f"finite): {told(bad_now)}"
        )
    else:
        what = f"the loss is not finite though all parameters were; its gradient spoils {told(health.gradients)}"
    raise TrainingError(
        f"Step {step + 1} (epoch {step // batches_per_epoch + 1}): {what}. The run was stopped before this state was "
        "saved; earlier checkpoints are intact. Lower the learning rate of that group, set training.clip_norm or "
        "training.warmup_steps, or check the inputs for values that are not finite."
    )


def _by_group(params: Params, bad: list[bool], groups: tuple[tuple[str, float], ...]) -> str:
    """The bad parameters by top-level name and learning-rate group."""
    group_of = parameter_groups(params, groups)
    members: dict[str, list[str]] = {}
    for name, is_bad in zip(named_leaves(params), bad, strict=True):
        if is_bad:
            group = f"{name.split('/')[0]} (learning-rate group {group_of[name]})"
            members.setdefault(group, []).append(name)
    return "; ".join(f"{group}: {len(names)} parameters, first {names[0]}" for group, names in members.items())
