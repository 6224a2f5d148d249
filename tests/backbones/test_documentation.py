"""docs/backbones.md knows every family, and the docstring of methods every place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmrec_jax.backbones.registry import known_families
from mmrec_jax.backbones.transformer import PLACES, BlockMethod

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text()
SECTIONS = {"text": "Text", "image": "Images", "video": "Video", "audio": "Audio"}


def section(title: str) -> str:
    """What stands under a heading of the page."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/backbones.md has no section {title}"
    return found[1]


@pytest.mark.parametrize(("model_type", "kind"), sorted(known_families()))
def test_every_family_is_named_under_its_kind(model_type: str, kind: str) -> None:
    assert f"`{model_type}`" in section(SECTIONS[kind]) + section("Multiway"), (
        f"docs/backbones.md names no `{model_type}` under {SECTIONS[kind]}: add a row"
    )


def test_every_model_type_in_the_tables_is_a_family() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named - {"model_type"} == {model_type for model_type, _ in known_families()}  # less the tables' heads


def test_text_presets_in_the_table_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `.* \| (`.*) \|$", section("Text"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row.rpartition(" | ")[2])}
    presets = {name for (_, kind), family in known_families().items() if kind == "text" for name in family.presets}
    assert listed == presets


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_explained(place: str) -> None:
    assert f'"{place}"' in (BlockMethod.__doc__ or "")
