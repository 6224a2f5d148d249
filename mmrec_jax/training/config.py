"""The training part of the config."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmrec_jax.errors import ConfigError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine", "exponential")


@dataclass(frozen=True)
class TrainingConfig:
    """How a task is trained.

    Attributes:
        epochs: passes over the stream at most.
        batch_size: users a batch; read by whoever builds the stream.
        compute_dtype: `float32`, `bfloat16`, or `auto`: bfloat16 on accelerators, float32 on CPU; read by whoever
            builds the task. Parameters stay float32.
        seed: of the initial parameters and of every random choice inside a step.
        optimizer: `adam` or `adamw`.
        learning_rate: of parameters that no group names.
        groups: (pattern, learning rate) pairs. A pattern is a regular expression that must match the
            beginning of a parameter's '/'-joined path, so a plain path prefix is one too.
        beta1, beta2, epsilon: Adam's.
        weight_decay: decoupled decay of matrices (leaves of two and more axes); needs `adamw`.
        clip_norm: global gradient norm above which gradients are scaled down; 0 is off. With it, the
            norm is among the training metrics.
        schedule: `constant`, `cosine` (to `final_fraction` at the last step) or `exponential` (times `decay`
            each epoch, not below `final_fraction`); a factor on all learning rates.
        warmup_steps: steps over which the learning rates rise linearly from 0.
        decay: factor of an epoch in the exponential schedule.
        final_fraction: smallest share of the learning rates that a schedule goes down to.
        ema_decay: decay of an exponential moving average of the parameters, which is then what is validated
            and kept as best; 0 is off.
        monitor: validation metric that chooses the best parameters and stops early.
        monitor_mode: `max` or `min`.
        patience: stop after more than this many evaluations in a row without improvement; 0 never stops
            early.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        eval_from: first epoch (counted from 1) that is evaluated.
        log_every: steps between two rows of training metrics, and between two checks for values that are not
            finite.
        checkpoint_every_steps: further checkpoints inside an epoch; 0 saves at the end of each epoch only.
        keep: newest checkpoints to keep beside the best one; 2 and more survive one that turns out corrupt.
        compilation_cache_dir: directory of JAX's persistent compilation cache, or `off`. Empty leaves it as the
            process has it; the command line then uses $JAX_COMPILATION_CACHE_DIR or the user's own cache folder.
        tensorboard: write TensorBoard events.
        learning_curve: draw `learning_curve.png` at the end.
        progress: show progress on the terminal; a line an epoch where the output is no terminal.
    """

    epochs: int = 40
    batch_size: int = 64
    compute_dtype: str = "auto"
    seed: int = 0
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    groups: tuple[tuple[str, float], ...] = ()
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    decay: float = 0.95
    final_fraction: float = 0.0
    ema_decay: float = 0.0
    monitor: str = "NDCG@10"
    monitor_mode: str = "max"
    patience: int = 10
    eval_every: int = 1
    eval_from: int = 1
    log_every: int = 50
    checkpoint_every_steps: int = 0
    keep: int = 2
    compilation_cache_dir: str = ""
    tensorboard: bool = True
    learning_curve: bool = True
    progress: bool = True

    def __post_init__(self):
        problems = [
            f"training.{name}={getattr(self, name)!r}: must be {rule}."
            for name, holds, rule in _RULES
            if not holds(getattr(self, name))
        ]
        if self.weight_decay and self.optimizer != "adamw":
            problems.append(f"training.weight_decay={self.weight_decay} needs training.optimizer='adamw'.")
        for group in self.groups:
            if len(group) != 2 or not isinstance(group[0], str) or not float(group[1]) >= 0:
                problems.append(f"training.groups: {group!r} is no (pattern, learning rate of at least 0) pair.")
                continue
            try:
                re.compile(group[0])
            except re.error as error:
                problems.append(f"training.groups: {group[0]!r} is no regular expression ({error}).")
        if problems:
            raise ConfigError("\n".join(problems))


def _choice(*values):
    return lambda value: value in values, " or ".join(values)


def _range(rule, holds):
    return holds, rule


_RULES = [
    ("epochs", *_range("at least 1", lambda v: v >= 1)),
    ("batch_size", *_range("at least 1", lambda v: v >= 1)),
    ("compute_dtype", *_choice("auto", "float32", "bfloat16")),
    ("seed", *_range("from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32)),
    ("optimizer", *_choice(*OPTIMIZERS)),
    ("learning_rate", *_range("above 0", lambda v: v > 0)),
    ("beta1", *_range("in [0, 1)", lambda v: 0 <= v < 1)),
    ("beta2", *_range("in [0, 1)", lambda v: 0 <= v < 1)),
    ("epsilon", *_range("above 0", lambda v: v > 0)),
    ("weight_decay", *_range("at least 0", lambda v: v >= 0)),
    ("clip_norm", *_range("at least 0 (0 is off)", lambda v: v >= 0)),
    ("schedule", *_choice(*SCHEDULES)),
    ("warmup_steps", *_range("at least 0", lambda v: v >= 0)),
    ("decay", *_range("in (0, 1]", lambda v: 0 < v <= 1)),
    ("final_fraction", *_range("in [0, 1]", lambda v: 0 <= v <= 1)),
    ("ema_decay", *_range("in [0, 1) (0 is off)", lambda v: 0 <= v < 1)),
    ("monitor_mode", *_choice("max", "min")),
    ("patience", *_range("at least 0 (0 never stops early)", lambda v: v >= 0)),
    ("eval_every", *_range("at least 1", lambda v: v >= 1)),
    ("eval_from", *_range("at least 1", lambda v: v >= 1)),
    ("log_every", *_range("at least 1", lambda v: v >= 1)),
    ("checkpoint_every_steps", *_range("at least 0 (0 saves each epoch only)", lambda v: v >= 0)),
    ("keep", *_range("at least 1", lambda v: v >= 1)),
]
