"""XSMoE's ladder in plain numpy, as papers.md section 4 states it: experts in a list that grows and shrinks.

It shares nothing with the library: no slots, no masks, no capacity. One item at a time, float64.
"""

from __future__ import annotations

import math

import numpy as np


def gelu(x):
    """``x Phi(x)``."""
    return np.array([value * 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))) for value in x])


def expert(x, one):
    """``x + W_up GELU(W_down x)``; `one` is (W_down [r, d], W_up [d, r])."""
    down, up = one
    return x + up @ gelu(down @ x)


def gates(x, rows):
    """``softmax(W_r x)``, the backbone's first."""
    logits = rows @ x
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def rung(x, backbone, experts, rows):
    """Equation 4: the gated sum of the backbone's state and the experts' outputs."""
    weights = gates(x, rows)
    out = weights[0] * backbone
    for weight, one in zip(weights[1:], experts, strict=True):
        out = out + weight * expert(x, one)
    return out


def ladder(states, rungs):
    """The last state; `states` are x_0 and those of the rungs, `rungs` are (experts, rows)."""
    x = states[0]
    for state, (experts, rows) in zip(states[1:], rungs, strict=True):
        x = rung(x, state, experts, rows)
    return x


def utilisation(inputs, experts, rows):
    """Item 7: mean norm of each expert's gated output over items, without the backbone, renormalised."""
    totals = np.zeros(len(experts))
    for x in inputs:
        weights = gates(x, rows)
        for number, one in enumerate(experts):
            totals[number] += np.linalg.norm(weights[1 + number] * expert(x, one))
    means = totals / len(inputs)
    return means / means.sum()


def pruned(experts, rows, shares, tau):
    """Item 7: the experts and router rows that are left, and the number of the one that went or None."""
    number = min(range(len(experts)), key=lambda n: shares[n])
    if len(experts) == 1 or shares[number] >= tau:
        return experts, rows, None
    left = [one for n, one in enumerate(experts) if n != number]
    return left, np.delete(rows, 1 + number, axis=0), number


def expanded(experts, rows, row):
    """Item 8: one more expert, the mean of all, and one more router row."""
    mean = tuple(sum(one[part] for one in experts) / len(experts) for part in (0, 1))
    return [*experts, mean], np.vstack([rows, row])
