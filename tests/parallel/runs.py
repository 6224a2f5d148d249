"""Runs of the small shop over a mesh, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmrec_jax import experiment
from mmrec_jax.config import method, resolve
from mmrec_jax.evaluation.catalogue import SplitCatalogue
from mmrec_jax.modes.run import Run, terminal
from mmrec_jax.training.optimizers import build_optimizer
from mmrec_jax.training.placement import OneDevice
from mmrec_jax.training.step import TrainStep, _shapes, fetch_window
from mmrec_jax.training.trees import host_copy, named_leaves
from tests.tiny_config import get_config

SMALL = {"training__epochs": 2, "modalities__words__layers": (0, 2)}
SOFTMAX = {**SMALL, "objective__kind": "full_softmax"}
LORA = {"kind": "lora", "rank": 2, "dropout": 0.0, "chunk": 2}
RELATIVE = 1e-5
"""The issue's bound: sums are made in another order, in float32."""
CANCELLED = 1e-4
"""For leaves of a gradient whose terms nearly cancel in sums over the catalogue, or over a backbone's items, so that
what is left keeps their rounding: one device that adds in another order (XLA with its optimisations and without) is
up to 6e-5 from itself."""
SHARED = (("batch", "data+model"), ("rows", "data"))
"""Rules by which devices along `model` have the same rows."""
ONE, MESHES = (1, 1, 1), ((8, 1, 1), (4, 2, 1), (2, 2, 2))


def shop_run(shop: Path, workdir: Path, sizes: tuple[int, int, int], **values: Any) -> Run:
    """A run with a mesh of these sizes; `values` are config keys with `__` for the dots."""
    config = get_config(str(shop))
    config.parallel.data, config.parallel.model, config.parallel.expert = sizes
    config.user.dropout = 0.3
    with config.unlocked():
        for key, value in values.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
    return Run(resolve(config), workdir, terminal())


def live_run(shop: Path, workdir: Path, sizes: tuple[int, int, int], rules: tuple = (), **settings: Any) -> Run:
    """The shop's texts by a backbone in the step, with a method of these settings."""
    config = get_config(f"{shop},words")
    config.methods.words = method(**settings)
    config.parallel.data, config.parallel.model, config.parallel.expert = sizes
    config.parallel.rules = rules
    return Run(resolve(config), workdir, terminal())


@dataclass
class Steps:
    """What some steps gave: metrics of each, the parameters after them, and the gradients of their batches at the
    parameters before the first."""

    metrics: list[dict[str, float]]
    params: dict
    gradients: list[dict]


def take_steps(run: Run, count: int) -> Steps:
    """Steps from the beginning; an epoch has three, of which the last one is half padding."""
    place = run.placement or OneDevice()
    stream = experiment.training_stream(run.config, run.data, run.live, run.live_catalogue, run.shards)
    frozen = place.frozen(run.frozen)
    params = jax.jit(run.task.init)(jax.random.key(0), frozen)
    optimizer = build_optimizer(run.config.training, params, stream.batches_per_epoch)
    step = TrainStep(run.task, optimizer, seed=0, gradient_norm=True, placement=place)
    batches = list(stream.warmup_batches())
    state = step.init(params, frozen, batches[0])
    step.warm_up(state, frozen, batches)
    start = place.state(host_copy(place.readable(state.params)))
    metrics, gradients = [], []
    for _ in range(count):
        with jax.transfer_guard("disallow"):
            batch = place.batch(next(stream))
            gradients.append(_gradients(step, start, frozen, batch, state.step))
            state = step(state, frozen, batch)
        state, sums, _ = fetch_window(state)
        metrics.append({name: float(value) for name, value in sums.items() if np.ndim(value) == 0})
    assert step.recompilations == 0
    stream.close()
    return Steps(metrics, host_copy(place.readable(state.params)), [host_copy(place.readable(g)) for g in gradients])


def _gradients(step: TrainStep, params: Any, frozen: Any, batch: Any, number: Any) -> Any:
    """By the programs that the step has compiled."""
    shapes = _shapes(batch)
    inputs = step._inputs(shapes, frozen, batch, number, step._key)
    return step._gradients(shapes, params, frozen, inputs, number, step._key)[1]


def check_gradients(found: list, expected: list, bound: float = RELATIVE) -> None:
    """||found - expected|| / ||expected|| of each step's gradients: of every leaf, and of the whole within `RELATIVE`.

    Args:
        found, expected: trees, one a step.
        bound: of the leaves.
    """
    for number, pair in enumerate(zip(found, expected, strict=True)):
        here, there = (named_leaves(tree) for tree in pair)
        assert here.keys() == there.keys()
        norms = {name: np.linalg.norm(leaf) for name, leaf in there.items()}
        apart = {name: np.linalg.norm(here[name] - leaf) for name, leaf in there.items()}
        whole = np.linalg.norm(list(norms.values()))
        assert np.linalg.norm(list(apart.values())) <= RELATIVE * whole, number
        # Attention's weights do not change with the bias of all keys: its gradient is rounding alone.
        idle = {name for name in there if name.endswith("attention/key/dense/bias") and norms[name] < 1e-6 * whole}
        far = {name: (apart[name], norms[name]) for name in there if not apart[name] <= bound * norms[name]}
        assert far.keys() <= idle, f"step {number}: {far}"
        assert all(apart[name] < 1e-6 * whole for name in idle)


def encoded(run: Run) -> list[float]:
    """Length of each item's vector, by fresh parameters."""
    vectors = run.scorer(run.fresh(jax.random.key(0))).item_vectors()
    lengths = vectors.norms() if isinstance(vectors, SplitCatalogue) else np.linalg.norm(vectors, axis=1)
    return lengths.tolist()


def measured(run: Run) -> dict[str, Any]:
    """Metrics and gradients of four steps, sums over the parameters after them, and the evaluation with those."""
    steps = take_steps(run, 4)
    result = run.test(steps.params)
    return {
        "steps": steps.metrics,
        "gradients": [named_leaves(gradients) for gradients in steps.gradients],
        "params": {name: float(np.abs(leaf).sum()) for name, leaf in named_leaves(steps.params).items()},
        "test": result.metrics,
        "users": result.users.tolist(),
        "ranks": result.ranks.tolist(),
    }
