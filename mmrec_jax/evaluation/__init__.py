"""Full-catalogue evaluation: exact ranks, metrics, slices, significance, reports; and exact top-k lists."""

from mmrec_jax.evaluation.config import EvaluationConfig
from mmrec_jax.evaluation.evaluate import EvaluationResult, compare, evaluate
from mmrec_jax.evaluation.scorer import PopularityScorer, Scorer
from mmrec_jax.evaluation.topk import top_items

__all__ = [
    "EvaluationConfig",
    "EvaluationResult",
    "PopularityScorer",
    "Scorer",
    "compare",
    "evaluate",
    "top_items",
]
