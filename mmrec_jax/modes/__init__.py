"""One function a mode of the command line."""

from mmrec_jax.modes.compare import ab, compare
from mmrec_jax.modes.evaluate import evaluate
from mmrec_jax.modes.extract import extract
from mmrec_jax.modes.inspect import inspect
from mmrec_jax.modes.plan import plan
from mmrec_jax.modes.recommend import recommend
from mmrec_jax.modes.run import Run, open_run
from mmrec_jax.modes.stream import stream
from mmrec_jax.modes.train import train
from mmrec_jax.modes.versions import roll_back
from mmrec_jax.modes.watch import watch

__all__ = [
    "Run",
    "ab",
    "compare",
    "evaluate",
    "extract",
    "inspect",
    "open_run",
    "plan",
    "recommend",
    "roll_back",
    "stream",
    "train",
    "watch",
]
