"""Plain-numpy versions of the papers' equations, written without the library's code (papers.md 1.0)."""

import numpy as np

from tests.models.reference_experts import gelu

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "identity": lambda x: x,
}


def block(z, p, activation="relu"):
    """SANB: matrices stored [bottleneck, width]."""
    return z + ACTIVATIONS[activation](z @ p["down"].T + p["down_bias"]) @ p["up"] + p["up_bias"]


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
