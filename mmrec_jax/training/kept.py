"""Compiled steps that outlive a call of `fit`: for trainings of one task on one data set after another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from mmrec_jax.training.config import TrainingConfig
from mmrec_jax.training.placement import OneDevice, Placement
from mmrec_jax.training.step import TrainStep
from mmrec_jax.training.task import Task
from mmrec_jax.types import Params

_ELSEWHERE = {"batch_size", "patience", "keep", "log_every", "eval_every", "eval_from", "checkpoint_every_steps",
              "compilation_cache_dir", "tensorboard", "learning_curve", "progress", "monitor", "monitor_mode",
              "seed"}  # fmt: skip
"""Settings that no compiled program depends on. (The seed reaches it as an argument.)"""


class KeptSteps:
    """Steps by what they were compiled for, which `fit` makes and finds here.

    A step is used again for the same task, settings and shapes of parameters; batches of other shapes are compiled
    beside those that are there.
    """

    def __init__(self) -> None:
        self._steps: dict[Any, TrainStep] = {}

    def step(
        self,
        task: Task,
        config: TrainingConfig,
        params: Params,
        optimizer: optax.GradientTransformation,
        placement: Placement | None = None,
    ) -> TrainStep:
        """The step for a training, compiled or not.

        Args:
            task: the same object as before for the same programs.
            config: how to train.
            params: to be trained; their shapes count.
            optimizer: of these settings; an earlier one's programs serve it, so it must keep in its state whatever
                differs (`build_optimizer(..., shared=True)`).
            placement: as `TrainStep`'s.
        """
        settings = tuple((k, v) for k, v in dataclasses.asdict(config).items() if k not in _ELSEWHERE)
        leaves, structure = jax.tree.flatten(params)
        alone = placement is None or isinstance(placement, OneDevice)
        key = (
            id(task),
            None if alone else id(placement),
            settings,
            structure,
            tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves),
        )
        if key in self._steps:
            self._steps[key].begin(optimizer, config.seed)
        else:
            clips = config.clip_norm > 0
            self._steps[key] = TrainStep(
                task, optimizer, config.seed, config.ema_decay, gradient_norm=clips, placement=placement
            )
        return self._steps[key]
