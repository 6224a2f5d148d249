"""What experts cost, all of them (dense) or two of each modality (routed), at 2, 8 and 32 experts a modality.

    python bench/expert_routing.py

A step of the fusion alone, forward and backward: 2 modalities of 1,024 items and of 4,096, vectors of 64 as in the
paper. Programs are timed in turn, so that what else the machine does falls on all of them; medians in milliseconds.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.types import LOSSES, METRICS, TRAINING

WIDTH, ROUNDS = 64, 20
NAMES = ("image", "text")


def step_of(config: FusionConfig):
    """Gradients of a loss over the item vectors, by the parameters and by the modality vectors."""

    def loss(params, vectors, present):
        result, kept = fuse_modalities(config).apply(
            {"params": params}, vectors, present, True, rngs={TRAINING: jax.random.key(0)}, mutable=[LOSSES, METRICS]
        )
        return jnp.sum(result.vector**2) + sum(map(jnp.sum, jax.tree.leaves(kept.get(LOSSES, {}))))

    return jax.jit(jax.grad(loss, (0, 1)))


def main() -> None:
    """Times all sizes and prints a line for each."""
    rng = np.random.default_rng(0)
    print(f"{'items':>6} {'experts':>8} {'dense':>8} {'routed':>8} {'dense / routed':>15}")
    for items in (1024, 4096):
        vectors = {name: jnp.asarray(rng.standard_normal((items, WIDTH)), jnp.float32) for name in NAMES}
        present = jnp.ones((items, len(NAMES)), bool)
        made = {}
        for experts in (2, 8, 32):
            for kind, top_k in (("dense", 0), ("routed", 2)):
                config = FusionConfig(kind="experts", experts=experts, top_k=top_k)
                params = jax.jit(fuse_modalities(config).init)(jax.random.key(0), vectors, present)["params"]
                made[experts, kind] = functools.partial(step_of(config), params, vectors, present)
                jax.block_until_ready(made[experts, kind]())
        taken: dict[tuple[int, str], list[float]] = {key: [] for key in made}
        for _ in range(ROUNDS):
            for key, step in made.items():
                start = time.perf_counter()
                jax.block_until_ready(step())
                taken[key].append(1e3 * (time.perf_counter() - start))
        for experts in (2, 8, 32):
            dense, routed = (float(np.median(taken[experts, kind])) for kind in ("dense", "routed"))
            print(f"{items:>6} {experts:>8} {dense:>8.2f} {routed:>8.2f} {dense / routed:>15.2f}")


if __name__ == "__main__":
    main()
