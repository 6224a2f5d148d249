"""Training: one loop for all tasks, checkpoints that survive anything, and where the metrics go."""

from mmrec_jax.training.checkpoints import load_params
from mmrec_jax.training.config import TrainingConfig
from mmrec_jax.training.kept import KeptSteps
from mmrec_jax.training.loop import fit, use_compilation_cache
from mmrec_jax.training.position import FitResult
from mmrec_jax.training.task import Stream, Task
from mmrec_jax.training.warmstart import WarmStartReport, warm_start

__all__ = [
    "FitResult",
    "KeptSteps",
    "Stream",
    "Task",
    "TrainingConfig",
    "WarmStartReport",
    "fit",
    "load_params",
    "use_compilation_cache",
    "warm_start",
]
