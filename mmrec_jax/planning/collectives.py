"""Messages between chips: which kinds a compiled program has, how large they are, and how long they take."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mmrec_jax.planning.hlo import Computation, Instruction
from mmrec_jax.planning.topology import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One instruction that sends.

    Attributes:
        kind: of `KINDS`.
        bytes: per chip, of the whole array: what an all-gather gives, what all others take.
        group: chips that exchange it among each other.
        across: whether a group has chips of several hosts.
        times: how often it is run.
        name: of the instruction, and the operation of the source that it comes from.
        chain: what all instructions have in common that the compiler makes of one message; "" where it is one.
    """

    kind: str
    bytes: float
    group: int
    across: bool = False
    times: float = 1.0
    name: str = ""
    chain: str = ""

    @property
    def message(self) -> tuple[str, str, float]:
        """What tells it from others of a computation."""
        return self.chain, self.kind, self.bytes


def collective(instruction: Instruction, computation: Computation, topology: Topology) -> Collective | None:
    """What an instruction sends; None for those that send nothing, and for the ends of what others began."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    members = group_members(instruction.text, topology.chips)
    operands = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    taken = float(sum(operand.bytes for operand in operands))
    size = taken * len(members) if kind == "all-gather" else taken
    hosts = {member // topology.per_host for member in members}
    source = re.search(r'op_name="([^"]*)"', instruction.text)
    label = instruction.name + (f" ({source[1]})" if source else "")
    chain = re.search(r'chain_id="(\w+)"', instruction.text)
    return Collective(kind, size, len(members), len(hosts) > 1, 1.0, label, chain[1] if chain else "")


def group_members(text: str, chips: int) -> list[int]:
    """The chips of one group of an instruction, by number; all of them where it says nothing.

    Args:
        text: the instruction's attributes.
        chips: of the program.
    """
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return [int(found[1]), int(found[2])]
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(n) for n in found[1].split(",")]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, sizes = ([int(n) for n in part.split(",")] for part in found.groups()[:2])
        order = np.arange(np.prod(sizes)).reshape(sizes)
        if found[3]:
            order = order.transpose([int(n) for n in found[3].split(",")])
        return order.reshape(shape[0], -1)[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*(?:\S*\s*)?\{([^}]*)\}", text):
        axes = {axis: int(size) for axis, size in re.findall(r"'?([\w.]+)'?=(\d+)", found[1])}
        named = re.findall(r"'([\w.]+)'", found[2])
        numbers = np.arange(np.prod(list(axes.values()))).reshape(list(axes.values()))
        return numbers[tuple(slice(None) if axis in named else 0 for axis in axes)].ravel().tolist()
    return list(range(chips))


def seconds(sent: Collective, topology: Topology) -> float:
    """How long one run of it takes by itself, at the links' full rate.

    All chips of a torus send along all of its axes at once where a group is larger than one axis, and along one axis
    otherwise; an axis shorter than a ring goes at half the rate. Between hosts, a group's part of the messages goes
    over that network. These are bounds of bandwidth, with `latency` a step.
    """
    chip = topology.chip
    if not chip.network or sent.group < 2:
        return 0.0
    share = (sent.group - 1) / sent.group
    if chip.platform == "cuda":
        hosts = -(-sent.group // topology.per_host) if sent.across else 1
        steps, rate = (np.log2(sent.group), chip.network)
        moved = sent.bytes * share
        if sent.kind == "all-reduce":
            moved *= 2
        inside = moved / rate
        if sent.kind in ("all-to-all", "ragged-all-to-all"):
            between = sent.bytes * (hosts - 1) / hosts / chip.host_network
        elif sent.kind == "collective-permute":
            between = sent.bytes / chip.host_network if hosts > 1 else 0.0
        else:
            # The GPUs of a host share what comes in, and pass it on inside.
            between = moved * (hosts - 1) / hosts / (chip.host_network * min(topology.per_host, sent.group))
        return float(steps * chip.latency + max(inside, between))
    longest = max(topology.shape)
    wide = sent.group > longest
    lengths = list(topology.shape) if wide else [sent.group]
    ring = 1.0 if min(lengths) >= chip.wraps or (not wide and longest >= chip.wraps <= sent.group) else 0.5
    axis_rate = chip.network / chip.axes
    rate = axis_rate * (len([size for size in lengths if size > 1]) or 1) * ring
    latency = chip.latency * sum(lengths) / 2
    if sent.kind in ("all-to-all", "ragged-all-to-all"):
        # Half of everything crosses the middle of the longest axis, whose links are what limits it.
        return latency + sent.bytes * max(lengths) / (8 * axis_rate / 2 * ring * 2)
    if sent.kind == "collective-permute":
        return chip.latency + sent.bytes / (axis_rate / 2)
    return latency + sent.bytes * share * (2 if sent.kind == "all-reduce" else 1) / rate
