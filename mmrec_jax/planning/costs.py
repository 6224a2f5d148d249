"""What a compiled program costs on a chip: its instructions, each as often as it is run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmrec_jax.planning import collectives
from mmrec_jax.planning.chips import Chip
from mmrec_jax.planning.collectives import Collective
from mmrec_jax.planning.hlo import Computation, Instruction, Module
from mmrec_jax.planning.products import is_float32, product_flops
from mmrec_jax.planning.topology import Topology
from mmrec_jax.planning.traffic import traffic


@dataclass
class Costs:
    """Of one run of a program on one chip.

    Attributes:
        flops: of matrix products.
        bytes: moved to and from HBM.
        busy: seconds of computing, each instruction at the rate of its products or of its traffic, whichever takes
            longer.
        sending: seconds of messages between chips, one after another.
        cycles: the compiler's own estimate, where it has one for an instruction.
        collectives: what is sent.
        unknown_loops: loops that could not be counted, and count once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    busy: float = 0.0
    sending: float = 0.0
    cycles: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    unknown_loops: list[str] = field(default_factory=list)

    def add(self, other: Costs, times: float = 1.0) -> None:
        """Adds what is run so many times."""
        for key in ("flops", "bytes", "busy", "sending", "cycles"):
            setattr(self, key, getattr(self, key) + times * getattr(other, key))
        self.collectives += [dataclasses.replace(sent, times=sent.times * times) for sent in other.collectives]
        self.unknown_loops += other.unknown_loops

    @property
    def seconds(self) -> float:
        """Computing, then sending: nothing overlaps."""
        return self.busy + self.sending

    @property
    def overlapped(self) -> float:
        """As if all sending went on beside the computing."""
        return max(self.busy, self.sending)


def costs(module: Module, topology: Topology) -> Costs:
    """Costs of a program.

    Loops count as often as their condition says where their counter starts at and moves by constants; of branches, the
    cheapest: the only ones of a run's programs look for values that are not finite once a loss is not.
    """
    return _Counter(module, topology).of(module.entry)


class _Counter:
    def __init__(self, module: Module, topology: Topology):
        self._module, self._topology = module, topology
        self._known: dict[str, Costs] = {}

    def of(self, computation: Computation) -> Costs:
        """Costs of one run of a computation."""
        if computation.name not in self._known:
            total, messages = Costs(), set[tuple]()
            for instruction in computation:
                total.add(self._one(instruction, computation, messages))
            self._known[computation.name] = total
        return self._known[computation.name]

    def _one(self, instruction: Instruction, computation: Computation, messages: set[tuple]) -> Costs:
        if instruction.opcode == "while":
            return self._loop(instruction, computation)
        if instruction.opcode == "conditional":
            branches = [self.of(self._module.computations[name]) for name in _branches(instruction)]
            return min(branches, key=lambda found: found.seconds, default=Costs())
        if instruction.opcode == "call" or instruction.opcode == "async-start":
            name = instruction.attribute("to_apply") or instruction.attribute("calls")
            return self.of(self._module.computations[name])
        made = Costs(bytes=traffic(instruction, computation, self._module))
        products = list(self._products(instruction, computation))
        made.flops = sum(flops for flops, _ in products)
        made.busy = _busy(self._topology.chip, products, made.bytes)
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', instruction.text):
            made.cycles = float(cycles[1])
        # A message that goes on beside the computing stands in each fusion that it goes on beside: it is sent once.
        made.collectives = [sent for sent in self._sent(instruction, computation) if sent.message not in messages]
        messages |= {sent.message for sent in made.collectives if sent.chain}
        made.sending = sum(collectives.seconds(sent, self._topology) for sent in made.collectives)
        return made

    def _inner(self, instruction: Instruction) -> Computation | None:
        return self._module.computations.get(instruction.attribute("calls")) if instruction.opcode == "fusion" else None

    def _products(self, instruction: Instruction, computation: Computation) -> Iterator[tuple[float, bool]]:
        """Flops of each product in an instruction, and whether it is of float32."""
        if flops := product_flops(instruction, computation):
            yield flops, is_float32(instruction, computation)
        if inner := self._inner(instruction):
            for each in inner:
                yield from self._products(each, inner)

    def _sent(self, instruction: Instruction, computation: Computation) -> Iterator[Collective]:
        if found := collectives.collective(instruction, computation, self._topology):
            yield found
        if inner := self._inner(instruction):
            for each in inner:
                for sent in self._sent(each, inner):
                    # A TPU program reduces and scatters in one fusion, which has an all-reduce in its text.
                    scatters = sent.kind == "all-reduce" and "all-reduce-scatter" in inner.name
                    yield dataclasses.replace(sent, kind="reduce-scatter") if scatters else sent

    def _loop(self, instruction: Instruction, computation: Computation) -> Costs:
        body = self._module.computations[instruction.attribute("body")]
        times = trip_count(instruction, computation, self._module)
        total = Costs()
        total.add(self.of(body), 1 if times is None else times)
        if times is None:
            total.unknown_loops.append(instruction.name)
        return total


