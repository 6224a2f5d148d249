"""Floating-point operations of the matrix products in a compiled program."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from mmrec_jax.planning.hlo import Computation, Instruction, Shape

GEMMS = ("__cublas$gemm", "__cublas$lt$matmul")


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """Of a dot, a convolution, or a GPU library's product; 0 for all other instructions. A multiplication and an
    addition are two.
    """
    if instruction.opcode == "dot":
        left = _operand(instruction, computation, 0)
        return _dot(instruction.shapes[0], left, instruction.numbers("lhs_contracting_dims"))
    if instruction.opcode == "convolution":
        return _convolution(instruction, computation)
    if instruction.opcode == "custom-call" and any(name in instruction.text for name in GEMMS):
        found = re.search(r'"dot_dimension_numbers":(\{[^}]*\})', instruction.text)
        axes = json.loads(found[1])["lhs_contracting_dimensions"] if found else []
        left = _operand(instruction, computation, 0)
        return _dot(instruction.shapes[0], left, [int(axis) for axis in axes])
    return 0.0


def is_float32(instruction: Instruction, computation: Computation) -> bool:
    """Whether a product's operands are float32."""
    return _operand(instruction, computation, 0).dtype == "f32"


def _operand(instruction: Instruction, computation: Computation, number: int) -> Shape:
    return computation.instructions[instruction.operands[number]].shapes[0]


def _dot(result: Shape, left: Shape, contracted: Sequence[int]) -> float:
    return 2.0 * result.elements * float(np.prod([left.sizes[axis] for axis in contracted], dtype=np.float64))


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """TPU programs have matrix products as convolutions, the batches of a product being spatial axes whose windows
    meet few values: only pairs of a value and a weight that meet are counted.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    assert found is not None, instruction.name
    left, weights = _operand(instruction, computation, 0), _operand(instruction, computation, 1)
    inputs, kernel, output = found[1], found[2], found[3]
    spatial = sorted(letter for letter in output if letter.isdigit())
    result = instruction.shapes[0]
    flops = 2.0 * result.sizes[output.index("b")] * result.sizes[output.index("f")]
    flops *= weights.sizes[kernel.index("i")]
    window = _window(instruction.text)
    for place, letter in enumerate(spatial):
        flops *= _meetings(
            left.sizes[inputs.index(letter)],
            weights.sizes[kernel.index(letter)],
            result.sizes[output.index(letter)],
            *(window[key][place] if key in window else default for key, default in _WINDOW.items()),
        )
    return flops


_WINDOW = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def _window(text: str) -> dict[str, list[int]]:
    """Entries of `window={...}`, one number an axis: of the padding, what is before."""
    found = re.search(r"window=\{([^}]*)\}", text)
    entries = dict(part.split("=") for part in found[1].split()) if found else {}
    return {key: [int(part.split("_")[0]) for part in value.split("x")] for key, value in entries.items()}


def _meetings(values: int, weights: int, results: int, stride: int, pad: int, dilated: int, spread: int) -> int:
    """Pairs of a result and a weight, along one spatial axis, that read a value and not padding or a hole."""
    places = np.arange(results)[:, None] * stride + np.arange(weights) * spread - pad
    inside = (places >= 0) & (places < (values - 1) * dilated + 1) & (places % dilated == 0)
    return int(inside.sum())
