"""`--mode=plan` for eight CPU devices, which every machine can compile for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mmrec_jax.config import resolve
from mmrec_jax.parallel import ParallelConfig
from mmrec_jax.planning.chips import CHIPS
from mmrec_jax.planning.plan import _others, make_plan
from mmrec_jax.planning.report import as_page
from mmrec_jax.planning.shapes import chosen_sizes, run_shapes
from mmrec_jax.planning.topology import Topology, parse_topology
from mmrec_jax.planning.training import StepPlan
from tests.tiny_config import get_config
from tests.tiny_run import arguments, subprocess_of

ITEMS, USERS, BATCH, LENGTH, WIDTH, LAYERS = 1000, 500, 16, 6, 24, {"words": 3, "picture": 2}
SIZES = (f"--config.plan.catalogue={ITEMS}", f"--config.plan.users={USERS}", "--config.plan.tokens=8")


MEMORY = 2e5


@pytest.fixture(scope="module")
def planned(shop, tmp_path_factory) -> Path:
    """The workdir of a plan for `cpu:8`; what it printed is in `printed.txt`."""
    workdir = tmp_path_factory.mktemp("planned")
    argv = arguments(shop, workdir, "--mode=plan", "--topology=cpu:8", *SIZES, "--config.extraction.dtype=int8")
    with (workdir / "printed.txt").open("w") as printed:
        assert subprocess_of(argv, stdout=printed).wait(240) == 0
    return workdir


@pytest.fixture(scope="module")
def content(planned) -> dict:
    """Its `plan.json`."""
    return json.loads((planned / "plan.json").read_text())


def test_the_batch_is_as_large_as_it_can_be_where_nothing_is_said(content):
    assert content["mesh"] == {"data": 8, "model": 1, "expert": 1}
    assert content["sizes"] == {
        "items": ITEMS,
        "users": USERS,
        "batch": BATCH,
        "length": LENGTH,
        "distinct": 16 * 7 + 1,  # the padding row among them
        "steps": 16 * 6,
    }
    # Multiples of 16, and of 16 a device.
    assert content["axes"] == {"distinct": 128, "step": 128}


def test_the_store_is_split_by_rows_over_the_devices(content):
    rows = -(-(ITEMS + 1) // 8)
    vectors = sum(LAYERS.values())
    # int8 values with a float32 scale a vector, whether an item has each modality, and the popularity.
    assert content["training"]["bytes"]["store"] == rows * (vectors * (WIDTH + 4) + len(LAYERS) + 4)


def test_adam_keeps_two_moments_of_every_parameter(content):
    groups = content["training"]["bytes"]
    assert 0 < groups["optimiser"] - 2 * groups["params"] <= 16  # its counts of steps
    assert content["training"]["total_bytes"] == sum(groups.values())


def test_a_step_is_three_programs_with_what_each_of_them_sends(content):
    programs = {program["name"]: program for program in content["training"]["programs"]}
    assert list(programs) == ["look up", "gradients", "update"]
    assert {sent["kind"] for sent in programs["look up"]["collectives"]} == {"all-gather", "reduce-scatter"}
    assert "all-reduce" in {sent["kind"] for sent in programs["gradients"]["collectives"]}
    assert programs["update"]["collectives"] == []
    assert programs["gradients"]["flops"] > 0
    assert programs["look up"]["flops"] == 0


def test_nothing_but_rows_of_the_batch_moves_between_devices(content):
    (looked_up,) = (p for p in content["training"]["programs"] if p["name"] == "look up")
    distinct = content["axes"]["distinct"]
    batch = distinct * (sum(LAYERS.values()) * (WIDTH + 4) + len(LAYERS) + 4)
    # Their states, and the ids that are asked for.
    assert sum(sent["bytes"] for sent in looked_up["collectives"]) == batch + 4 * distinct


def test_evaluation_encodes_all_rows_and_ranks_all_users(content):
    runs = {program["name"]: program["runs"] for program in content["evaluation"]["programs"]}
    assert runs == {"encode items": 1, "encode users": 1, "rank": 1}
    assert not content["evaluation"]["refused"]


def test_extraction_has_every_modality_of_the_store(content):
    assert set(content["extraction"]) == set(LAYERS)
    assert all(part["flops"] > 0 for part in content["extraction"].values())


def test_no_time_is_predicted_for_a_chip_without_rates(content):
    assert set(content["training"]["seconds"].values()) == {None}
    assert content["training"]["fits"] is None
    assert content["compared"] is None


def test_the_page_is_printed_and_written(planned):
    page = (planned / "plan.md").read_text()
    assert page.splitlines()[0] == "# shop on cpu:8"
    assert "--topology=cpu:8" in page
    assert page.strip() in (planned / "printed.txt").read_text()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "--topology=v5e:16x16"),
        (("--topology=v5e",), "name a chip"),
        (("--topology=cpu:1", "--config.plan.catalogue=5"), "plan.users"),
        (("--topology=cpu:1", "--config.data.source=nowhere"), "--config.plan.catalogue="),
        (("--topology=cpu:1", *SIZES, "--config.modalities.words.backbone=nobody/knows"), "no preset is named"),
    ],
)
def test_what_a_plan_lacks_is_said(flags, told, shop, tmp_path, cli):
    code, _, errors = cli(arguments(shop, tmp_path / "new", "--mode=plan", *flags))
    assert code == 2
    assert told in errors


def test_other_modes_do_not_take_a_topology(shop, tmp_path, cli):
    code, _, errors = cli(arguments(shop, tmp_path / "new", "--topology=cpu:8"))
    assert code == 2
    assert "--topology is read by --mode=plan only" in errors


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4x4", "plan"), ("h100:1x1x8", "plan_gpu")])
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(topology, extra, shop, tmp_path, cli, monkeypatch):
    found = importlib.util.find_spec
    absent = ("libtpu", "jax_cuda12_plugin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else found(name, *a))
    code, _, errors = cli(arguments(shop, tmp_path / "new", "--mode=plan", f"--topology={topology}", *SIZES))
    assert code == 2
    assert f'pip install -e ".[{extra}]"' in errors


@pytest.fixture(scope="module")
def small_chip(shop) -> dict:
    """One chip with rates and with 150 kB of memory."""
    chip = dataclasses.replace(CHIPS["cpu"], memory=MEMORY, flops=1e12, bandwidth=1e11)
    return {"shop": shop, "topology": Topology(chip, (1,))}


def small_config(shop) -> ConfigDict:
    """Texts alone, and the step alone."""
    config = get_config(f"{shop},words")
    config.plan.catalogue, config.plan.users, config.plan.programs = ITEMS, USERS, ("training",)
    return config


@pytest.fixture(scope="module")
def too_small(small_chip) -> dict:
    """A plan for that chip."""
    settings = resolve(small_config(small_chip["shop"]))
    return make_plan(settings, small_chip["topology"], chosen_sizes(settings), None)


def test_what_does_not_fit_is_told_what_to_change_until_it_does(too_small):
    training, tried = too_small["training"], too_small["advice"]
    assert training["fits"] is False
    assert training["total_bytes"] > training["available_bytes"]
    assert [step["fits"] for step in tried] == [False] * (len(tried) - 1) + [True]
    assert tried[0]["flags"] == "--config.extraction.dtype=int8"
    assert "--config.training.batch_size=8" in tried[1]["flags"]
    page = as_page(too_small, "a command")
    assert "**Does not fit**" in page
    assert all(step["flags"] in page for step in tried)


@pytest.fixture(scope="module")
def fitting(too_small, small_chip) -> dict:
    """A plan with the proposed changes, for a chip of two an hour."""
    config = small_config(small_chip["shop"])
    config.plan.price = 2.0
    whole = {"training": {"batch_size": int}, "extraction": {"dtype": str}}
    for flag in " ".join(step["flags"] for step in too_small["advice"]).split():
        section, name = flag.removeprefix("--config.").split("=")[0].split(".")
        config[section][name] = whole[section][name](flag.split("=")[1])
    settings = resolve(config)
    return make_plan(settings, small_chip["topology"], chosen_sizes(settings), None)


def test_a_run_with_the_proposed_changes_fits_as_it_was_told(too_small, fitting):
    found = fitting["training"]
    assert found["fits"] is True
    assert found["total_bytes"] == pytest.approx(too_small["advice"][-1]["total_bytes"], rel=0.02)


def test_an_epoch_costs_the_chip_hours_of_its_users(fitting, too_small, content):
    epoch, rate = fitting["epoch"], fitting["training"]["examples_per_second"]
    hours = USERS / rate / 3600
    assert epoch == {"users": USERS, "chip_hours": pytest.approx(hours), "price": pytest.approx(2 * hours)}
    told = f"An epoch of {USERS} users takes {hours:,.2f} chip-hours, which cost {2 * hours:,.2f}."
    assert told in as_page(fitting, "a command")
    # What does not fit takes no time, nor what no rates are known of.
    for other in (too_small, content):
        assert other["epoch"] == {"users": USERS, "chip_hours": None, "price": None}
        assert "chip-hours" not in as_page(other, "a command")


def test_without_a_price_no_money_is_told(fitting):
    page = as_page({**fitting, "epoch": {**fitting["epoch"], "price": None}}, "a command")
    assert "chip-hours." in page
    assert "cost" not in page.split("## Where this is weak")[0]


def test_a_step_takes_as_long_as_its_products_and_its_traffic(too_small):
    training = too_small["training"]
    seconds = training["seconds"]["roofline"]
    assert seconds >= training["flops"] / 1e12
    assert seconds >= training["bytes_moved"] / 1e11
    assert training["examples_per_second"] == pytest.approx(BATCH / seconds)


def test_nothing_is_sent_on_one_chip(too_small):
    assert all(not program["collectives"] for program in too_small["training"]["programs"])


@pytest.fixture
def compared(small_chip, monkeypatch):
    """A function: users a batch, and devices that the mesh has to have -> the plan for two of the small chips, compared
    with one, and how many steps were compiled; nothing is."""
    config, compiled = small_config(small_chip["shop"]), []
    monkeypatch.setattr("mmrec_jax.planning.plan.plan_step", lambda run: compiled.append(run) or StepPlan([], {}))
    one = small_chip["topology"]

    def plan(batch: int, devices: int = 0) -> tuple[dict, int]:
        def shapes(config, topology, sizes):
            if devices:
                ParallelConfig(data=devices).shape(topology.chips)
            return dataclasses.replace(run_shapes(config, one, sizes), topology=topology)

        monkeypatch.setattr("mmrec_jax.planning.plan.run_shapes", shapes)
        config.training.batch_size = batch
        settings = resolve(config)
        return make_plan(settings, Topology(one.chip, (2,)), chosen_sizes(settings), one), len(compiled)

    return plan


def test_what_cannot_be_compared_costs_the_comparison_and_not_the_plan(compared):
    found, compiled = compared(BATCH, devices=2)
    assert compiled == 1
    assert found["compared"] is None
    page = as_page(found, "a command")
    for name, users in (("strong", BATCH), ("weak", BATCH // 2)):
        told = found["not_compared"][name]
        assert told.startswith(f"cpu:1 with {users} users a batch: parallel.data=2")
        assert f"Not compared: {told}" in page


@pytest.mark.parametrize(("batch", "kinds"), [(1, {"strong"}), (2, {"strong", "weak"})])
def test_of_two_comparisons_one_may_be_possible(compared, batch, kinds):
    found, compiled = compared(batch)
    assert compiled == 1 + len(kinds)
    assert found["compared"].keys() - {"topology", "chips"} == kinds
    assert found["not_compared"].keys() == {"strong", "weak"} - kinds
    assert ("training.batch_size=1 is less than a user" in as_page(found, "a command")) == (len(kinds) == 1)


def test_a_slice_as_small_as_what_it_would_be_compared_with_is_said_to_be(small_chip):
    settings = resolve(small_config(small_chip["shop"]))
    _, left_out = _others(settings, parse_topology("v5e:4x4"), chosen_sizes(settings), None)
    assert set(left_out.values()) == {"v5e:4x4 has no more than plan.compare=16 chips."}
