"""Which form of Adam is fastest with many small leaves: leaf by leaf, `optax.flatten`, or this library's chain.

    python bench/optimizer_forms.py [--rounds 25 --steps 20]

The parameters are like CROSSAN's at two modalities: 98 leaves, 1.6 million values. Forms are timed in turn, so that
what else the machine does falls on all of them; medians and lower quartiles in milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmrec_jax.training import TrainingConfig
from mmrec_jax.training.optimizers import build_optimizer


def parameters() -> dict:
    """Random leaves in the shapes of two towers of seven blocks and a user encoder of two."""
    block: dict[str, tuple[int, ...]] = {
        "down": (768, 64),
        "bias_down": (64,),
        "up": (64, 768),
        "bias_up": (768,),
        "gate": (3,),
    }
    tower: dict = dict.fromkeys((f"block_{k}" for k in range(7)), block) | {"project": (768, 64), "bias": (64,)}
    layer: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "key", "value", "out"), (64, 64))
    layer |= {"wide": (64, 256), "narrow": (256, 64), "bias_wide": (256,), "bias_narrow": (64,)}
    layer |= {f"norm_{k}": (64,) for k in range(4)}
    shapes = {"items": {"title": tower, "poster": tower}, "users": {"layer_0": layer, "layer_1": layer}}
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) * 0.01, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def step_of(optimizer: optax.GradientTransformation):
    """A donated update as in the training step."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def main() -> None:
    """Times all forms and prints a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25, help="how often the forms take turns")
    parser.add_argument("--steps", type=int, default=20, help="steps of a form at its turn")
    options = parser.parse_args()
    params, gradients = parameters(), parameters()
    leaves = jax.tree.leaves(params)
    print(f"{len(leaves)} leaves, {sum(leaf.size for leaf in leaves):,} values")
    groups = TrainingConfig(groups=(("items", 1e-4), ("users", 2e-4)))
    forms = {
        "optax.adam": optax.adam(1e-3),
        "optax.flatten(optax.adam)": optax.flatten(optax.adam(1e-3)),
        "build_optimizer, one group": build_optimizer(TrainingConfig(), params, 1),
        "build_optimizer, two groups": build_optimizer(groups, params, 1),
    }
    runs = {name: [step_of(form), jax.tree.map(jnp.copy, params), form.init(params)] for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, (step, values, state) in runs.items():
            values, state = jax.block_until_ready(step(values, state, gradients))
            start = time.perf_counter()
            for _ in range(options.steps):
                values, state = step(values, state, gradients)
            jax.block_until_ready((values, state))
            times[name].append((time.perf_counter() - start) / options.steps * 1e3)
            runs[name][1:] = values, state
    for name, taken in times.items():
        print(f"{name:28s} median {np.median(taken):.2f} ms, lower quartile {np.percentile(taken, 25):.2f} ms")


if __name__ == "__main__":
    main()