def _busy(chip: Chip, products: list[tuple[float, bool]], moved: float) -> float:
    """Seconds of an instruction: no chip multiplies faster than its peak, or reads faster than its memory."""
    if not chip.flops:
        return 0.0
    computing = sum(flops / (chip.float32_share if single else 1.0) for flops, single in products) / chip.flops
    return max(computing, moved / chip.bandwidth)


def _branches(instruction: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", instruction.text)
    if found:
        return re.findall(r"%?([\w.\-]+)", found[1])
    return [name for key in ("true_computation", "false_computation") if (name := instruction.attribute(key))]


def trip_count(loop: Instruction, computation: Computation, module: Module) -> int | None:
    """How often a loop's body is run; None where the text does not tell."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
        return int(found[1])
    condition, body = (module.computations[loop.attribute(key)] for key in ("condition", "body"))
    compare = _unfused(condition.root, condition, module)
    if compare is None or "direction=LT" not in compare[0].text:
        return None
    names, where, outer = compare[0].operands, compare[1], compare[2]
    place, limit = _element(names[0], where, outer, condition), _constant(names[1], where, outer, condition)
    if place is None or limit is None:
        return None
    start = _start(loop, place, computation)
    step = _step(body, place, module)
    return None if start is None or not step else max(0, -(-(limit - start) // step))


def _unfused(root: Instruction, computation: Computation, module: Module):
    """The comparison that a condition ends in, where it stands, and the operands of the fusion that it stands in."""
    if root.opcode == "compare":
        return root, computation, {}
    inner = module.computations.get(root.attribute("calls")) if root.opcode == "fusion" else None
    if inner is None or inner.root.opcode != "compare":
        return None
    return inner.root, inner, {p.name: name for p, name in zip(inner.parameters, root.operands, strict=True)}


def _resolved(name: str, where: Computation, outer: dict[str, str], around: Computation) -> Instruction | None:
    found = around.instructions.get(outer[name]) if name in outer else where.instructions.get(name)
    while found is not None and found.opcode in ("copy", "bitcast") and found.operands:
        found = around.instructions.get(found.operands[0])
    return found


def _element(name: str, where: Computation, outer: dict[str, str], around: Computation) -> int | None:
    """Which element of the loop's tuple a name is."""
    found = _resolved(name, where, outer, around)
    return int(found.attribute("index")) if found is not None and found.opcode == "get-tuple-element" else None


def _constant(name: str, where: Computation, outer: dict[str, str], around: Computation) -> int | None:
    found = _resolved(name, where, outer, around)
    whole = found is not None and found.opcode == "constant" and re.fullmatch(r"-?\d+", found.inside)
    return int(found.inside) if whole and found is not None else None


def _start(loop: Instruction, place: int, computation: Computation) -> int | None:
    """Where a loop's counter begins."""
    given = computation.instructions[loop.operands[0]]
    if given.opcode != "tuple":
        return None
    return _constant(given.operands[place], computation, {}, computation)


def _step(body: Computation, place: int, module: Module) -> int | None:
    """By how much a loop's counter moves."""
    root = body.root
    if root.opcode != "tuple":
        return None
    added = body.instructions[root.operands[place]]
    outer: dict[str, str] = {}
    where = body
    if added.opcode == "fusion" and (inner := module.computations.get(added.attribute("calls"))) is not None:
        outer = {p.name: name for p, name in zip(inner.parameters, added.operands, strict=True)}
        where, added = inner, inner.root
    if added.opcode != "add":
        return None
    return next((n for name in added.operands if (n := _constant(name, where, outer, body)) is not None), None)
