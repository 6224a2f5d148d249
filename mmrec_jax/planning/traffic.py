"""Bytes that an instruction of a compiled program moves to and from a chip's memory."""

from __future__ import annotations

from mmrec_jax.planning.hlo import Computation, Instruction, Module

FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call"),
)
"""They move nothing; what loops and branches call is counted by itself."""
_PASSING = ("bitcast", "copy", "reshape", "convert")


def traffic(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Bytes read and written, of arrays that lie in HBM; rows that are looked up count, and not their table."""
    if instruction.opcode in FREE or instruction.opcode.endswith(("-done", "-update")):
        return 0.0
    if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.text:
        return 0.0
    if instruction.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        # The result is (copy, original, mark): one array is read and one written.
        return 2.0 * sum(0.5 * shape.bytes for shape in instruction.shapes[:2] if not shape.near)
    if instruction.opcode == "fusion":
        return _fused(instruction, computation, module)
    read = sum(_read(instruction, place, computation) for place in range(len(instruction.operands)))
    return read + _written(instruction, computation)


def _far(instruction: Instruction) -> float:
    return float(sum(shape.bytes for shape in instruction.shapes if not shape.near))


def _read(instruction: Instruction, place: int, computation: Computation) -> float:
    """Bytes of one operand that an instruction reads."""
    operand = computation.instructions.get(instruction.operands[place])
    if operand is None or not _far(operand):
        return 0.0
    if place == 0 and instruction.opcode in ("gather", "dynamic-slice", "slice"):
        return min(float(instruction.bytes), _far(operand))
    if place == 0 and instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 0.0 if instruction.opcode == "dynamic-update-slice" else _update(instruction, computation)
    return _far(operand)


def _update(instruction: Instruction, computation: Computation) -> float:
    """Bytes of what is put into a larger array."""
    place = 1 if instruction.opcode == "dynamic-update-slice" else len(instruction.operands) - 1
    found = computation.instructions.get(instruction.operands[place])
    return float(found.bytes) if found else 0.0


def _written(instruction: Instruction, computation: Computation) -> float:
    if not _far(instruction):
        return 0.0
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return _update(instruction, computation)
    return _far(instruction)


def _fused(instruction: Instruction, computation: Computation, module: Module) -> float:
    """What a fusion's parameters are read for, and what its root writes."""
    called = module.computations.get(instruction.attribute("calls"))
    if called is None:
        return _far(instruction) + sum(
            _far(computation.instructions[name]) for name in instruction.operands if name in computation.instructions
        )
    total = 0.0
    for name, parameter in zip(instruction.operands, called.parameters, strict=False):
        operand = computation.instructions.get(name)
        far = _far(operand) if operand is not None else 0.0
        total += min(far, _used(called, parameter.name, module)) if far else 0.0
    root = called.root
    parts = [called.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for part, shape in zip(parts, instruction.shapes, strict=False):
        if not shape.near:
            total += _put(part, called, float(shape.bytes))
    return total


def _put(part: Instruction, called: Computation, whole: float) -> float:
    """Bytes that a result of a fusion writes: of an array that is updated in place, the update."""
    while part.opcode in _PASSING and part.operands:
        part = called.instructions[part.operands[0]]
    return _update(part, called) if part.opcode in ("dynamic-update-slice", "scatter") else whole


def _used(called: Computation, name: str, module: Module) -> float:
    """Bytes of a fusion's parameter that its users read."""
    total = 0.0
    for user in called.users(name):
        whole = float(called.instructions[name].bytes)
        if user.opcode in ("gather", "dynamic-slice", "slice") and user.operands[0] == name:
            total += float(user.bytes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            total += 0.0
        elif user.opcode in _PASSING:
            total += min(whole, _used(called, user.name, module) or whole)
        elif user.opcode == "fusion" and (inner := module.computations.get(user.attribute("calls"))):
            place = user.operands.index(name)
            total += _used(inner, inner.parameters[place].name, module) or whole
        else:
            return whole
    return total
