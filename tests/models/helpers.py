"""Small models and inputs for the tests of this folder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmrec_jax.adapters import TowerConfig, TowerSpec
from mmrec_jax.fusion import FusionConfig
from mmrec_jax.systems.crossan import Crossan, CrossanConfig
from mmrec_jax.types import HiddenStates


def hidden(names, items=5, layers=3, width=8, present=None, complete=False, seed=0):
    """Random states; `present` maps a modality to a mask (all present without)."""
    rng = np.random.default_rng(seed)
    values = {
        name: tuple(jnp.asarray(rng.standard_normal((items, width)), jnp.float32) for _ in range(layers))
        for name in names
    }
    masks = {name: jnp.ones(items, bool) for name in names} | {
        name: jnp.asarray(mask) for name, mask in (present or {}).items()
    }
    return HiddenStates(values, masks, complete)


def crossan(names, layers=3, width=8, fusion="momef", out=4, **tower):
    """A small CROSSAN over equal modalities."""
    specs = tuple(TowerSpec(name, width, layers, bottleneck=4) for name in names)
    return Crossan(CrossanConfig(TowerConfig(specs, **tower), FusionConfig(kind=fusion), out))


def random_params(module, states, seed=0, scale=0.3):
    """Parameters of the module's shapes, all of them random, so that no term hides behind a zero."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), states))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), shapes)


@partial(jax.jit, static_argnums=0)
def applied(module, params, *inputs):
    """What a module gives, as one program: compiled in a fraction of the time of its operations one by one."""
    return module.apply({"params": params}, *inputs)


def begun(module, *inputs):
    """The parameters that a module begins with."""
    return jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
