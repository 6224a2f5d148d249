"""Interaction logs and catalogues: checked, filtered, split, written as ArrayRecord, read as batches."""

from mmrec_jax.data.batches import TrainingStream, training_batches
from mmrec_jax.data.config import DataConfig
from mmrec_jax.data.pipeline import prepare
from mmrec_jax.data.prepared import Examples, PreparedData, open_prepared
from mmrec_jax.data.ragged import Ragged

__all__ = [
    "DataConfig",
    "Examples",
    "PreparedData",
    "Ragged",
    "TrainingStream",
    "open_prepared",
    "prepare",
    "training_batches",
]
