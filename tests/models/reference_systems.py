"""Plain-numpy versions of IISAN, IISAN-Versa and GRU4Rec, one item or user at a time, without the library's code."""

import numpy as np

from tests.models.reference import block


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def iisan_item(
    params, states, order, *, intra=True, inter=True, gated=True, remove_first=False, narrow=False, temperature=0.1
):
    """Item vector of ONE item that has all modalities (papers.md 1.0, equations 3 to 7, and 1.0b).

    `states`: modality -> list of vectors; widths and numbers may differ. The fusion is the concatenation.
    """
    adapters = params["adapters"]
    states = {name: list(states[name])[1 if remove_first else 0 :] for name in order}
    last = {}
    for name in order if intra else ():
        side = np.zeros_like(states[name][0])
        for rung, state in enumerate(states[name]):
            gate = sigmoid(adapters[f"gate_{name}"][rung] / temperature) if gated else None
            z = gate * state + (1 - gate) * side if gated else state + side
            side = block(z, adapters[f"sanb_{name}_{rung}"])
        last[name] = side
    if inter:
        count = min(len(states[name]) for name in order)
        narrowest = min(len(states[name][0]) for name in order)
        side = np.zeros(narrowest)
        for rung in range(count):
            pair = []
            for name in order:
                state = states[name][len(states[name]) - count + rung]
                if len(state) != narrowest:
                    dtl = adapters[f"transform_{name}_{rung}"]
                    state = dtl["kernel"] @ state + dtl["bias"]
                pair.append(state)
            gate = sigmoid(adapters["gate_inter"][rung] / temperature) if gated else None
            mixed = gate * pair[0] + (1 - gate) * pair[1] if gated else pair[0] + pair[1]
            side = block(side + mixed, adapters[f"sanb_inter_{rung}"])
        last["inter"] = side
    total = params["fusion"]["bias"]
    for name, side in last.items():
        first = params[f"narrow_{name}" if narrow and name != "inter" else f"square_{name}"]
        second = params[f"project_{name}"]
        vector = second["kernel"] @ (first["kernel"] @ side + first["bias"]) + second["bias"]
        total = total + vector @ params["fusion"][f"kernel_{name}"]
    return total


def gru(params, items, layers):
    """States of one user after each item, padding left out: items [n, width]."""
    width = items.shape[1]
    x = items
    for layer in range(layers):
        kernels = np.split(params[f"layer_{layer}_input"], 3, axis=1)
        biases = np.split(params[f"layer_{layer}_input_bias"], 3)
        recurrent = np.split(params[f"layer_{layer}_state"], 3, axis=1)
        state, out = np.zeros(width), []
        for item in x:
            reset = sigmoid(item @ kernels[0] + biases[0] + state @ recurrent[0])
            update = sigmoid(item @ kernels[1] + biases[1] + state @ recurrent[1])
            inner = state @ recurrent[2] + params[f"layer_{layer}_state_bias"]
            new = np.tanh(item @ kernels[2] + biases[2] + reset * inner)
            state = (1 - update) * new + update * state
            out.append(state)
        x = np.array(out)
    return x
