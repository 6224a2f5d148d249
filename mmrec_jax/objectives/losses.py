"""Losses over candidates that a batch shares: in-batch, full and sampled softmax, BCE and gBCE.

All take the same arguments: user vectors at each position, the vectors of the candidates, and where the targets and
the users' own histories lie among the candidates. They differ in the candidates (`ObjectiveConfig.candidates`) and in
the function of the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.errors import ConfigError

MASKED = -1e4  # the logit of a candidate that must not count, as in IISAN's code

OBJECTIVES = ("in_batch_softmax", "full_softmax", "sampled_softmax", "bce", "gbce")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which loss, and over which candidates.

    Attributes:
        kind: one of `OBJECTIVES`.
        negatives: items drawn uniformly for a batch, shared by its positions; of `sampled_softmax`, `bce`, `gbce`.
        log_q: exponent of the training frequency in the logQ correction of `in_batch_softmax` (1 is the paper's, 0
            turns it off).
        mask_history: a user's own other items are no negatives.
        calibration: t of gBCE (Petrov & Macdonald, RecSys 2023, arXiv 2308.07192, section 5): 0 is plain BCE, 1 fully
            calibrated.
    """

    kind: str = "in_batch_softmax"
    negatives: int = 256
    log_q: float = 1.0
    mask_history: bool = True
    calibration: float = 0.75

    def __post_init__(self):
        if self.kind not in OBJECTIVES:
            raise ConfigError(f"objective.kind={self.kind!r}: choose one of {', '.join(OBJECTIVES)}.")
        if self.negatives < 1:
            raise ConfigError(f"objective.negatives={self.negatives}: at least 1 is needed.")
        if not 0 <= self.calibration <= 1:
            raise ConfigError(f"objective.calibration={self.calibration}: must lie in [0, 1].")

    @property
    def candidates(self) -> str:
        """`batch` (its distinct items), `catalogue`, or `sampled` (drawn uniformly, targets apart)."""
        return {"in_batch_softmax": "batch", "full_softmax": "catalogue"}.get(self.kind, "sampled")


def in_batch_correction(
    counts: Int[Array, " candidate"],
    log_popularity: Float[Array, " candidate"],
    log_q: float,
) -> tuple[Float[Array, " candidate"], Float[Array, " candidate"]]:
    """Corrections of the logits of negatives and of targets (papers.md 1.0, item 9).

    The paper's loss has one column for every occurrence of an item in the batch. One column for each distinct item
    with log(count) added to its logit is the same sum. A target's own column counts once: its other occurrences are
    masked, because it is in the user's own sequence.
    """
    correction = -log_q * log_popularity
    return correction + jnp.log(jnp.maximum(counts, 1)), correction


def softmax_loss(
    logits: Float[Array, "*row candidate"],
    targets: Int[Array, "*row"],
    allowed: Bool[Array, "*#row candidate"],
    negative_bias: Float[Array, " candidate"] | float = 0.0,
    target_bias: Float[Array, " candidate"] | float = 0.0,
) -> Float[Array, "*row"]:
    """Cross entropy of each row's target against itself and its allowed candidates.

    Args:
        logits: scores of all candidates.
        targets: index of each row's target among the candidates.
        allowed: which candidates are negatives of the row; the target need not be among them.
        negative_bias: added to a candidate's logit where it is a negative.
        target_bias: added to a candidate's logit where it is the target.
    """
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    corrected = jnp.where(is_target, logits + target_bias, jnp.where(allowed, logits + negative_bias, MASKED))
    positive = jnp.sum(jnp.where(is_target, corrected, 0.0), axis=-1)
    return jax.nn.logsumexp(corrected, axis=-1) - positive


def sampled_softmax_loss(
    positive: Float[Array, "*row"],
    negative: Float[Array, "*row candidate"],
    allowed: Bool[Array, "*#row candidate"],
) -> Float[Array, "*row"]:
    """Cross entropy of a positive against sampled negatives (uniform draws need no correction)."""
    return (
        jax.nn.logsumexp(jnp.concatenate([positive[..., None], jnp.where(allowed, negative, MASKED)], axis=-1), axis=-1)
        - positive
    )


def gbce_loss(
    positive: Float[Array, "*row"],
    negative: Float[Array, "*row candidate"],
    allowed: Bool[Array, "*#row candidate"],
    catalogue_size: int,
    calibration: float,
) -> Float[Array, "*row"]:
    """Generalised binary cross entropy (gSASRec, arXiv 2308.07192, equations 9 to 11); calibration 0 is BCE.

    The positive's probability is raised to ``beta = a (t (1 - 1/a) + 1/a)`` with sampling rate
    ``a = negatives / (catalogue_size - 1)``. The sum over negatives is not divided by their number, as in the paper.
    """
    rate = min(negative.shape[-1] / max(catalogue_size - 1, 1), 1.0)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    terms = jnp.where(allowed, jax.nn.log_sigmoid(-negative), 0.0)
    return -(beta * jax.nn.log_sigmoid(positive) + jnp.sum(terms, axis=-1))


def uniform_negatives(rng: Array, count: int, catalogue_size: int) -> Int[Array, " count"]:
    """Catalogue rows 1..catalogue_size, drawn uniformly with replacement."""
    return jax.random.randint(rng, (count,), 1, catalogue_size + 1, dtype=jnp.int32)


def log_popularity(counts: Int[Array, " item"]) -> Float[Array, " item"]:
    """Log of each item's share of the training events; 0 (p = 1, as in IISAN's code) if never seen."""
    total = math.log(max(int(counts.sum()), 1))
    return jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1)) - total, 0.0).astype(jnp.float32)
