"""A small shop: 30 items with a text and a picture, 40 users, and two random backbones, written to a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from tests.tiny_backbones import write_backbone

ITEMS, USERS, EVENTS = 30, 40, 7
NO_PICTURE = "i04"
COLOURS = ("red", "green", "blue", "grey", "pink")
THINGS = ("lamp", "chair", "table", "shelf", "bowl", "rug")


def item_ids() -> list[str]:
    """Ids of all items, i01 to i30."""
    return [f"i{number:02d}" for number in range(1, ITEMS + 1)]


def catalogue() -> pl.DataFrame:
    """Title, text and picture of every item; `NO_PICTURE` has no picture, and some titles are awkward to print."""
    titles = [f"{COLOURS[n % 5]} {THINGS[n % 6]}" for n in range(ITEMS)]
    titles[1] = "[REC] :lamp: [/bold] a title with brackets"
    titles[2] = "a chair with a title that goes on and on, as titles of goods in shops often do, up to here"
    ids = item_ids()
    return pl.DataFrame(
        {
            "item": ids,
            "title": titles,
            "about": [f"{colour} and {thing}" for colour in COLOURS for thing in THINGS],
            "picture": ["" if item == NO_PICTURE else f"pictures/{item}.png" for item in ids],
        }
    )


def write_dataset(folder: Path) -> Path:
    """`interactions.csv`, `items.csv` and `pictures/` in `folder`; every item occurs, users walk along the items."""
    random = np.random.default_rng(0)
    starts = random.permutation(np.arange(USERS) % ITEMS)
    steps = np.cumsum(random.integers(1, 3, (USERS, EVENTS)), axis=1)
    rows = (starts[:, None] + steps) % ITEMS
    (folder / "pictures").mkdir(parents=True)
    pl.DataFrame(
        {
            "user": np.repeat([f"u{number:02d}" for number in range(USERS)], EVENTS),
            "item": np.array(item_ids())[rows.reshape(-1)],
            "timestamp": np.tile(np.arange(EVENTS), USERS) + 1_000,
        }
    ).write_csv(folder / "interactions.csv")
    catalogue().write_csv(folder / "items.csv")
    for number, item in enumerate(item_ids()):
        if item != NO_PICTURE:
            write_picture(folder / "pictures" / f"{item}.png", number)
    return folder


def write_sequences(folder: Path) -> Path:
    """The same interactions and titles in the layout `sequences`: `users.tsv` and `items.tsv` without headers."""
    events = pl.read_csv(write_dataset(folder) / "interactions.csv")
    (folder / "interactions.csv").unlink()
    (folder / "items.csv").unlink()
    histories = events.group_by("user", maintain_order=True).agg(pl.col("item").str.join(" "))
    histories.write_csv(folder / "users.tsv", separator="\t", include_header=False)
    titles = catalogue().select("item", "title")
    titles.write_csv(folder / "items.tsv", separator="\t", include_header=False)
    return folder


def write_picture(path: Path, seed: int) -> None:
    """A picture of 32 x 32 random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_shop(folder: Path) -> Path:
    """The dataset in `folder/data`, a BERT in `folder/bert` and a ViT in `folder/vit`."""
    write_dataset(folder / "data")
    write_backbone(folder / "bert", "bert")
    write_backbone(folder / "vit", "vit")
    return folder
