"""Item encoders whose products are in bfloat16, as they are on accelerators by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.adapters.standardise import cast
from mmrec_jax.objectives import ObjectiveConfig
from mmrec_jax.sequence import SasRecConfig
from mmrec_jax.systems.config import ScoringConfig
from mmrec_jax.training.items import CatalogueItems
from mmrec_jax.training.sequential import SequentialRecommendation
from tests.models.helpers import begun
from tests.models.test_iisan import encoder, states_of

SYSTEMS = {
    "iisan_versa": {"gate": "softmax"},
    "iisan_versa, added": {"gate": "add"},
    "iisan_versa, standardised": {"standardise": True},
    "crossan": {},
    "crossan, standardised": {"standardise": True},
    "linear": {},
}


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


@pytest.mark.parametrize("name", ["crossan", "iisan_versa"])
def test_states_are_rounded_after_the_mean_is_taken_from_them(name: str) -> None:
    shapes = {"text": (8, 3), "image": (12, 3)}
    states = states_of(shapes, items=50)
    # 100 times the spread, as in the last states of some backbones. Near 100 bfloat16 has steps of a half.
    states = states.replace(values={key: tuple(x + 100 for x in layers) for key, layers in states.values.items()})
    module = encoder(name, shapes, standardise=True)
    params = {"items": begun(module, states)}

    def vectors(dtype: str) -> np.ndarray:
        task = SequentialRecommendation(
            CatalogueItems(module), SasRecConfig(), ObjectiveConfig(), ScoringConfig(), compute_dtype=dtype
        )
        return np.asarray(jax.jit(task.item_vectors)(params, (states,)).vector)

    exact, rounded = vectors("float32"), vectors("bfloat16")
    # bfloat16 has 8 bits, and a vector comes out of about ten products; states rounded first give an error of 0.2.
    assert np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)
