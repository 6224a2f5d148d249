"""Methods on equal terms: `--mode=compare` trains each with several seeds and writes one table; `ab` sets two
finished runs side by side."""

from mmrec_jax.comparison.config import Comparison, Entry, comparison, run

__all__ = ["Comparison", "Entry", "comparison", "run"]
