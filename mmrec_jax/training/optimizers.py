"""Optax chains with a learning rate for each group of parameters.

Measured by `bench/optimizer_forms.py` on two CPU cores, 98 leaves and 1.6 million parameters: Adam leaf by
leaf takes 1.8 to 2.2 ms, `optax.flatten(adam)` 2.6 to 3.0 ms and one flat parameter vector 1.8 to 2.3 ms;
inside a whole training step the three are alike. Hence the plain form, leaf by leaf.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mmrec_jax.errors import ConfigError
from mmrec_jax.training.config import TrainingConfig
from mmrec_jax.training.trees import like, named_leaves
from mmrec_jax.types import Params

DEFAULT_GROUP = "default"


def parameter_groups(params: Params, groups: Sequence[tuple[str, float]]) -> dict[str, str]:
    """The pattern that each parameter's path begins with, or `default`; path -> group.

    Raises:
        ConfigError: a pattern that is no regular expression, that matches no parameter, or that shares a
            parameter with another pattern. All of them are named at once.
    """
    names = list(named_leaves(params))
    owner: dict[str, list[str]] = {name: [] for name in names}
    problems = []
    for pattern, _ in groups:
        try:
            matches = [name for name in names if re.match(pattern, name)]
        except re.error as error:
            problems.append(f"training.groups: {pattern!r} is no regular expression ({error}).")
            continue
        if not matches:
            near = ", ".join(difflib.get_close_matches(pattern, names, 3, cutoff=0))
            problems.append(
                f"training.groups: {pattern!r} matches the beginning of no parameter path; near it are {near}."
            )
        for name in matches:
            owner[name].append(pattern)
    for name, patterns in owner.items():
        if len(patterns) > 1:
            problems.append(f"training.groups: parameter {name} is matched by {patterns}; keep one of them.")
    if problems:
        raise ConfigError("\n".join(problems))
    return {name: patterns[0] if patterns else DEFAULT_GROUP for name, patterns in owner.items()}


class EpochScheduleState(NamedTuple):
    """Steps taken, and how many make an epoch: an array, so that trainings on other data share the program."""

    taken: Int[Array, ""]
    batches_per_epoch: Int[Array, ""]


def schedule_factor(config: TrainingConfig, batches_per_epoch: int | Int[Array, ""]) -> optax.Schedule | None:
    """Share of the learning rates at each step (counted from 0); None where it is always 1."""

    def constant(count):
        return 1.0

    def cosine(count):
        steps = jnp.maximum(config.epochs * batches_per_epoch - config.warmup_steps, 1)
        share = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count, steps) / steps))
        return (1 - config.final_fraction) * share + config.final_fraction

    def exponential(count):
        return jnp.maximum(config.decay ** jnp.floor(count / batches_per_epoch), config.final_fraction)

    after = {"constant": constant, "cosine": cosine, "exponential": exponential}[config.schedule]
    if config.warmup_steps:
        return optax.join_schedules(
            [optax.linear_schedule(0.0, 1.0, config.warmup_steps), after], [config.warmup_steps]
        )
    return None if config.schedule == "constant" else after


def build_optimizer(
    config: TrainingConfig, params: Params, batches_per_epoch: int, shared: bool = False
) -> optax.GradientTransformation:
    """The chain: clip by the global norm, Adam, decoupled weight decay, learning rate of the parameter's
    group.

    With one group, a constant schedule and nothing else switched on it equals `optax.adam(learning_rate)`.

    Args:
        config: what to build.
        params: to be trained.
        batches_per_epoch: steps of an epoch.
        shared: keep these in the state and not in the program, which then serves other numbers too.

    Raises:
        ConfigError: from `parameter_groups`.
    """
    groups = parameter_groups(params, config.groups)
    rate_of = {pattern: float(rate) for pattern, rate in config.groups} | {DEFAULT_GROUP: config.learning_rate}
    rates = like(params, {name: rate_of[group] for name, group in groups.items()})
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=_matrices))
    parts.append(_scale_by_rates(rates, config, batches_per_epoch, shared))
    return optax.chain(*parts)


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


def _scale_by_rates(
    rates: Params, config: TrainingConfig, batches_per_epoch: int, shared: bool
) -> optax.GradientTransformation:
    """Multiplies each update by minus its learning rate times the schedule's factor."""
    fixed = schedule_factor(config, batches_per_epoch)

    def init(params):
        if fixed is None:
            return optax.EmptyState()
        count = jnp.zeros([], jnp.int32)
        if shared:
            return EpochScheduleState(count, jnp.asarray(batches_per_epoch, jnp.int32))
        return optax.ScaleByScheduleState(count=count)

    def update(updates, state, params=None):
        if fixed is None:
            return jax.tree.map(lambda rate, u: -rate * u, rates, updates), state
        if shared:
            factor = schedule_factor(config, state.batches_per_epoch)
            assert factor is not None
            share, state = factor(state.taken), state._replace(taken=optax.safe_increment(state.taken))
        else:
            share, state = fixed(state.count), optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
        return jax.tree.map(lambda rate, u: (-rate * share).astype(u.dtype) * u, rates, updates), state

    return optax.GradientTransformation(init, update)
