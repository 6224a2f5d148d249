"""Mixtures of modality experts in plain numpy, vector by vector, written from the equations."""

import math

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def expert(x, weights, number):
    """One expert's output for one vector."""
    first = x @ weights["kernel"][number] + weights["bias"][number]
    if "out" not in weights:
        return first
    return gelu(first) @ weights["out"][number] + weights["out_bias"][number]


def gate(params, vectors, present, row, temperature):
    """Weights of the modalities of one item."""
    names = [name for name in vectors if present[name][row]]
    if len(vectors) == 1:
        return dict.fromkeys(vectors, 1.0)
    logits = [
        sum(vectors[source][row] @ params[f"gate_{target}_from_{source}"] for source in names)
        + params[f"gate_{target}_bias"]
        for target in names
    ]
    return dict.fromkeys(vectors, 0.0) | dict(zip(names, softmax(np.array(logits) / temperature), strict=True))


def kept_choices(wanted, experts, capacity):
    """Which (row, expert) pairs have room: an expert takes those of the largest share. `wanted`: (row, expert, share)
    triples of one group."""
    kept = set()
    for number in range(experts):
        asking = sorted((-share, row) for row, each, share in wanted if each == number)
        kept |= {(row, number) for _, row in asking[:capacity]}
    return kept


def fused(
    params, vectors, present, *, top_k, renormalise=True, capacity=None, groups=1, temperature=1.0, residual=False
):
    """Item vectors, the number of dropped choices of each modality, and the router's losses.

    `vectors`: modality -> array of rows; `capacity`: of each expert in each group, None for no limit.
    """
    rows = len(next(iter(vectors.values())))
    total, dropped, losses = 0.0, {}, {}
    for name, x in vectors.items():
        router, weights = params[f"router_{name}"], params[f"experts_{name}"]
        experts = router.shape[1]
        shares, wanted = {}, []
        probabilities = np.array([softmax(x[row] @ router) for row in range(rows)])
        for row in np.flatnonzero(present[name]):
            best = np.argsort(-probabilities[row], kind="stable")[: top_k or experts]
            scale = probabilities[row][best].sum() if renormalise and top_k else 1.0
            for number in best:
                shares[row, number] = probabilities[row][number] / scale
                wanted.append((row, number, shares[row, number]))
        kept, size = set(shares), rows // groups
        if capacity is not None:
            kept = set()
            for group in range(groups):
                kept |= kept_choices([each for each in wanted if each[0] // size == group], experts, capacity)
        dropped[name] = len(shares) - len(kept)
        there = probabilities[present[name]]
        load = np.array([sum(each == number for _, each, _ in wanted) for number in range(experts)]) / len(wanted)
        losses[f"router_balance_{name}"] = experts * (load * there.mean(0)).sum()
        losses[f"router_z_{name}"] = np.mean(
            [np.log(np.exp(x[row] @ router).sum()) ** 2 for row in np.flatnonzero(present[name])]
        )
        out = np.zeros_like(x)
        for row, number in kept:
            out[row] += shares[row, number] * expert(x[row], weights, number)
        out = out + x if residual else out
        total = total + np.array(
            [gate(params, vectors, present, row, temperature)[name] * out[row] for row in range(rows)]
        )
    return total, dropped, losses
