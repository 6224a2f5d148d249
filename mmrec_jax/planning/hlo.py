"""Compiled programs as text: computations, and the instructions in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=?]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Shape:
    """An array's type, sizes, and memory.

    Attributes:
        dtype: as XLA writes it: `f32`, `bf16`, `s8`.
        sizes: of its axes.
        near: whether it lies in a chip's own fast memory (TPU: VMEM and such) and not in HBM.
    """

    dtype: str
    sizes: tuple[int, ...]
    near: bool = False

    @property
    def elements(self) -> int:
        """How many."""
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Without a layout's padding."""
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else int((re.findall(r"\d+", self.dtype) or ["8"])[0])
        return self.elements * int(bits or 0) // 8


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name, opcode: as in the text.
        shapes: of its result, a tuple's one after another.
        operands: names, in the same computation.
        text: what follows the operands: attributes.
        inside: what stands between the parentheses.
        is_root: whether it is its computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    inside: str
    is_root: bool = False

    def attribute(self, key: str) -> str:
        """A name or number after `key=`; "" where there is none."""
        found = re.search(rf"[ ,]{key}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""

    def numbers(self, key: str) -> tuple[int, ...]:
        """A list `key={1,2}`."""
        found = re.search(rf"[ ,]{key}=\{{([\d,]*)\}}", self.text)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()

    @property
    def bytes(self) -> int:
        """Of its result."""
        return sum(shape.bytes for shape in self.shapes)


@dataclass
class Computation:
    """A list of instructions, in the order in which they are run where the program is scheduled."""

    name: str
    is_entry: bool = False
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @property
    def root(self) -> Instruction:
        """Its result."""
        return next(i for i in self if i.is_root)

    @property
    def parameters(self) -> list[Instruction]:
        """In their order."""
        found = [i for i in self if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.inside))

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read another one."""
        return [i for i in self if name in i.operands]


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, the first of which to run is the entry."""

    computations: dict[str, Computation]

    @property
    def entry(self) -> Computation:
        """Where it begins."""
        return next(c for c in self.computations.values() if c.is_entry)


def read(text: str) -> Module:
    """The program of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations[head[2]] = Computation(head[2], bool(head[1]))
        elif line.startswith("}"):
            current = None
        elif (found := _LINE.match(line)) is not None:
            made = _instruction(found[2], bool(found[1]), line[found.end() :])
            current.instructions[made.name] = made
    if not any(c.is_entry for c in computations.values()):
        raise ValueError("the text of a compiled program has an ENTRY computation; this one has none")
    return Module(computations)


def _instruction(name: str, is_root: bool, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    assert opcode is not None, rest[:200]
    start = opcode.end() - 1
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop]
    return Instruction(
        name, opcode[1], shapes(rest[:end]), tuple(_NAME.findall(inside)), "," + rest[stop + 1 :], inside, is_root
    )


def shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a shape as XLA writes it, those of nested tuples among them."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        numbers = tuple(int(n) for n in re.findall(r"\d+", sizes))
        found.append(Shape(dtype, numbers, bool(space and space[1] != "0")))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    raise ValueError(f"no closing parenthesis in {text[:200]}")
