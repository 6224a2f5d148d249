"""The exact GELU, quickly: XLA's own erf takes a tenth of an encoder's time on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# erf(x) = x P(x^2) / Q(x^2) up to where it is 1 in float32: the rational approximation of Eigen's float erf.
BOUND = 3.832506856900711
P = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084)
Q = (
    *(-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885),
    *(0.014070470171167667, 0.11098505178285362, 0.49746925110067538, 1.0),
)


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Phi(x), in float32; within 3e-7 of the largest |x| or 1.

    A backward pass keeps its slope, phi(x) x + Phi(x), and none of the steps of the approximation.
    """
    wide = x.astype(jnp.float32)
    return (wide * _below(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    wide = x.astype(jnp.float32)
    share = _below(wide)
    slope = share + wide * jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (wide * share).astype(x.dtype), moved * slope.astype(x.dtype)


def _below(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Phi(x), the share of a normal distribution that is less."""
    scaled = jnp.clip(x * 0.5**0.5, -BOUND, BOUND)
    square = scaled * scaled
    erf = scaled * jnp.polyval(jnp.array(P, jnp.float32), square) / jnp.polyval(jnp.array(Q, jnp.float32), square)
    return 0.5 * (1 + erf)
