"""Plain-numpy versions of the papers' equations, written without the library's code (papers.md 1.0 and 1.1)."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def block(z, p):
    """SANB with ReLU: matrices stored [bottleneck, width]."""
    return z + np.maximum(z @ p["down"].T + p["down_bias"], 0) @ p["up"] + p["up_bias"]


def crossan_item(params, states, order, temperature=0.1):
    """Item vector and fusion weights of ONE item whose present modalities are the keys of `states`.

    `states`: modality -> [layers, width]; all towers equally deep and wide.
    """
    adapters, present = params["adapters"], [name for name in order if name in states]
    side = dict.fromkeys(present, 0.0)
    for rung in range(len(next(iter(states.values())))):
        mixed = {}
        for target in present:
            logits = [adapters[f"gate_{target}_backbone"][rung]]
            logits += [adapters[f"gate_{target}_{source}"][rung] for source in present]
            weights = softmax(np.array(logits) / temperature)
            mixed[target] = weights[0] * states[target][rung]
            for weight, source in zip(weights[1:], present, strict=True):
                mixed[target] = mixed[target] + weight * side[source]
        side = {name: block(mixed[name], adapters[f"sanb_{name}_{rung}"]) for name in present}
    vectors = {
        name: side[name] @ params[f"project_{name}"]["kernel"].T + params[f"project_{name}"]["bias"] for name in present
    }
    fusion, experts, logits = params["fusion"], [], []
    for target in present:
        logits.append(
            sum(vectors[source] @ fusion[f"gate_{target}_from_{source}"] for source in present)
            + fusion[f"gate_{target}_bias"]
        )
        h = vectors[target] @ fusion[f"expert_{target}_in"]["kernel"] + fusion[f"expert_{target}_in"]["bias"]
        h = np.array([0.5 * x * (1 + _erf(x / np.sqrt(2))) for x in h])
        experts.append(h @ fusion[f"expert_{target}_out"]["kernel"] + fusion[f"expert_{target}_out"]["bias"])
    weights = softmax(np.array(logits))
    return sum(w * e for w, e in zip(weights, experts, strict=True)), dict(zip(present, weights, strict=True))


def _erf(x):
    import math

    return math.erf(x)


def in_batch_loss(users, vectors, sequences, popularity):
    """The debiased in-batch cross entropy over ALL occurrences, one user, step and column at a time.

    `users` [B, L, D]; `vectors` item id -> [D]; `sequences` [B, L + 1] item ids, 0 = padding on the left;
    `popularity` item id -> share of the training events.
    """
    batch, width = sequences.shape
    losses = []
    for b in range(batch):
        for j in range(width - 1):
            if sequences[b, j] == 0:
                continue
            logits = []
            for c in range(batch):
                for t in range(width):
                    item = sequences[c, t]
                    own_target = c == b and t == j + 1
                    if item == 0 or (item in sequences[b] and not own_target):
                        logits.append(-1e4)
                    else:
                        logits.append(users[b, j] @ vectors[item] - np.log(popularity[item]))
                    if own_target:
                        positive = logits[-1]
            logits = np.array(logits)
            top = logits.max()
            losses.append(top + np.log(np.exp(logits - top).sum()) - positive)
    return float(np.mean(losses))
