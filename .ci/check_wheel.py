"""Makes sure that a wheel holds every file of the package that git knows, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile

PACKAGE = "mmrec_jax"


def main(path: str) -> None:
    """Compares a wheel with git's list; ends with an error that names the files."""
    listed = subprocess.run(["git", "ls-files", "-z", PACKAGE], capture_output=True, text=True, check=True).stdout
    wanted = {name for name in listed.split("\0") if name}
    names = zipfile.ZipFile(path).namelist()
    held = {name for name in names if name.startswith(f"{PACKAGE}/")}
    if wanted != held:
        sys.exit(f"{path} lacks {sorted(wanted - held)} and should not have {sorted(held - wanted)}")
    if not any(name.endswith("LICENSE") for name in names):
        sys.exit(f"{path} has no LICENSE")
    print(f"{path}: {len(held)} files of the package, and the licence")


if __name__ == "__main__":
    main(sys.argv[1])
