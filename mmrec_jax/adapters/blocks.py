"""Parameters of a tower of side blocks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Block = tuple[
    Float[Array, "bottleneck width"],
    Float[Array, " bottleneck"],
    Float[Array, "bottleneck width"],
    Float[Array, " width"],
]
"""Matrices and biases of a block, in the order of `sanb`."""
Head = tuple[Float[Array, "out width"], Float[Array, " out"]]
"""Kernel and bias of a linear map."""


def blocks(module: nn.Module, name: str, count: int, bottleneck: int, width: int) -> list[Block]:
    """Parameters `sanb_<name>_<rung>` of a module, N(0, 0.01²) and zeros as in IISAN's code (papers.md 1.0, item 3)."""

    def init(key: Array) -> dict[str, Array]:
        down_key, up_key = jax.random.split(key)
        normal, shape = nn.initializers.normal(0.01), (bottleneck, width)
        return {
            "down": normal(down_key, shape),
            "down_bias": jnp.zeros(bottleneck),
            "up": normal(up_key, shape),
            "up_bias": jnp.zeros(width),
        }

    made = [module.param(f"sanb_{name}_{rung}", init) for rung in range(count)]
    return [(block["down"], block["down_bias"], block["up"], block["up_bias"]) for block in made]


def linear(module: nn.Module, name: str, inputs: int, outputs: int) -> Head:
    """Parameter `name` of a module: kernel and bias of a linear map, drawn as Flax does."""

    def init(key: Array) -> dict[str, Array]:
        lecun = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        return {"kernel": lecun(key, (outputs, inputs)), "bias": jnp.zeros(outputs)}

    made = module.param(name, init)
    return made["kernel"], made["bias"]


def chained(first: Head, second: Head) -> Head:
    """The one linear map that equals `first` and then `second`.

    Two maps with nothing between them are multiplied together before they meet the data: a batch has more rows than
    the inner map has outputs.
    """
    kernel, bias = second
    return kernel @ first[0], kernel @ first[1] + bias
