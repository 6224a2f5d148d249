"""CROSSAN's item encoder in plain numpy, one item at a time, written from the equations (docs/systems.md; papers.md
1.1)."""

import numpy as np

from tests.models.reference import block
from tests.models.reference_experts import expert, gelu, softmax
from tests.models.reference_systems import sigmoid


def crossan_item(params, states, fusion, **towers):
    """Item vector of ONE item, and how much each modality weighs in it.

    `states`: modality -> list of vectors, whose widths and numbers may differ, of the modalities that the item HAS;
    `fusion`: the keys of the config; `towers`: switches of `crossan_towers`.
    """
    vectors = {
        name: params[f"project_{name}"]["kernel"] @ side + params[f"project_{name}"]["bias"]
        for name, side in crossan_towers(params["adapters"], states, **towers).items()
    }
    return fused_item(params.get("fusion", {}), vectors, **fusion)


def fused_item(params, vectors, *, kind, expert="mlp", residual=False, temperature=1.0, top_k=0, renormalise=True):
    """The fused vector of ONE item and the weights of its modalities; `vectors`: those of the ones it has."""
    names = list(vectors)
    if kind in ("concat", "add"):
        parts = {name: x @ params[f"kernel_{name}"] if kind == "concat" else x for name, x in vectors.items()}
        lengths = {name: np.sqrt((part**2).sum()) for name, part in parts.items()}
        return sum(parts.values()) + params["bias"], {name: lengths[name] / sum(lengths.values()) for name in names}
    if kind == "sum":
        logits = dict.fromkeys(names, 0.0)
    elif kind == "attention":
        logits = {
            name: params["query"] @ np.tanh(x @ params["key"]["kernel"] + params["key"]["bias"])
            for name, x in vectors.items()
        }
    elif len(names) == 1:  # a model of one modality has no gate
        logits = {names[0]: 0.0}
    else:
        logits = {
            target: sum(x @ params[f"gate_{target}_from_{name}"] for name, x in vectors.items())
            + params[f"gate_{target}_bias"]
            for target in names
        }
    outputs = dict(vectors)
    if kind == "momef":
        outputs = {name: one_expert(params, name, x, expert) + residual * x for name, x in vectors.items()}
    elif kind == "experts":
        outputs = {
            name: several_experts(params, name, x, top_k, renormalise) + residual * x for name, x in vectors.items()
        }
    weights = softmax(np.array([logits[name] for name in names]) / temperature)
    return sum(w * outputs[name] for w, name in zip(weights, names, strict=True)), dict(
        zip(names, weights, strict=True)
    )


def one_expert(params, name, x, form):
    """``E_x(e^x)``."""
    if form == "identity":
        return x
    if form == "linear":
        return x @ params[f"expert_{name}"]["kernel"] + params[f"expert_{name}"]["bias"]
    first, second = params[f"expert_{name}_in"], params[f"expert_{name}_out"]
    return gelu(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def several_experts(params, name, x, top_k, renormalise):
    """``sum_j r_j E_j(e^x)`` over all experts of a modality, or over those with the largest shares."""
    shares = softmax(x @ params[f"router_{name}"])
    chosen = np.argsort(-shares)[: top_k or len(shares)]
    scale = shares[chosen].sum() if renormalise else 1.0
    return sum(shares[j] / scale * expert(x, params[f"experts_{name}"], j) for j in chosen)


def crossan_towers(
    adapters, states, *, cross_source="side", gate="softmax", shared=False, temperature=0.1, activation="relu"
):
    """Last side states of the modalities that ONE item has."""
    order = list(states)
    rungs = max(len(states[name]) for name in order)
    side = {}
    for rung in range(rungs):
        active = [name for name in order if rung >= rungs - len(states[name])]
        backbone = {name: states[name][rung - (rungs - len(states[name]))] for name in active}
        after = {}
        for target in active:
            own = rung - (rungs - len(states[target]))
            sources = ["backbone", *(name for name in active if name == target or cross_source != "none")]
            who = "shared" if shared else target
            logits = np.array([adapters[f"gate_{who}_{source}"][rung - rungs] for source in sources]) / temperature
            if gate == "softmax":
                weights = softmax(logits)
            else:
                weights = sigmoid(logits) if gate == "sigmoid" else np.ones(len(sources))
            z = np.zeros(len(backbone[target]))
            for weight, source in zip(weights, sources, strict=True):
                if source == "backbone":
                    value = backbone[target]
                elif source == target or cross_source == "side":
                    value = side.get(source)
                else:
                    value = backbone[source]
                if value is None:
                    continue
                if len(value) != len(z):
                    dtl = adapters[f"transform_{target}_from_{source}_{own}"]
                    value = value @ dtl["kernel"] + dtl["bias"]
                z = z + weight * value
            after[target] = block(z, adapters[f"sanb_{target}_{own}"], activation)
        side = after
    return side
