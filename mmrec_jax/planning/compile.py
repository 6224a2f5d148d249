"""One program compiled for chips that are not here, and what its compiler tells of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from mmrec_jax.errors import PlanningError
from mmrec_jax.planning.costs import Costs, costs
from mmrec_jax.planning.hlo import read
from mmrec_jax.planning.topology import Topology

_NO_KERNEL = "Couldn't find output tile sizes"


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip that a program needs, by the compiler's account, and padded as the chip lays arrays out.

    Attributes:
        arguments: what it is given.
        outputs: what it makes beside that.
        temporary: what it needs while it runs.
        code: of the program itself.
    """

    arguments: float = 0.0
    outputs: float = 0.0
    temporary: float = 0.0
    code: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.arguments + self.outputs + self.temporary + self.code


@dataclass(frozen=True)
class Program:
    """A compiled program, or one that the compiler refused because it does not fit.

    Attributes:
        name: what it does.
        memory: of one chip.
        costs: of one run on one chip, counted in the program's text.
        flops, bytes: the compiler's own figures, in which each loop counts once; 0 where it has none.
        seconds: its own optimum, in which messages are memory traffic only, and each loop counts once.
        compile_seconds: how long that took.
        refused: what the compiler said where the program does not fit; "" where it does.
        outputs: what it gives, as trees of shapes with their shardings; None where it was refused.
    """

    name: str
    memory: Memory
    costs: Costs
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    refused: str = ""
    outputs: Any = field(default=None, repr=False)

    @property
    def fits(self) -> bool:
        """Whether the compiler made it."""
        return not self.refused


def compile_program(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...], topology: Topology, **options: Any
) -> Program:
    """Compiles a function for a topology; nothing is run and no array is made.

    Args:
        name: what it does.
        function: traced by `jax.jit`, or jitted.
        arguments: trees of `jax.ShapeDtypeStruct` whose shardings are over the topology's devices.
        topology: of the devices.
        options: of `jax.jit`.

    Raises:
        PlanningError: the compiler fails, other than by refusing a program that does not fit.
    """
    start = time.perf_counter()
    jitted: Any = jax.jit(function, **options) if options or not hasattr(function, "lower") else function
    lowered = jitted.lower(*arguments)
    try:
        compiled = _compiled(lowered, topology)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            told = message.splitlines()[0][:300]
            raise PlanningError(
                f"--topology={topology.name}: the compiler fails on {name!r}, and memory is not why: {told}"
            ) from error
        took = time.perf_counter() - start
        return Program(name, _asked(message), Costs(), compile_seconds=took, refused=message.splitlines()[0])
    took = time.perf_counter() - start
    analysis, own = compiled.memory_analysis(), compiled.cost_analysis() or {}
    memory = Memory()
    if analysis is not None:
        memory = Memory(
            float(analysis.argument_size_in_bytes),
            float(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
            float(analysis.temp_size_in_bytes),
            float(analysis.generated_code_size_in_bytes),
        )
    counted = costs(read(compiled.as_text()), topology)
    return Program(
        name,
        memory,
        counted,
        float(own.get("flops", 0.0)),
        float(own.get("bytes accessed", 0.0)),
        _optimum(float(own.get("optimal_seconds", 0.0))),
        took,
        outputs=jax.tree.map(
            lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding),
            compiled.out_info,
            compiled.output_shardings,
        ),
    )


def _compiled(lowered: Any, topology: Topology) -> Any:
    """The program; where XLA's own kernels for products cannot be chosen without a GPU to try them on, with the
    library's (cuBLAS)."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if topology.chip.platform != "cuda" or _NO_KERNEL not in str(error):
            raise
        return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


def _optimum(told: float) -> float:
    """The sum that the TPU compiler tells has -1 for each instruction that it has no time for, such as those which only
    rename arrays; what is left is right as long as it is less than a second."""
    return told + math.ceil(-told) if told < 0 else told


_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def _asked(message: str) -> Memory:
    """How much a refused program asked for, as far as the message says."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", message)
    if not found:
        return Memory()
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return Memory(temporary=float(number) * _UNITS[unit])
