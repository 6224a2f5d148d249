"""Runs over many devices: the mesh, where arrays lie on it, and what is computed by hand across it."""

from mmrec_jax.parallel.config import ParallelConfig
from mmrec_jax.parallel.mesh import make_mesh, run_mesh

__all__ = ["ParallelConfig", "make_mesh", "run_mesh"]
