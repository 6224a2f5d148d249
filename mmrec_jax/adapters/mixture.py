"""A rung of a ladder of experts as pure functions (XSMoE, arXiv 2508.05993; papers.md 4, equations 3 and 4).

All slots of a rung are one product to the bottlenecks and one from them, with the gates multiplied in between:

    sum_e g_e (x + gelu(x D_e') U_e)  =  (1 - g_0) x + [g_e gelu(x D_e')]_e U        (gates sum to one)

so that ten slots write no more arrays of [item, width] than one. The derivatives are written out for what growth leaves
to do: only the rows of the few slots that are trained get a gradient, an input that is frozen gets none, and the last
rung's matrices are multiplied with the map that reads them before they meet the data.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrec_jax.adapters.gates import MASKED
from mmrec_jax.products import transposed


class Experts(NamedTuple):
    """Parameters of a rung: its slots, and the router's rows, of which the first is the backbone's.

    `active` masks the router's rows; its first entry is 1. `trainable` masks the slots.
    """

    down: Float[Array, "slot bottleneck width"]
    up: Float[Array, "slot bottleneck width"]
    rows: Float[Array, "source width"]
    active: Float[Array, " source"]
    trainable: Float[Array, " slot"]


def router(x: Float[Array, "item width"], experts: Experts) -> Float[Array, "item source"]:
    """``softmax(W_r x)`` over the backbone and the slots in use; the others weigh exactly 0 (equation 3)."""
    logits = (x @ experts.rows.T).astype(jnp.float32)
    return jax.nn.softmax(jnp.where(experts.active > 0, logits, MASKED), axis=-1).astype(x.dtype)


def gated_norms(x: Float[Array, "item width"], experts: Experts) -> Float[Array, "item slot"]:
    """``||g_e E_e(x)||_2`` of each item and slot (papers.md 4, item 7); 0 for slots that are not in use.

    It writes [item, slot, width]: call it with few items.
    """
    slots, bottleneck, width = experts.down.shape
    hidden = jax.nn.gelu(x @ experts.down.reshape(-1, width).T, approximate=False)
    added = jnp.einsum("ner,erd->ned", hidden.reshape(-1, slots, bottleneck), experts.up)
    return router(x, experts)[:, 1:] * jnp.linalg.norm(x[:, None] + added, axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def rung(
    x: Float[Array, "item width"],
    backbone: Float[Array, "item width"],
    experts: Experts,
    trained: int,
    frozen: bool = False,
) -> Float[Array, "item width"]:
    """``g_0 h + sum_e g_e E_e(x)``, ``E_e(x) = x + gelu(x D_e') U_e`` (equation 4).

    Args:
        x: the state of the rung before; of the first rung, the backbone's first state.
        backbone: ``h``, the backbone's state at this rung.
        experts: the rung's parameters.
        trained: how many slots are trainable at most. No others get a gradient.
        frozen: `x` gets no gradient, and the product for it is spared.
    """
    return _rung_forward(x, backbone, experts, trained, frozen)[0]


def _rung_forward(x, backbone, experts, trained, frozen):
    gates, before, share = _hidden(x, experts)
    out = x + gates[:, :1] * (backbone - x) + _gated(gates, before * share) @ _flat(experts.up)
    return out, (x, backbone, experts, gates, before, share)


def _rung_backward(trained, frozen, saved, by_out):
    x, backbone, experts, gates, before, share = saved
    by_gated = by_out @ _flat(experts.up).T
    by_first = jnp.sum(by_out * (backbone - x), axis=1)
    by_x, by_down, by_rows, slots = _to_input(x, experts, gates, before, share, by_gated, by_first, trained, frozen)
    by_up = transposed(_of_slots(_gated(gates, before * share), slots, experts)) @ by_out
    by_x = jnp.zeros_like(x) if by_x is None else by_x + (1 - gates[:, :1]) * by_out
    return by_x, gates[:, :1] * by_out, _gradients(experts, slots, by_down, by_up, by_rows)


rung.defvjp(_rung_forward, _rung_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def last_rung(
    x: Float[Array, "item width"],
    backbone: Float[Array, "item width"],
    experts: Experts,
    kernel: Float[Array, "out width"],
    trained: int,
    frozen: bool = False,
) -> Float[Array, "item out"]:
    """A linear map of `rung`: ``rung(x, backbone, experts) @ kernel.T``."""
    return _last_forward(x, backbone, experts, kernel, trained, frozen)[0]


def _last_forward(x, backbone, experts, kernel, trained, frozen):
    gates, before, share = _hidden(x, experts)
    mixed = x + gates[:, :1] * (backbone - x)
    through = _flat(experts.up) @ kernel.T
    out = mixed @ kernel.T + _gated(gates, before * share) @ through
    return out, (x, backbone, experts, kernel, gates, before, share, mixed, through)


def _last_backward(trained, frozen, saved, by_out):
    x, backbone, experts, kernel, gates, before, share, mixed, through = saved
    by_mixed = by_out @ kernel
    # Written with the narrow factor transposed: [item, slot x bottleneck] is slow to transpose.
    by_through = transposed(by_out) @ _gated(gates, before * share)
    by_gated = by_out @ through.T
    by_first = jnp.sum(by_mixed * (backbone - x), axis=1)
    by_x, by_down, by_rows, slots = _to_input(x, experts, gates, before, share, by_gated, by_first, trained, frozen)
    by_kernel = transposed(by_out) @ mixed + by_through @ _flat(experts.up)
    by_up = _of_slots(by_through, slots, experts).T @ kernel
    by_x = jnp.zeros_like(x) if by_x is None else by_x + (1 - gates[:, :1]) * by_mixed
    return by_x, gates[:, :1] * by_mixed, _gradients(experts, slots, by_down, by_up, by_rows), by_kernel


last_rung.defvjp(_last_forward, _last_backward)


def _hidden(x, experts):
    """Gates; and at all bottlenecks side by side the input of GELU, and what it multiplies that by."""
    before = x @ _flat(experts.down).T
    return router(x, experts), before, 0.5 * (1 + jax.lax.erf(before * math.sqrt(0.5)))


def _gated(gates, hidden):
    """[item, slot x bottleneck], multiplied by the gate of its slot."""
    slots = gates.shape[1] - 1
    return (gates[:, 1:, None] * hidden.reshape(len(hidden), slots, -1)).reshape(hidden.shape)


def _to_input(x, experts, gates, before, share, by_gated, by_first, trained, frozen):
    """Gradients of what reads `x`: of `x` itself by way of experts and router (None where it is frozen), of the
    matrices to the trained bottlenecks, of the router's rows; and which slots those are.

    `by_gated` is the gradient of `_gated`, `by_first` that of the backbone's gate against those of the slots.
    """
    slots = experts.down.shape[0]
    by_experts = jnp.sum((by_gated * before * share).reshape(len(x), slots, -1), axis=2)
    by_gates = jnp.concatenate([by_first[:, None], by_experts], axis=1)
    by_logits = gates * (by_gates - jnp.sum(gates * by_gates, axis=1, keepdims=True))

    def by_before(gates, before, share, by_gated):
        slope = share + before * jnp.exp(-0.5 * before**2) * math.sqrt(0.5 / math.pi)
        return _gated(gates, by_gated * slope)

    chosen = _trained(experts, trained)
    by_x, by_rows = None, transposed(by_logits) @ x
    if frozen:
        own = gates[:, jnp.concatenate([jnp.zeros(1, chosen.dtype), chosen + 1])]
        by_own = by_before(own, *(_of_slots(part, chosen, experts) for part in (before, share, by_gated)))
    else:
        by_all = by_before(gates, before, share, by_gated)
        by_own = _of_slots(by_all, chosen, experts)
        by_x = by_all @ _flat(experts.down) + by_logits @ experts.rows
    return by_x, transposed(by_own) @ x, by_rows, chosen


def _trained(experts: Experts, most: int) -> Int[Array, " trained"]:
    """Slots that hold all trainable ones; others too where these are fewer."""
    return jax.lax.top_k(experts.trainable, min(most, experts.trainable.shape[0]))[1]


def _of_slots(hidden, chosen, experts):
    """Columns of some slots."""
    slots, bottleneck, _ = experts.down.shape
    return jnp.take(hidden.reshape(-1, slots, bottleneck), chosen, axis=1).reshape(len(hidden), -1)


def _flat(matrices: Float[Array, "slot bottleneck width"]) -> Float[Array, "slots_x_bottleneck width"]:
    return matrices.reshape(-1, matrices.shape[-1])


def _gradients(experts, chosen, by_down, by_up, by_rows):
    """The gradients of all parameters from those of the trained slots."""

    def placed(values, of):
        return jnp.zeros_like(of).at[chosen].set(values.reshape(-1, *of.shape[1:]))

    return Experts(
        placed(by_down, experts.down),
        placed(by_up, experts.up),
        by_rows,
        jnp.zeros_like(experts.active),
        jnp.zeros_like(experts.trainable),
    )
