"""The notebook's cells run one after another."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.tiny_run import CONFIG, ROOT


@pytest.mark.long
def test_the_quickstart_runs_from_its_first_cell_to_its_last(trained, shop, tmp_path, capsys):
    notebook = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
    names = {"config": f"{CONFIG}:{shop}", "workdir": str(shutil.copytree(trained, tmp_path / "run"))}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags") for cell in cells] == [["parameters"], None, None, None]
    for cell in cells[1:]:
        exec("".join(cell["source"]), names)
    assert "shop: test split" in capsys.readouterr().out
    assert len(names["history"]) == 3
    assert not any(cell["outputs"] for cell in cells)
