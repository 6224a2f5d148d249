"""Item encoders whose products are in bfloat16, as they are on accelerators by default."""

import jax
import jax.numpy as jnp
import pytest

from tests.models.test_iisan import encoder, states_of

SYSTEMS = {
    "iisan_versa": {"gate": "softmax"},
    "iisan_versa, added": {"gate": "add"},
    "iisan_versa, standardised": {"standardise": True},
    "crossan": {},
    "crossan, standardised": {"standardise": True},
    "linear": {},
}


def cast(tree, to):
    return jax.tree.map(lambda leaf: leaf.astype(to) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_gives_and_differentiates_bfloat16_vectors(name: str, complete: bool) -> None:
    shapes = {"text": (8, 3), "image": (12, 4)}
    module, states = encoder(name.split(",")[0], shapes, **SYSTEMS[name]), states_of(shapes, complete=complete)
    params = jax.eval_shape(module.init, jax.random.key(0), states)["params"]

    def loss(params):
        vectors = module.apply({"params": cast(params, jnp.bfloat16)}, cast(states, jnp.bfloat16)).vector
        assert vectors.dtype == jnp.bfloat16
        return jnp.sum(jnp.square(vectors.astype(jnp.float32)))

    # Types are all there is to see here, and tracing finds them: a backward pass of another type is refused.
    gradients = jax.eval_shape(jax.grad(loss), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
