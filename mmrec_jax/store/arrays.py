"""TensorStore arrays and small files under a store's location, local or gs://, by one code path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorstore as ts

from mmrec_jax.errors import StoreError

CHUNK_BYTES = 4 * 2**20
# Quantised states shrink by a fifth; floating ones do not. Hashes do not either, but the rest of their files does.
CODECS = {dtype: [{"name": "zstd", "configuration": {"level": 5}}] for dtype in ("int8", "uint64")}

# One context for all opens: they share connections, and memory:// stores outlive one handle.
_CONTEXT = ts.Context()


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turns TensorStore's errors (damage, a full disk, no permission, no network) into StoreError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise StoreError(f"{what}: {error}") from error


def key_value_store(location: str | Path) -> ts.KvStore:
    """Opens a location for reading and writing.

    Args:
        location: a local path, or a URL that TensorStore knows, such as gs://bucket/folder.

    Raises:
        StoreError: the location cannot be opened.
    """
    text = str(location)
    url = text if "://" in text else Path(text).expanduser().absolute().as_uri()
    with store_errors(f"store location {text} cannot be opened"):
        return ts.KvStore.open(url.rstrip("/") + "/", context=_CONTEXT).result()


def without_links(location: str | Path) -> str:
    """The location with symbolic links followed: a store that is opened by it stays the same when they are moved."""
    text = str(location)
    return text if "://" in text else str(Path(text).expanduser().resolve())


def read_json(files: ts.KvStore, name: str) -> object | None:
    """A small JSON file's content, or None where there is no such file.

    Raises:
        StoreError: the file is not valid JSON.
    """
    return read_version(files, name)[0]


def read_version(files: ts.KvStore, name: str) -> tuple[object | None, bytes]:
    """As `read_json`, and which version of the file that is."""
    with store_errors(f"{files.url}{name} cannot be read"):
        found = files.read(name).result()
    version = found.stamp.generation
    if found.state != "value":
        return None, version
    try:
        return json.loads(found.value), version
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{files.url}{name} is not valid JSON ({error}): the store is damaged") from error


def write_json(files: ts.KvStore, name: str, content: object, version: bytes | None = None) -> bool:
    """Replaces a small JSON file at once: a reader sees the old or the new content.

    Args:
        files: the store.
        name: of the file.
        content: of it.
        version: the one to be replaced; None for any.

    Returns:
        Whether it was replaced, which it is not where it has another version.
    """
    with store_errors(f"{files.url}{name} cannot be written"):
        text = json.dumps(content, indent=1, ensure_ascii=False).encode()
        return bool(files.write(name, text, if_equal=version).result().generation)


def create_array(files: ts.KvStore, name: str, shape: tuple[int, ...], dtype: str, rows: int = 0) -> None:
    """Makes a zarr3 array of zeros in place of any other, in files along its first axis.

    Args:
        files: the store.
        name: of the array.
        shape: of all of it.
        dtype: of its elements.
        rows: entries of the first axis in one file; 0 is as many as make up some 4 MB.
    """
    row = int(np.prod(shape[1:], dtype=np.int64)) * ts.dtype(dtype).numpy_dtype.itemsize
    # As many files as the size asks for, of equal length: a file is always as large as its full chunk.
    files_needed = max(1, -(-shape[0] * row // CHUNK_BYTES))
    metadata = {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [rows or max(1, -(-shape[0] // files_needed)), *shape[1:]]},
        },
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *CODECS.get(dtype, [])],
        "fill_value": 0,
    }
    _open(files, name, {"metadata": metadata, "create": True, "delete_existing": True})


def open_array(files: ts.KvStore, name: str) -> ts.TensorStore:
    """Opens an array that exists.

    Raises:
        StoreError: it does not exist or is damaged.
    """
    return _open(files, name, {"open": True})


def chunk_rows(array: ts.TensorStore) -> int:
    """How many entries of the first axis lie in one file."""
    # Not from the JSON of the array's spec: what TensorStore (0.1.86) makes of that stays in memory for ever.
    return array.chunk_layout.write_chunk_template.shape[0]


def read_lines(files: ts.KvStore, folder: str) -> Iterator[dict]:
    """The records of all JSON lines files in a folder, in the order of the files' names."""
    with store_errors(f"{files.url}{folder} cannot be read"):
        names = sorted(name.decode() for name in (files / f"{folder}/").list().result())
        for name in names:
            yield from map(json.loads, files.read(f"{folder}/{name}").result().value.splitlines())


def write_lines(files: ts.KvStore, name: str, records: list[dict]) -> None:
    """Replaces a file of JSON lines at once."""
    with store_errors(f"{files.url}{name} cannot be written"):
        files.write(name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()).result()


def _open(files: ts.KvStore, name: str, options: dict) -> ts.TensorStore:
    with store_errors(f"array {files.url}{name} cannot be opened"):
        return ts.open({"driver": "zarr3", **options}, kvstore=files / f"{name}/", context=_CONTEXT).result()
