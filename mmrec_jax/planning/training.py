"""A training step's programs, compiled for a topology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mmrec_jax.planning.compile import Program, compile_program
from mmrec_jax.planning.memory import tree_bytes
from mmrec_jax.planning.shapes import RunShapes
from mmrec_jax.training.optimizers import build_optimizer
from mmrec_jax.training.step import Health, TrainState, TrainStep, Window

BATCHES_PER_EPOCH = 1000
"""What a learning-rate schedule is made for: it changes constants of a program, and no shapes."""


@dataclass(frozen=True)
class StepPlan:
    """What a training step needs on one chip.

    Attributes:
        programs: in the order in which a step runs them, as far as the compiler made them.
        groups: bytes by group: `store`, `backbones`, `params`, `optimiser`, `average`, `batch`, `looked up`,
            `gradients`, `temporary`, `code`.
    """

    programs: list[Program]
    groups: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes of one chip at most."""
        return sum(self.groups.values())

    @property
    def refused(self) -> str:
        """What the compiler said of the program that it did not make."""
        return next((program.refused for program in self.programs if program.refused), "")


def plan_step(run: RunShapes) -> StepPlan:
    """Compiles the programs of a step, each for what the one before gives."""
    training = run.config.training
    optimizer = build_optimizer(training, run.params, BATCHES_PER_EPOCH)
    step = TrainStep(run.task, optimizer, training.seed, training.ema_decay, training.clip_norm > 0)
    key, number = run.whole(jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((), jnp.int32))))
    read, differentiate, update = step.functions
    programs: list[Program] = []

    def compiled(name: str, function: Any, *arguments: Any, **options: Any) -> Any:
        programs.append(compile_program(name, function, arguments, run.topology, **options))
        return programs[-1].outputs

    inputs = compiled("look up", read, run.frozen, run.batch, number, key)
    made, state = None, None
    if inputs is not None:
        made = compiled("gradients", differentiate, run.params, run.frozen, inputs, number, key)
    if made is not None:
        metrics, gradients = made
        state = _state(run, optimizer, metrics, training.ema_decay > 0, training.clip_norm > 0)
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        compiled("update", update, state, gradients, metrics, donate_argnums=0, out_shardings=where)
    return StepPlan(programs, _groups(run, optimizer, programs, inputs, made))


def _state(run: RunShapes, optimizer: Any, metrics: dict[str, Any], averaged: bool, norm: bool) -> TrainState:
    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    sums = {name: array(value.shape, jnp.float32) for name, value in metrics.items()}
    if norm:
        sums["gradient_norm"] = array((), jnp.float32)
    whole = array((), jnp.int32)
    return run.state(
        TrainState(
            step=whole,
            params=run.params,
            optimizer=jax.eval_shape(optimizer.init, run.params),
            average=run.params if averaged else None,
            window=Window(sums, whole),
            health=Health(whole, array((len(jax.tree.leaves(run.params)),), jnp.bool_)),
        )
    )


def _groups(run: RunShapes, optimizer: Any, programs: list[Program], inputs: Any, made: Any) -> dict[str, float]:
    """Bytes of a chip by what they are for. What lies there all the time, and the most that a program adds to it."""
    live = run.frozen.live
    state = run.state(jax.eval_shape(optimizer.init, run.params))
    averaged = run.params if run.config.training.ema_decay else None
    groups = {
        "store": tree_bytes((run.frozen.states, run.frozen.log_popularity)),
        "backbones": tree_bytes(live.backbones if live is not None else ()),
        "params": tree_bytes(run.params),
        "optimiser": tree_bytes(state),
        "average": tree_bytes(averaged),
        # One in use, one that was sent ahead.
        "batch": 2 * tree_bytes(run.batch),
        # A queued step has looked its rows up before the one that runs is done with its own.
        "looked up": 2 * tree_bytes(inputs),
        "gradients": tree_bytes(made),
        "temporary": max((program.memory.temporary for program in programs), default=0.0),
        "code": sum(program.memory.code for program in programs),
    }
    return {name: float(size) for name, size in groups.items()}
