"""What is installed with the library, what it imports, and what it asks for."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmrec_jax"
OPTIONAL = ("av", "torch", "jupyter", "IPython", "hypothesis", "pytest", "mypy", "ruff")
FORBIDDEN = ("tensorflow", "torch", "pandas", "pickle")
# Everything that takes long to import; the command line's help needs none of it.
HEAVY = (
    "jax",
    "flax",
    "numpy",
    "polars",
    "transformers",
    "matplotlib",
    "tensorflow_datasets",
    "grain",
    "orbax",
    "rich",
)


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> set[str]:
    """Names of the distributions in a list of requirements, one a line."""
    return {normal(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]) for line in text.split("\n") if line}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def imported(folder: Path) -> dict[str, str]:
    """Top-level module -> a file that imports it, at the head of a file or inside a function."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return found


def test_every_import_of_the_library_is_declared_and_every_declared_one_is_imported(setup):
    owners = metadata.packages_distributions()
    needed = {
        module: {normal(owner) for owner in owners.get(module, [module])}
        for module in imported(PACKAGE)
        if module not in sys.stdlib_module_names and module != "mmrec_jax"
    }
    declared = requirements(setup["options"]["install_requires"])
    extra = requirements(setup["options.extras_require"]["media"])
    undeclared = {module: owners for module, owners in needed.items() if not owners & (declared | extra)}
    assert not undeclared
    unused = declared - set().union(*needed.values())
    assert not unused


def test_the_library_imports_nothing_that_it_must_not_have():
    found = imported(PACKAGE)
    assert not {name: found[name] for name in FORBIDDEN if name in found}


def test_extras_are_the_ones_that_the_readme_and_the_checks_use(setup):
    assert set(setup["options.extras_require"]) == {"test", "media", "parity", "demo", "lint", "plan", "plan_gpu"}


def test_all_modules_can_be_imported_without_any_optional_package():
    program = f"""
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(name + " is optional", name=name)

sys.meta_path.insert(0, Refuse())
import mmrec_jax
names = [found.name for found in pkgutil.walk_packages(mmrec_jax.__path__, "mmrec_jax.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_help_tells_the_modes_and_imports_nothing_heavy():
    # The processor time, not the wall's: the tests share the machine with others.
    program = f"""
import resource, sys
from mmrec_jax.main import command
code = command(["mmrec_jax", "--help"])
used = resource.getrusage(resource.RUSAGE_SELF)
print("heavy:", sorted(set({HEAVY}) & set(sys.modules)))
print("fast:", used.ru_utime + used.ru_stime < 3)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(mode in done.stdout for mode in ("train", "extract", "evaluate", "recommend", "inspect", "--config"))
    assert "heavy: []" in done.stdout
    assert "fast: True" in done.stdout


def test_the_version_is_the_same_everywhere(setup):
    import mmrec_jax

    assert mmrec_jax.__version__ == setup["metadata"]["version"]
    assert f"\n## {mmrec_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_package_data_covers_the_type_marker_and_all_files_of_the_samples(setup):
    patterns = [line for line in setup["options.package_data"]["mmrec_jax"].split("\n") if line]
    covered = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    others = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert others <= covered
    assert PACKAGE / "py.typed" in covered


def test_the_samples_are_small_enough_for_the_repository():
    sizes = {path: path.stat().st_size for path in (PACKAGE / "samples").rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 15 * 10**6
    assert max(sizes.values()) <= 5 * 10**6
