"""The programs of a small run, compiled for TPUs and GPUs that are not here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmrec_jax.planning.topology import parse_topology
from tests.tiny_run import arguments, subprocess_of

ITEMS, USERS, PRICE = 1000, 500, 4.0
FLAGS = (
    "--mode=plan",
    f"--config.plan.catalogue={ITEMS}",
    f"--config.plan.users={USERS}",
    f"--config.plan.price={PRICE}",
    "--config.extraction.dtype=int8",
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("topology", "compared", "compiler"),
    [("v5e:2x4", "v5e:2x2", "tpu_compiler"), ("h100:1x1x2", "h100:1x1x1", "gpu_compiler")],
)
def test_step_evaluation_and_extraction_are_compiled(
    topology, compared, compiler, shop, tmp_path, request, monkeypatch
):
    request.getfixturevalue(compiler)
    # Programs as users have them.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setenv("XLA_FLAGS", "")
    with (tmp_path / "printed.txt").open("w") as printed:
        compare = f"--config.plan.compare={parse_topology(compared).chips}"
        argv = arguments(shop, tmp_path / "plan", f"--topology={topology}", compare, *FLAGS)
        assert subprocess_of(argv, stdout=printed).wait(900) == 0
    made = json.loads((tmp_path / "plan" / "plan.json").read_text())
    training, evaluation = made["training"], made["evaluation"]
    assert made["mesh"] == {"data": made["chips"], "model": 1, "expert": 1}
    assert [program["name"] for program in training["programs"]] == ["look up", "gradients", "update"]
    assert training["fits"] is True
    assert 0 < training["total_bytes"] < 2**30
    assert training["flops"] > 0
    assert training["examples_per_second"] > 0
    sent = {program["name"]: kinds(program) for program in training["programs"]}
    assert "all-reduce" in sent["gradients"]
    assert sent["look up"]
    assert not sent["update"]
    assert evaluation["fits"] is True
    assert evaluation["seconds"] > 0
    assert {program["name"] for program in evaluation["programs"]} == {"encode items", "encode users", "rank"}
    assert set(made["extraction"]) == {"words", "picture"}
    for part in made["extraction"].values():
        assert not part["refused"]
        assert part["flops"] > 0
        assert part["price"] == pytest.approx(PRICE * ITEMS / part["items_per_second_and_chip"] / 3600)
    assert made["epoch"]["price"] == pytest.approx(
        PRICE * made["chips"] * USERS / training["examples_per_second"] / 3600
    )
    assert made["not_compared"] == {}
    assert made["compared"]["topology"] == compared
    assert all(made["compared"][kind]["efficiency"]["roofline"] > 0 for kind in ("strong", "weak"))
    page = (tmp_path / "printed.txt").read_text()
    assert " chip-hours, which cost " in page
    assert "| hours of one chip | price |" in page


def kinds(program: dict[str, Any]) -> set[str]:
    """Of its messages."""
    return {message["kind"] for message in program["collectives"]}
