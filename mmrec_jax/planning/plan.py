"""A plan: what a run needs of a topology and how long it takes there, as plain values for `plan.json`."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mmrec_jax.config import RunConfig
from mmrec_jax.errors import ConfigError, PlanningError
from mmrec_jax.planning.advice import remedies
from mmrec_jax.planning.collectives import seconds as message_seconds
from mmrec_jax.planning.compile import Program
from mmrec_jax.planning.evaluation import EvaluationPlan, plan_evaluation
from mmrec_jax.planning.extraction import ExtractionPlan, plan_extraction
from mmrec_jax.planning.shapes import RunShapes, Sizes, axes, run_shapes
from mmrec_jax.planning.topology import Topology
from mmrec_jax.planning.training import StepPlan, plan_step

COMPARED = ("strong", "weak")
"""Kinds of scaling: the same batch on a smaller slice, and the same users a chip."""


def make_plan(config: RunConfig, topology: Topology, sizes: Sizes, smaller: Topology | None) -> dict[str, Any]:
    """Compiles a run's programs and puts together what they tell.

    Args:
        config: of the run.
        topology: to plan for.
        sizes: of the data.
        smaller: what the training step is compared with; None for nothing.

    Raises:
        ConfigError: the mesh does not fit the topology.
        PlanningError: nothing is known of a backbone, the batch does not fit the mesh, or the topology cannot be
            compiled for.
    """
    run = run_shapes(config, topology, sizes)
    # Before anything is compiled: what cannot be compared must not cost the plan.
    others, left_out = _others(config, topology, sizes, smaller)
    step = plan_step(run)
    wanted = config.plan.programs
    extraction = plan_extraction(config, topology) if "extraction" in wanted else {}
    chip = topology.chip
    training = _step(step, run)
    mesh = {} if run.shards is None else {axis: int(size) for axis, size in run.shards.mesh.shape.items()}
    return {
        "config": config.name,
        "topology": topology.name,
        "chips": topology.chips,
        "chip": dataclasses.asdict(chip),
        "mesh": mesh,
        "negatives": config.parallel.negatives,
        "sizes": dataclasses.asdict(sizes),
        "axes": dict(zip(("distinct", "step"), axes(config, sizes, run.shards), strict=True)),
        "training": training,
        "epoch": _epoch(training, run),
        "evaluation": _evaluation(plan_evaluation(run), run) if "evaluation" in wanted else None,
        "extraction": {name: _extraction(found, sizes, config.plan.price) for name, found in extraction.items()},
        **_compared(others, left_out, run, training),
        "advice": _advice(training, run),
    }


def _advice(training: dict[str, Any], run: RunShapes) -> list[dict[str, Any]]:
    """Remedies on top of each other, each planned, until the step fits; none where it does, or nothing is known."""
    if training["fits"] is not False:
        return []
    config, topology, sizes, found = run.config, run.topology, run.sizes, []
    for remedy in remedies(training, run):
        tried = remedy.applied(config, topology, sizes)
        try:
            changed = run_shapes(*tried)
        except (ConfigError, PlanningError):
            continue  # a mesh or a slice that there is not
        made = _step(plan_step(changed), changed)
        config, topology, sizes = tried
        kept = {key: made[key] for key in ("total_bytes", "available_bytes", "fits", "refused")}
        found.append({"flags": remedy.flags, "why": remedy.why, **kept})
        if made["fits"]:
            break
    return found


def times(programs: Sequence[Program], topology: Topology) -> dict[str, float | None]:
    """Seconds of programs one after another, by several accounts; None where there is none.

    - `roofline`: each instruction at the rate of its products or its traffic, then every message by itself.
    - `overlapped`: the same, were all messages sent beside the computing.
    - `compiler`: the compiler's optimum, in which messages count as memory traffic only.
    - `cycles`: the compiler's estimates of single instructions, without messages.
    """
    if not topology.chip.flops or any(program.refused for program in programs):
        return dict.fromkeys(("roofline", "overlapped", "compiler", "cycles"))
    cycles = sum(program.costs.cycles for program in programs)
    return {
        "roofline": sum(program.costs.seconds for program in programs),
        "overlapped": sum(program.costs.overlapped for program in programs),
        "compiler": sum(program.seconds for program in programs) or None,
        "cycles": cycles / topology.chip.clock if cycles and topology.chip.clock else None,
    }


def _program(program: Program, topology: Topology) -> dict[str, Any]:
    return {
        "name": program.name,
        "flops": program.costs.flops,
        "bytes_moved": program.costs.bytes,
        "computing_seconds": program.costs.busy,
        "sending_seconds": program.costs.sending,
        "compiler": {"flops": program.flops, "bytes": program.bytes, "seconds": program.seconds},
        "memory": dataclasses.asdict(program.memory),
        "collectives": _collectives(program, topology),
        "uncounted_loops": program.costs.unknown_loops,
        "compile_seconds": program.compile_seconds,
        "refused": program.refused,
    }


def _collectives(program: Program, topology: Topology) -> list[dict[str, Any]]:
    """By kind and group, the largest first."""
    found: dict[tuple[str, int, bool], dict[str, Any]] = defaultdict(
        lambda: {"count": 0.0, "bytes": 0.0, "seconds": 0.0}
    )
    for sent in program.costs.collectives:
        entry = found[sent.kind, sent.group, sent.across]
        entry["count"] += sent.times
        entry["bytes"] += sent.times * sent.bytes
        entry["seconds"] += sent.times * message_seconds(sent, topology)
    named = [
        {"kind": kind, "chips": group, "between_hosts": across, **entry}
        for (kind, group, across), entry in found.items()
        if group > 1
    ]
    return sorted(named, key=lambda entry: -entry["bytes"])


def _step(step: StepPlan, run: RunShapes) -> dict[str, Any]:
    found = times(step.programs, run.topology)
    available = run.topology.chip.memory
    return {
        "programs": [_program(program, run.topology) for program in step.programs],
        "bytes": step.groups,
        "total_bytes": step.total,
        "available_bytes": available,
        "fits": None if not available else not step.refused and step.total <= available,
        "refused": step.refused,
        "seconds": found,
        "examples_per_second": run.sizes.batch / found["roofline"] if found["roofline"] else None,
        "flops": sum(program.costs.flops for program in step.programs),
        "bytes_moved": sum(program.costs.bytes for program in step.programs),
        "compile_seconds": sum(program.compile_seconds for program in step.programs),
    }


def _epoch(training: dict[str, Any], run: RunShapes) -> dict[str, Any]:
    """What an epoch of all users takes of the topology, by the roofline; None where no time is predicted."""
    rate = training["examples_per_second"]
    hours = run.sizes.users / rate * run.topology.chips / 3600 if rate and training["fits"] is not False else None
    return {"users": run.sizes.users, "chip_hours": hours, "price": _price(hours, run.config.plan.price)}


def _price(hours: float | None, price: float) -> float | None:
    return hours * price if hours is not None and price else None


def _evaluation(found: EvaluationPlan, run: RunShapes) -> dict[str, Any]:
    topology = run.topology
    each = [times([program], topology)["roofline"] for program in found.programs]
    known = [second * times_run for second, times_run in zip(each, found.runs, strict=True) if second is not None]
    whole = sum(known) if len(known) == len(each) else None
    return {
        "programs": [
            {**_program(program, topology), "runs": runs}
            for program, runs in zip(found.programs, found.runs, strict=True)
        ],
        "total_bytes": found.total,
        "available_bytes": topology.chip.memory,
        "fits": None if not topology.chip.memory else not found.refused and found.total <= topology.chip.memory,
        "refused": found.refused,
        "seconds": whole,
        "users_per_second": run.sizes.users / whole if whole else None,
    }


def _extraction(found: ExtractionPlan, sizes: Sizes, price: float) -> dict[str, Any]:
    program = found.program
    hours = sizes.items / found.rate / 3600 if found.rate else None
    return {
        "batch": found.items,
        "flops": program.costs.flops,
        "memory": dataclasses.asdict(program.memory),
        "compile_seconds": program.compile_seconds,
        "refused": program.refused,
        "items_per_second_and_chip": found.rate or None,
        "chip_hours": hours,
        "price": _price(hours, price),
    }


def _others(
    config: RunConfig, topology: Topology, sizes: Sizes, smaller: Topology | None
) -> tuple[dict[str, RunShapes], dict[str, str]]:
    """The run on a smaller slice: `strong` has the same batch there, `weak` the same users a chip; and of each that
    there is not, why."""
    if smaller is None:
        if not config.plan.compare or topology.chip.platform == "cpu":
            return {}, {}
        why = f"{topology.name} has no more than plan.compare={config.plan.compare} chips."
        return {}, dict.fromkeys(COMPARED, why)
    part = topology.chips // smaller.chips
    fewer = dataclasses.replace(
        sizes, batch=sizes.batch // part, distinct=sizes.distinct // part, steps=sizes.steps // part
    )
    found: dict[str, RunShapes] = {}
    left_out = {}
    for name, chosen in zip(COMPARED, (sizes, fewer), strict=True):
        where = f"{smaller.name} with {chosen.batch:,} users a batch"
        if not chosen.batch:
            left_out[name] = f"{where}: training.batch_size={sizes.batch} is less than a user for each {part} chips."
            continue
        try:
            found[name] = run_shapes(config, smaller, chosen)
        except (ConfigError, PlanningError) as error:
            left_out[name] = f"{where}: {error}"
    return found, left_out


def _compared(
    others: dict[str, RunShapes], left_out: dict[str, str], run: RunShapes, training: dict[str, Any]
) -> dict[str, Any]:
    """The step on a smaller slice, as far as it could be compiled there: `compared` and `not_compared`."""
    found: dict[str, Any] = {}
    for name, other in others.items():
        try:
            made = _step(plan_step(other), other)
        except PlanningError as error:
            left_out = {**left_out, name: str(error)}
            continue
        smaller, chosen = other.topology, other.sizes
        # Examples a second and chip of the larger, as a share of those of the smaller.
        share = chosen.batch / run.sizes.batch * run.topology.chips / smaller.chips
        found |= {"topology": smaller.name, "chips": smaller.chips}
        found[name] = {
            "batch": chosen.batch,
            "users_a_chip": chosen.batch / smaller.chips,
            "total_bytes": made["total_bytes"],
            "fits": made["fits"],
            "seconds": made["seconds"],
            "efficiency": {
                account: None
                if not made["seconds"][account] or not training["seconds"][account]
                else made["seconds"][account] / training["seconds"][account] / share
                for account in training["seconds"]
            },
        }
    return {"compared": found or None, "not_compared": left_out}
