"""A finished model in use."""

from mmrec_jax.serving.recommender import Recommender

__all__ = ["Recommender"]
