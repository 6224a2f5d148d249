"""Topologies by name, and the compilers for them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmrec_jax.errors import PlanningError
from mmrec_jax.planning.compile import _compiled, compile_program
from mmrec_jax.planning.topology import devices, parse_topology
from tests.tiny_run import ROOT


def test_names_are_read_and_written():
    for name in ("v5e:16x16", "v5p:4x4x4", "h100:1x8x8", "cpu:8"):
        assert parse_topology(name).name == name
    assert parse_topology("v6e:16x16").chips == 256
    assert parse_topology("h100:1x8x8").per_host == 8


@pytest.mark.parametrize("name", ["", "v5e", "v5e:16", "v5e:16x16x16", "v9:4x4", "h100:8", "cpu:0", "cpu:2x2"])
def test_other_names_are_told_what_there_is(name):
    with pytest.raises(PlanningError, match="v5e:16x16"):
        parse_topology(name)


@pytest.mark.parametrize(
    ("large", "limit", "small"),
    [
        ("v5e:16x16", 16, "v5e:4x4"),
        ("v5p:4x4x4", 16, "v5p:2x2x4"),
        ("v5p:4x4x12", 16, "v5p:2x2x3"),
        ("v5e:4x4", 16, None),
        ("h100:1x8x8", 8, "h100:1x1x8"),
        ("h100:2x4x8", 32, "h100:1x4x8"),
        ("h100:1x6x8", 16, "h100:1x2x8"),
        ("h100:1x3x8", 16, "h100:1x1x8"),
        ("h100:1x12x8", 32, "h100:1x4x8"),
        ("h100:1x2x8", 4, "h100:1x1x4"),
    ],
)
def test_a_slice_is_compared_with_a_small_one_of_its_kind(large, limit, small):
    found = parse_topology(large).smaller(limit)
    assert (found and sorted(found.shape)) == (small and sorted(parse_topology(small).shape))


def test_a_host_has_no_more_gpus_than_there_are():
    with pytest.raises(
        PlanningError, match="at most 8 GPUs, and 16 are asked for: take more hosts, such as h100:1x2x8"
    ):
        parse_topology("h100:1x1x16")


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "plan"), ("h100:1x1x8", "plan_gpu")])
def test_a_missing_compiler_names_the_extra_to_install(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(PlanningError, match=rf'pip install -e "\.\[{extra}\]"'):
        devices(parse_topology(name))


def test_more_cpu_devices_than_the_process_has_are_an_error_with_the_flag():
    jax.devices()
    with pytest.raises(PlanningError, match="xla_force_host_platform_device_count=512"):
        devices(parse_topology("cpu:512"))


def _split(name: str):
    """x @ w, the rows of x over all devices of a topology."""
    topology = parse_topology(name)
    mesh = Mesh(list(devices(topology)), ("data",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct(
        (64 * topology.chips, 128), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    w = jax.ShapeDtypeStruct((128, 256), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    return compile_program("product", lambda x, w: x @ w, (x, w), topology)


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:16x16"])
def test_a_program_is_compiled_for_a_slice(name):
    found = _split(name)
    assert found.costs.flops == found.flops == 2 * 64 * 128 * 256
    assert found.memory.arguments == 2 * (64 * 128 + 128 * 256)
    assert found.seconds > 0


@pytest.mark.usefixtures("tpu_compiler")
def test_a_shape_that_no_slice_has_is_an_error():
    with pytest.raises(PlanningError, match="does not know it"):
        devices(parse_topology("v5e:17x3"))


@pytest.mark.usefixtures("tpu_compiler")
def test_a_program_larger_than_a_chip_is_refused_with_its_size():
    topology = parse_topology("v5e:2x2")
    mesh = Mesh(list(devices(topology)), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.ShapeDtypeStruct((2**24, 1024), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    found = compile_program("sort", lambda x: jnp.sort(x, axis=1), (rows,), topology)
    assert found.refused or found.memory.total > topology.chip.memory
    assert found.memory.total > 16 * 2**30


@pytest.mark.usefixtures("gpu_compiler")
def test_a_program_is_compiled_for_gpus():
    # In a process of its own: where JAX has looked for GPUs before, and found none, it compiles for none.
    program = (
        "from tests.planning.test_topology import _split; found = _split('h100:1x1x8'); "
        "print(int(found.costs.flops), int(found.memory.arguments))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(2 * 64 * 128 * 256), str(2 * (64 * 128 + 128 * 256))]


@pytest.mark.parametrize(
    ("topology", "message", "tries"),
    [
        ("h100:1x1x8", "INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.1", 2),
        ("h100:1x1x8", "INTERNAL: something else", 1),
        ("v5e:2x2", "INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.1", 1),
    ],
)
def test_a_product_that_xla_has_no_kernel_for_without_a_gpu_is_the_library_s(topology, message, tries):
    asked = []

    class Lowered:
        def compile(self, compiler_options=None):
            asked.append(compiler_options)
            if compiler_options is None:
                raise jax.errors.JaxRuntimeError(message)
            return "compiled"

    if tries == 2:
        assert _compiled(Lowered(), parse_topology(topology)) == "compiled"
        assert asked == [None, {"xla_gpu_enable_triton_gemm": False}]
    else:
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            _compiled(Lowered(), parse_topology(topology))
        assert asked == [None]
