"""The layouts of a source directory: which files it holds and how their columns are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmrec_jax.data.config import LAYOUTS, DataConfig
from mmrec_jax.data.files import SUFFIXES
from mmrec_jax.errors import ConfigError, DataError

SAMPLE_PREFIX = "sample:"
STREAMED = "stream:"
"""Source of a run whose data is what a stream has brought, prepared already."""

_DEFAULT_COLUMNS = {
    "tables": ("user", "item", "timestamp", "rating", "item"),
    "movielens": ("userId", "movieId", "timestamp", "rating", "movieId"),
    "sequences": ("f0", "f1", "", "", "f0"),
    "recbole": ("user_id", "item_id", "timestamp", "rating", "item_id"),
}


@dataclass(frozen=True)
class Source:
    """A located source.

    Attributes:
        layout: one of `config.LAYOUTS` but "auto".
        directory: that media paths are relative to.
        interactions: file of the interactions.
        items: file of the catalogue; None where a RecBole source has no .item file.
        user, item, timestamp, rating: columns of the interactions.
        catalogue_item: the item id in the catalogue.
    """

    layout: str
    directory: Path
    interactions: Path
    items: Path | None
    user: str
    item: str
    timestamp: str
    rating: str
    catalogue_item: str

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return [self.interactions] + ([self.items] if self.items else [])


def locate(config: DataConfig) -> Source:
    """Finds the files of `config.source`.

    Raises:
        DataError: the directory or one of its files is missing.
        ConfigError: the layout cannot be told, or the sample's name is unknown.
    """
    directory = _directory(config.source)
    layout = _detect(directory, config) if config.layout == "auto" else config.layout
    finders = {"tables": _tables, "movielens": _movielens, "sequences": _sequences, "recbole": _recbole}
    interactions, items = finders[layout](directory, config)
    return source_of(config, layout, directory, interactions, items)


def source_of(config: DataConfig, layout: str, directory: Path, interactions: Path, items: Path | None) -> Source:
    """A source of given files, with the layout's columns where the config names no others."""
    user, item, timestamp, rating, catalogue_item = _DEFAULT_COLUMNS[layout]
    return Source(
        layout=layout,
        directory=directory,
        interactions=interactions,
        items=items,
        user=config.user_column or user,
        item=config.item_column or item,
        timestamp=config.timestamp_column or timestamp,
        rating=config.rating_column or rating,
        catalogue_item=config.catalogue_item_column or catalogue_item,
    )


def _directory(source: str) -> Path:
    if source.startswith(SAMPLE_PREFIX):
        samples = Path(__file__).resolve().parent.parent / "samples"
        directory = samples / source.removeprefix(SAMPLE_PREFIX)
        if not directory.is_dir():
            there = sorted(path.name for path in samples.glob("*") if (path / "interactions.parquet").exists())
            raise ConfigError(f"data.source={source!r} is no sample of this package; there is: {', '.join(there)}.")
        return directory
    directory = Path(source).expanduser()
    if not directory.is_dir():
        raise DataError(f"data.source={source!r} is not a directory: give the folder that holds the interactions.")
    return directory


def _detect(directory: Path, config: DataConfig) -> str:
    found = [
        layout
        for layout, there in {
            "tables": _named(directory, "interactions") or _named(directory, config.interactions_file),
            "movielens": sorted(directory.glob("ratings*.csv")),
            "sequences": (directory / "users.tsv").exists() and (directory / "items.tsv").exists(),
            "recbole": sorted(directory.glob("*.inter")),
        }.items()
        if there
    ]
    if "movielens" in found and "tables" in found and not _named(directory, "interactions"):
        found.remove("tables")  # the named file is one of the ratings files
    if len(found) != 1:
        looks = f"looks like {' and '.join(found)}" if found else "fits none of the known layouts"
        raise ConfigError(
            f"{directory} {looks}: set data.layout to one of {', '.join(LAYOUTS[1:])}. Expected "
            "are interactions.(csv|tsv|parquet) + items.(csv|tsv|parquet); ratings.csv + items.csv or "
            "movies.csv; users.tsv + items.tsv; or NAME.inter + NAME.item."
        )
    return found[0]


def _named(directory: Path, stem: str) -> list[Path]:
    if not stem:
        return []
    candidates = [directory / f"{stem}{suffix}" for suffix in SUFFIXES] + [directory / stem]
    return [path for path in candidates if path.is_file()]


def _one(directory: Path, key: str, named: str, *stems: str) -> Path:
    """The file that the config names, or the only one of the default stems."""
    if named:
        if not (directory / named).is_file():
            raise DataError(f"{directory} has no file {named!r}: data.{key} names it.")
        return directory / named
    found = [path for stem in stems for path in _named(directory, stem)]
    if not found:
        raise DataError(
            f"{directory} has no {' or '.join(stems)} file ({', '.join(SUFFIXES)}): add it, or name another "
            f"one with data.{key}."
        )
    if len(found) > 1:
        raise DataError(f"{directory} has {' and '.join(path.name for path in found)}: choose one with data.{key}.")
    return found[0]


def _tables(directory: Path, config: DataConfig) -> tuple[Path, Path | None]:
    return (
        _one(directory, "interactions_file", config.interactions_file, "interactions"),
        _one(directory, "items_file", config.items_file, "items"),
    )


def _movielens(directory: Path, config: DataConfig) -> tuple[Path, Path | None]:
    return (
        _one(directory, "interactions_file", config.interactions_file, "ratings"),
        _one(directory, "items_file", config.items_file, "items", "movies"),
    )


def _sequences(directory: Path, config: DataConfig) -> tuple[Path, Path | None]:
    return (
        _one(directory, "interactions_file", config.interactions_file or "users.tsv"),
        _one(directory, "items_file", config.items_file or "items.tsv"),
    )


def _recbole(directory: Path, config: DataConfig) -> tuple[Path, Path | None]:
    named = config.interactions_file
    found = [directory / named] if named else sorted(directory.glob("*.inter"))
    if len(found) != 1 or not found[0].is_file():
        raise DataError(
            f"{directory} has {', '.join(path.name for path in found) or 'no .inter file'}: name "
            "one with data.interactions_file."
        )
    items = directory / config.items_file if config.items_file else found[0].with_suffix(".item")
    if config.items_file and not items.is_file():
        raise DataError(f"{directory} has no file {config.items_file!r}: data.items_file names it.")
    return found[0], items if items.is_file() else None
