"""The programs of an evaluation over the whole catalogue, compiled for a topology."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from mmrec_jax.evaluation.blocks import inner_block
from mmrec_jax.evaluation.ranking import rank_block
from mmrec_jax.parallel import scorer as over_mesh
from mmrec_jax.parallel import topk
from mmrec_jax.planning.compile import Program, compile_program
from mmrec_jax.planning.memory import tree_bytes
from mmrec_jax.planning.shapes import RunShapes
from mmrec_jax.training import scorer


@dataclass(frozen=True)
class EvaluationPlan:
    """What ranking every user's held-out item over the whole catalogue needs on one chip.

    Attributes:
        programs: one after another.
        runs: how often each is run.
        held: bytes that lie there all the time: parameters, states and item vectors.
    """

    programs: list[Program]
    runs: list[int]
    held: float

    @property
    def total(self) -> float:
        """Bytes of one chip at most."""
        return self.held + max(program.memory.temporary + program.memory.outputs for program in self.programs)

    @property
    def refused(self) -> str:
        """What the compiler said of the program that it did not make."""
        return next((program.refused for program in self.programs if program.refused), "")


def plan_evaluation(run: RunShapes) -> EvaluationPlan:
    """Compiles what encodes the catalogue, what encodes users, and what ranks."""
    shards = None if run.shards is None else run.shards.divided
    settings, width = run.config.evaluation, run.config.model.width
    frozen, rows = run.evaluated, run.evaluated.log_popularity.shape[0]
    own = rows if shards is None else rows // shards.row_parts
    block = min(scorer.ITEM_BLOCK, own)
    where = SingleDeviceSharding(run.device) if shards is None else shards.split(shards.rows, rows)
    vectors = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=where)
    inner = inner_block(min(settings.user_block, run.sizes.users), own, run.topology.chip.platform)
    users = -(-min(settings.user_block, run.sizes.users) // inner) * inner
    capacity = 2 ** math.ceil(math.log2(max(run.config.plan.history * inner, 1))) if settings.mask_history else 1
    k = max(settings.ks) if settings.lists else 0

    def given(*shape: int, dtype: Any = jnp.int32) -> Any:
        return run.whole(jax.ShapeDtypeStruct(shape, dtype))

    found = given(users, width, dtype=jnp.float32)
    pairs = given(users // inner, capacity)
    ranked = found, given(users), pairs, pairs
    encoded: list[tuple[str, Any, tuple[Any, ...]]]
    if shards is None:
        read = given(block)
        inputs = run.whole(jax.eval_shape(run.task.item_encoder.inputs, frozen, read))
        histories = given(users, run.sizes.length)
        encoded = [
            ("read items", scorer.read_inputs, (run.task, frozen, read)),
            ("encode items", scorer.encode_items, (run.task, run.params, inputs)),
            ("encode users", scorer.encode_users, (run.task, run.params, vectors, histories)),
            ("rank", lambda items, *others: rank_block(others[0], items, *others[1:], None, k=k), (vectors, *ranked)),
        ]
    else:
        split = shards.split(shards.batch, users)
        histories = jax.ShapeDtypeStruct((users, run.sizes.length), jnp.int32, sharding=split)
        scored = jax.ShapeDtypeStruct((rows,), jnp.bool_, sharding=where)
        encoded = [
            ("encode items", over_mesh.encode_block, (run.task, block, run.params, frozen, given())),
            ("encode users", over_mesh.encode_users, (run.task, run.params, vectors, histories)),
            ("rank", topk.rank_block, (shards, k, vectors, scored, *ranked)),
        ]
    programs = [compile_program(name, function, arguments, run.topology) for name, function, arguments in encoded]
    items, blocks = -(-own // block), -(-run.sizes.users // users)
    runs = [items if "items" in program.name else blocks for program in programs]
    # Two arrays of item vectors: what users read, and what they are scored by.
    return EvaluationPlan(programs, runs, float(tree_bytes((run.params, frozen)) + 2 * tree_bytes(vectors)))
