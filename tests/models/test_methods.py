"""Methods inside a backbone: they start as the pretrained one, train their own parts only, and LoRA merges."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from mmrec_jax.adapters.config import ADDING, METHODS, MethodConfig
from mmrec_jax.adapters.embedded import NORMS, EmbeddedMethod, join, split, start_of, trained_names, used_names
from mmrec_jax.adapters.lora import merge, unmerge
from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.registry import find_family
from mmrec_jax.backbones.transformer import PROJECTIONS
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import Params
from tests.tiny_backbones import GOLDEN, golden, write_backbone

TOKENS = Tokens(jnp.asarray([[2, 9, 14, 3, 7], [2, 5, 3, 7, 7]]), jnp.asarray([[True] * 4 + [False], [True] * 5]))
PIXELS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 28, 28, 3)), jnp.float32)
TRAINING = [kind for kind in METHODS if kind != "frozen"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    folder = tmp_path_factory.mktemp("backbones")
    return {name: load(str(write_backbone(folder / name, name))) for name in ("bert", "llama", "vit")}


def fitted(backbone: Backbone, inputs, random: bool = False, **settings) -> tuple[nn.Module, Params, Params]:
    """The model with a method in it, what is trained (as it starts, or random), and what is frozen."""
    config = MethodConfig(**settings)
    model = backbone.model.clone(method=EmbeddedMethod(config), parent=None)
    made = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    own, every = (set(traverse_util.flatten_dict(tree, sep="/")) for tree in (backbone.params, made))
    states = range(backbone.sizes.depth + 1)
    own &= used_names(backbone.model, backbone.params, inputs, states)
    names = trained_names(config, backbone.sizes.depth, own, every, "the backbone")
    frozen = split(backbone.params, names)[1]
    if config.kind in ADDING:
        trained = jax.jit(lambda key: split(model.init(key, inputs)["params"], names)[0])(jax.random.key(0))
    else:
        trained = start_of(backbone.params, names)
    if random:
        rng = np.random.default_rng(0)
        trained = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), trained)
    return model, trained, frozen


@partial(jax.jit, static_argnums=0)
def states_of(model: nn.Module, trained: Params, frozen: Params, inputs, **more) -> tuple[jax.Array, ...]:
    return model.apply({"params": join(trained, frozen)}, inputs, **more)


OTHERS = [("lora", "llama"), ("prompt", "llama"), ("prompt", "vit")]


@pytest.mark.parametrize(("kind", "name"), [(kind, "bert") for kind in TRAINING] + OTHERS)
def test_a_method_starts_as_the_pretrained_backbone_and_every_trained_leaf_gets_a_gradient(kind, name, plain) -> None:
    backbone, inputs = plain[name], PIXELS if name == "vit" else TOKENS
    top = {"top": 1} if kind == "top" else {}
    model, trained, frozen = fitted(backbone, inputs, kind=kind, **top)
    own = set(traverse_util.flatten_dict(backbone.params))
    assert set(traverse_util.flatten_dict(frozen)) == own - set(traverse_util.flatten_dict(trained))
    started, expected = states_of(model, trained, frozen, inputs), backbone.hidden_states(inputs)
    for state, theirs in zip(started, expected, strict=True):
        assert state.shape == theirs.shape
        if kind != "prompt":  # its tokens take a share of the attention
            # Two programs may be fused in different ways: float32 rounding.
            np.testing.assert_allclose(state, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))

    def loss(trained: Params) -> jax.Array:
        return sum(jnp.square(state[:, :2] - 0.1).mean() for state in states_of(model, trained, frozen, inputs))

    moved = jax.tree.map(lambda leaf: leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), trained)
    for path, gradient in traverse_util.flatten_dict(jax.jit(jax.grad(loss))(moved), sep="/").items():
        # A bias of the keys adds the same to all scores of a query, which the softmax takes away again.
        assert np.abs(gradient).max() > 0 or "key/dense/bias" in path, path


def test_lora_is_the_product_of_its_matrices_in_plain_numpy(plain) -> None:
    backbone = plain["bert"]
    settings = {"kind": "lora", "targets": tuple(sorted(PROJECTIONS - {"gate"})), "rank": 3, "alpha": 5.0}
    model, trained, frozen = fitted(backbone, TOKENS, random=True, **settings)
    weights = {path: np.asarray(leaf, np.float64) for path, leaf in traverse_util.flatten_dict(frozen, sep="/").items()}
    for path, a in traverse_util.flatten_dict(trained, sep="/").items():
        if path.endswith("/a"):
            b = traverse_util.flatten_dict(trained, sep="/")[path[:-1] + "b"]
            kernel = f"{path.rsplit('/', 2)[0]}/dense/kernel"
            weights[kernel] = weights[kernel] + 5.0 / 3 * np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    by_hand = traverse_util.unflatten_dict({p: jnp.asarray(w, jnp.float32) for p, w in weights.items()}, sep="/")
    result = states_of(model, trained, frozen, TOKENS)
    merged = merge(frozen, trained, 5.0)
    for state, theirs, ours in zip(
        result,
        backbone.model.apply({"params": by_hand}, TOKENS),
        backbone.model.apply({"params": merged}, TOKENS),
        strict=True,
    ):
        # float32 in another order, through three blocks
        np.testing.assert_allclose(state, theirs, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)
    assert np.abs(result[-1] - backbone.hidden_states(TOKENS)[-1]).max() > 0.1
    restored = traverse_util.flatten_dict(unmerge(merged, trained, 5.0), sep="/")
    for path, leaf in traverse_util.flatten_dict(backbone.params, sep="/").items():
        np.testing.assert_allclose(restored[path], leaf, atol=1e-6)  # one rounding each of sum and difference


def test_what_is_no_lora_of_the_backbone_is_not_merged(plain) -> None:
    _, trained, frozen = fitted(plain["bert"], TOKENS, random=True, kind="lora", rank=3)
    query = ("transformer", "block_0", "attention", "query", "added_query")
    flat = traverse_util.flatten_dict(trained)
    half = traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if path != (*query, "b")})
    wider = traverse_util.unflatten_dict({**flat, (*query, "a"): jnp.zeros((7, 3))})
    others = [fitted(plain["bert"], TOKENS, kind=kind)[1] for kind in ("houlsby", "prefix", "bitfit")]
    for move in (merge, unmerge):
        for added, named in (
            ({"title": trained}, "title/transformer/"),
            (half, "/".join((*query, "a"))),
            (wider, "/".join((*query, "a"))),
            ({}, "nothing"),
            *((other, "transformer/|norm/bias") for other in others),
        ):
            with pytest.raises(ConfigError, match=rf"^({named}).* is no matrix of LoRA .* params\['embedded'\]"):
                move(frozen, added, 16.0)


def test_merging_into_a_bfloat16_backbone_loses_nothing_and_its_outputs_have_the_error_of_bfloat16(
    plain, tmp_path: Path
) -> None:
    half, wide = load(str(write_backbone(tmp_path / "bert")), dtype="bfloat16"), plain["bert"]
    settings = {"kind": "lora", "targets": ("query", "value", "down"), "rank": 3}
    beside, added, own = fitted(half, TOKENS, random=True, **settings)
    exactly = fitted(wide, TOKENS, **settings)[0]
    merged = merge(own, added, 16.0)
    kinds = {path: leaf.dtype for path, leaf in traverse_util.flatten_dict(merged, sep="/").items()}
    changed = {path for path, dtype in kinds.items() if dtype == jnp.float32}
    assert changed == {path for path in kinds if re.search(r"/(query|value|down)/dense/kernel$", path)}
    jax.tree.map(
        lambda leaf, theirs: np.testing.assert_array_equal(leaf.astype(jnp.bfloat16), theirs),
        unmerge(merged, added, 16.0),
        own,
    )
    own_wide, merged_wide = (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (own, merged))
    truth = states_of(exactly, added, own_wide, TOKENS)
    for state, expected in zip(states_of(wide.model, {}, merged_wide, TOKENS), truth, strict=True):
        np.testing.assert_allclose(state, expected, rtol=1e-4, atol=2e-5)  # float32 in another order

    def error(states: tuple[jax.Array, ...]) -> float:
        assert {state.dtype for state in states} == {jnp.dtype("bfloat16")}
        return float(jnp.linalg.norm(states[-1].astype(jnp.float32) - truth[-1]) / jnp.linalg.norm(truth[-1]))

    # Measured: 1.1% beside LoRA, 0.7% merged.
    live, without = error(states_of(beside, added, own, TOKENS)), error(states_of(half.model, {}, merged, TOKENS))
    assert 0 < without < 1.5 * live < 0.05


def test_a_bottleneck_and_a_prefix_are_their_equations(plain) -> None:
    rng = np.random.default_rng(2)
    _, trained, _ = fitted(plain["bert"], TOKENS, random=True, kind="parallel", scale=2.0, bottleneck=4)
    part = trained["transformer"]["block_0"]["added_feed_forward"]
    module = EmbeddedMethod(MethodConfig(kind="parallel", scale=2.0, bottleneck=4))("feed_forward", 0, "x")
    width = part["up"]["kernel"].shape[1]
    x, y = (rng.normal(size=(1, 2, width)).astype(np.float32) for _ in range(2))
    inner = np.asarray(jax.nn.gelu(x @ part["down"]["kernel"] + part["down"]["bias"], approximate=False))
    expected = y + 2.0 * (inner @ part["up"]["kernel"] + part["up"]["bias"])
    np.testing.assert_allclose(module.apply({"params": part}, x, y), expected, rtol=1e-5, atol=1e-5)

    keys, values, gate = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2, 4), (3, 2, 4), (2,)))
    query, mixed = (rng.normal(size=(1, 5, 2, 4)).astype(np.float32) for _ in range(2))
    expected = mixed.copy()
    for head in range(2):
        scores = np.exp(query[0, :, head] @ keys[:, head].T / 2.0)
        shares = scores / scores.sum(axis=1, keepdims=True)
        expected[0, :, head] += np.tanh(gate[head]) * shares @ values[:, head]
    prefix = EmbeddedMethod(MethodConfig(kind="prefix", tokens=3))("attend", 0, "x")
    result = prefix.apply({"params": {"keys": keys, "values": values, "gate": gate}}, query, mixed)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_tokens_of_a_prompt_are_seen_by_all_and_leave_no_state(name, plain) -> None:
    model, trained, frozen = fitted(plain[name], TOKENS, random=True, kind="prompt", tokens=4)
    states, without = states_of(model, trained, frozen, TOKENS), plain[name].hidden_states(TOKENS)
    np.testing.assert_allclose(states[0], without[0], atol=1e-5)  # float32 in another order
    for state, theirs in zip(states[1:], without[1:], strict=True):
        assert np.abs(state - theirs)[:, 0].max() > 1e-3  # also the first token's, where attention is causal
    packed = Tokens(TOKENS.ids, TOKENS.mask, TOKENS.mask.astype(jnp.int32))
    if name == "bert":
        with pytest.raises(ValueError, match="rows of several texts cannot have further tokens"):
            states_of(model, trained, frozen, packed)


def test_dropout_is_on_where_a_key_is_given(plain) -> None:
    for kind in ("lora", "houlsby"):
        model, trained, frozen = fitted(plain["bert"], TOKENS, random=True, kind=kind, dropout=0.5)
        still, again = (states_of(model, trained, frozen, TOKENS)[-1] for _ in range(2))
        np.testing.assert_array_equal(still, again)
        drawn = [
            states_of(model, trained, frozen, TOKENS, rngs={"dropout": jax.random.key(seed)})[-1] for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert np.abs(drawn[0] - drawn[2]).max() > 1e-3
        assert np.abs(drawn[0] - still).max() > 1e-3


def test_layers_say_which_blocks_a_method_is_in(plain) -> None:
    for kind in (*ADDING, "bitfit", "layer_norm"):
        if kind == "prompt":
            continue
        _, trained, _ = fitted(plain["bert"], TOKENS, kind=kind, layers=(1,))
        assert set(trained) == {"transformer"}
        assert set(trained["transformer"]) == {"block_1"}, kind
    _, trained, _ = fitted(plain["bert"], TOKENS, kind="top", top=2)
    assert set(trained["transformer"]) == {"block_1", "block_2"}
    _, trained, _ = fitted(plain["bert"], TOKENS, kind="layer_norm")
    assert {path[-2] for path in traverse_util.flatten_dict(trained)} == {
        "norm",
        "attention_norm",
        "feed_forward_norm",
    }


def golden_encoders() -> list[tuple[str, str]]:
    """Golden files of whole checkpoints, and what of each is encoded."""
    names = sorted(str(path.relative_to(GOLDEN).with_suffix("")) for path in GOLDEN.rglob("*.safetensors"))
    kinds = {"multiway/beit3": ("text", "image")}
    return [(name, kind) for name in names if "config" in golden(name)[1] for kind in kinds.get(name, ("",))]


@pytest.mark.parametrize(("name", "kind"), golden_encoders())
def test_every_scale_and_bias_of_a_norm_is_one_of_layer_norm(name: str, kind: str) -> None:
    config = json.loads(golden(name)[1]["config"])
    encoder = find_family(config["model_type"], name, kind).build(config, None)
    shapes = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]
    every = set(traverse_util.flatten_dict(shapes, sep="/"))
    scales = {path for path in every if path.endswith("/scale")}  # only norms have one
    biases = {path[: -len("scale")] + "bias" for path in scales} & every
    assert scales
    assert {path for path in every if NORMS.search(path)} == scales | biases


def test_blocks_that_no_state_depends_on_are_named(plain) -> None:
    def names(*states: int, **settings) -> set[str]:
        config, backbone = MethodConfig(**settings), plain["bert"]
        model = backbone.model.clone(method=EmbeddedMethod(config), parent=None)
        shapes = jax.eval_shape(model.init, jax.random.key(0), backbone.example)["params"]
        used = used_names(model, shapes, backbone.example, states)
        own = used & set(traverse_util.flatten_dict(backbone.params, sep="/"))
        return trained_names(config, backbone.sizes.depth, own, used, "methods.title")

    for kind in ("lora", "houlsby", "prefix", "bitfit", "layer_norm"):
        for layers in ((2,), (1, 2)):
            with pytest.raises(ConfigError, match=r"methods\.title: no state that is read depends on block 2: name"):
                names(0, 2, kind=kind, layers=layers)
        blocks = {name.split("/")[1] for name in names(0, 2, kind=kind) if "/block_" in name}
        assert blocks == {"block_0", "block_1"}, kind
    for kind in ("lora", "houlsby", "prompt"):
        with pytest.raises(ConfigError, match="no state that is read depends on blocks 0, 1, 2"):
            names(0, kind=kind)
    with pytest.raises(ConfigError, match="no state that is read depends on block 2"):
        names(0, 2, kind="top", top=1)
    assert {name.split("/")[1] for name in names(0, 2, kind="top", top=2)} == {"block_1"}


def test_what_cannot_be_trained_is_an_error_that_says_so(plain) -> None:
    for settings, message in (
        ({"kind": "lorra"}, "choose one of frozen, lora, houlsby"),
        ({"kind": "lora", "targets": ("query", "output")}, "targets: output unknown; choose from attention_out, down"),
        ({"kind": "lora", "targets": ()}, "targets: none unknown"),
        ({"kind": "bitfit", "rank": 4}, "rank: kind='bitfit' does not read it"),
        ({"kind": "full", "layers": (1,)}, "layers: kind='full' does not read it"),
        ({"kind": "lora", "rank": 0}, "rank=0: must be at least 1"),
        ({"kind": "lora", "layers": (2, 1)}, "distinct and ascending"),
        ({"kind": "lora", "dropout": 1.0}, "dropout=1.0: must be in"),
        ({"kind": "lora", "targets": ("query", "up", "query")}, "targets=.*: query twice"),
        ({"kind": "lora", "alpha": float("inf")}, "alpha=inf: must be above 0 and finite"),
        ({"kind": "lora", "alpha": float("nan")}, "alpha=nan: must be above 0 and finite"),
        ({"kind": "parallel", "scale": float("nan")}, "scale=nan: must be finite and not 0"),
        ({"kind": "parallel", "scale": float("-inf")}, "scale=-inf: must be finite and not 0"),
        ({"kind": "lora", "start": "gs://bucket/lora"}, "start=gs://bucket/lora: a URL cannot be used here"),
    ):
        with pytest.raises(ConfigError, match=message):
            MethodConfig(**settings)
    for settings, message in (
        ({"kind": "lora", "targets": ("gate", "query")}, "the backbone has no projection gate"),
        ({"kind": "lora", "layers": (3,)}, r"layers \[3\]: the backbone has 3 blocks"),
        ({"kind": "top", "top": 4}, "top=4: the backbone has 3 blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            fitted(plain["bert"], TOKENS, **settings)
    with pytest.raises(ConfigError, match="kind='bitfit' finds nothing to train"):
        fitted(plain["llama"], TOKENS, kind="bitfit")
