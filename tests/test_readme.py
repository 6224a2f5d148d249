"""The README says what works: its commands, its links, its Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_two_marked_commands_install_and_run_the_main_job_and_the_tests():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = dict(re.findall(r"<!-- ci: (\w+) -->\n```bash\n(.*?)\n```", text))
    assert marked == {
        "run": "pip install -e . && python -m mmrec_jax.main --config=configs/crossan.py",
        "test": 'pip install -e ".[test]" && pytest',
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_are_python(page):
    examples = blocks(page, "python")
    assert all(ast.parse(example) for example in examples)


def test_files_that_commands_name_exist():
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:configs|bench|tests|\.ci)/[\w/]+\.?\w*", page.read_text(encoding="utf-8"))
    }
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_example_config_of_the_readme_is_one(tmp_path):
    from mmrec_jax.config import resolve

    page = next(block for block in blocks(ROOT / "README.md", "python") if "def get_config" in block)
    names: dict = {}
    exec(compile(page, "shop.py", "exec"), names)
    config = resolve(names["get_config"]())
    assert set(config.modalities) == {"text", "photo"}


def test_every_page_of_the_documentation_is_in_both_indexes():
    readme, index = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "README.md"))
    pages = [page.name for page in PAGES[2:] if page.name != "README.md"]
    assert [page for page in pages if f"(docs/{page})" not in readme or f"({page})" not in index] == []
