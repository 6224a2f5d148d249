"""The mesh of a run: its sizes and rules, and what cannot be."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from mmrec_jax.config import base, resolve, to_json
from mmrec_jax.errors import ConfigError
from mmrec_jax.parallel import ParallelConfig, make_mesh, run_mesh


def test_minus_one_is_what_is_left():
    assert ParallelConfig().shape(8) == (8, 1, 1)
    assert ParallelConfig(model=2, expert=2).shape(8) == (2, 2, 2)
    assert ParallelConfig(data=1, expert=-1).shape(8) == (1, 1, 8)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"model": 3}, "3 does not divide the 8 devices"),
        ({"data": 2, "model": 2}, "make 4 devices, and there are 8"),
    ],
)
def test_sizes_that_do_not_make_up_the_devices_are_refused(sizes, told):
    with pytest.raises(ConfigError, match=told):
        ParallelConfig(**sizes).shape(8)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"data": -1, "model": -1}, "to one of them at most"),
        ({"data": 0}, "sizes of at least 1"),
        ({"negatives": "some"}, "choose global or local"),
        ({"rules": (("users", "data"),)}, "names 'users'"),
        ({"rules": (("batch", "data+rows"),)}, "names 'rows'"),
        ({"rules": (("rows", "data+data"),)}, "twice"),
    ],
)
def test_values_that_cannot_be_are_refused_with_the_key(values, told):
    with pytest.raises(ConfigError, match=told) as error:
        ParallelConfig(**values)
    assert "parallel." in str(error.value)


def test_rules_are_laid_over_the_defaults():
    config = ParallelConfig(rules=(("embed", "data"), ("rows", "")))
    assert config.axes("embed") == ("data",)
    assert config.axes("rows") == ()
    assert config.axes("batch") == ("data",)
    assert ParallelConfig().axes("rows") == ("data", "model", "expert")


def test_a_mesh_has_auto_axes_and_one_device_is_none():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    assert mesh.shape == {"data": 1, "model": 1, "expert": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert run_mesh(ParallelConfig(data=1)) is None


@dataclasses.dataclass(frozen=True)
class Chip:
    """What making a mesh asks of a device that is not here."""

    id: int
    platform: str
    device_kind: str
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0


def chips(platform, slices, sides, kind="TPU v6 lite"):
    return [
        Chip(100 * part + place, platform, kind, part, (place // sides, place % sides, 0))
        for part in range(slices)
        for place in range(sides**2)
    ]


def test_only_the_axis_data_goes_between_slices():
    mesh = make_mesh(ParallelConfig(model=2, expert=2), chips("tpu", 2, 4))
    assert dict(mesh.shape) == {"data": 8, "model": 2, "expert": 2}
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (slices == np.repeat([0, 1], 4)[:, None, None]).all()
    assert len(set(mesh.devices.flat)) == 32
    with pytest.raises(ConfigError, match=r"parallel.data=1 on 2 slices of 16, 16 chips: give a multiple"):
        make_mesh(ParallelConfig(data=1, model=-1), chips("tpu", 2, 4))


def test_hosts_of_gpus_are_slices_of_jax_and_taken_in_order():
    gpus = chips("gpu", 4, 2, "NVIDIA H100")
    mesh = make_mesh(ParallelConfig(model=4), gpus[::-1])
    assert [sorted(gpu.slice_index for gpu in row) for row in mesh.devices[:, :, 0]] == [[i] * 4 for i in range(4)]
    wide = make_mesh(ParallelConfig(data=2, model=8), gpus)
    assert [gpu.id for gpu in wide.devices.flat] == [gpu.id for gpu in gpus]


def test_the_section_is_part_of_the_config():
    config = base("some")
    config.model.system = "sasrec"
    config.parallel.model = 2
    config.parallel.rules = (("embed", "data"),)
    run = resolve(config)
    assert run.parallel == ParallelConfig(model=2, rules=(("embed", "data"),))
    assert to_json(run)["parallel"]["rules"] == [["embed", "data"]]
