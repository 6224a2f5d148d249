"""Loss functions of sequential recommendation, each under its own name."""

from mmrec_jax.objectives.losses import (
    MASKED,
    OBJECTIVES,
    ObjectiveConfig,
    gbce_loss,
    in_batch_correction,
    log_popularity,
    sampled_softmax_loss,
    softmax_loss,
    uniform_negatives,
)

__all__ = [
    "MASKED",
    "OBJECTIVES",
    "ObjectiveConfig",
    "gbce_loss",
    "in_batch_correction",
    "log_popularity",
    "sampled_softmax_loss",
    "softmax_loss",
    "uniform_negatives",
]
