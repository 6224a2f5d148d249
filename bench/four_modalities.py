"""Text, image, video and audio in one catalogue: one extraction, with broken files among the media, and CROSSAN on it.

    python bench/four_modalities.py --shared DIR [--workdir DIR]

DIR holds `data/flickr8k` (800 pictures with captions), `data/spoken-digits` (400 recordings), `data/msrvtt-clips` (14
clips with sound), and `weights/minilm-l6`, `weights/dinov2-small` and `weights/whisper-tiny-en-encoder`; the video
encoder is a tiny VideoMAE with random weights, since none is at hand (made with the extra `parity`). An item is a
picture with its first caption; the first 400 have a recording too, and the first 14 a clip. Five files are broken on
purpose. The interactions are made up. It proves the path from raw media to recommendations, and says nothing about
quality.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from ml_collections import ConfigDict

from mmrec_jax import modes
from mmrec_jax.config import base, modality
from mmrec_jax.store.report import REPORT

FOLDERS = ("picture", "recording", "clip")


def build(folder: Path, captions: Sequence[str], media: Mapping[str, Sequence[Path]], users: int) -> None:
    """A data directory: copies of the media, some of them broken, a catalogue, and a made-up log.

    Args:
        folder: made.
        captions: of the items; there are as many items.
        media: "picture", "recording" and "clip" -> files of the first items.
        users: in the log.
    """
    items = [f"item{number}" for number in range(len(captions))]
    table = pl.DataFrame({"item": items, "title": list(captions)})
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        paths: list[str | None] = [None] * len(items)
        for number, file in enumerate(media[name]):
            paths[number] = f"{name}/{number}{file.suffix}"
            shutil.copyfile(file, folder / str(paths[number]))
        table = table.with_columns(pl.Series(name, paths, pl.String))
    for column, number, kept in (("picture", 1, 300), ("recording", 2, 0), ("recording", 3, 30), ("clip", 1, 500)):
        broken = folder / table[column][number]
        broken.write_bytes(broken.read_bytes()[:kept])
    (folder / table["picture"][4]).unlink()
    table.write_csv(folder / "items.csv")
    rng = np.random.default_rng(0)
    with (folder / "interactions.csv").open("w", newline="") as written:
        log = csv.writer(written)
        log.writerow(["user", "item", "timestamp"])
        for user in range(users):
            # Each user walks through neighbouring items, so that there is something to learn.
            walk = (rng.integers(len(items)) + np.cumsum(rng.integers(1, 4, 10))) % len(items)
            log.writerows([f"user{user}", items[item], time] for time, item in enumerate(dict.fromkeys(walk)))


def random_videomae(folder: Path) -> Path:
    """A tiny VideoMAE with random weights, in Hugging Face layout."""
    import transformers

    settings = transformers.VideoMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_frames=8,
    )
    transformers.VideoMAEModel(settings).save_pretrained(folder)
    edges = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    processor = {"image_processor_type": "VideoMAEImageProcessor", **edges}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def config(folder: Path, backbones: Mapping[str, str], epochs: int) -> ConfigDict:
    """CROSSAN over the four modalities of a built folder."""
    made = base("four_modalities")
    made.data.source = str(folder)
    made.data.candidates = "catalogue"
    made.data.user_core = 3
    kinds = {"title": "text", "picture": "image", "recording": "audio", "clip": "video"}
    for name, kind in kinds.items():
        where = {"template": "{title}"} if kind == "text" else {"column": name}
        made.modalities[name] = modality(kind=kind, backbone=backbones[name], pooling="mean", **where)
    made.model.bottleneck, made.model.width, made.model.length = 8, 16, 8
    made.user.blocks = 1
    made.training.epochs = epochs
    made.training.batch_size = 16
    made.training.tensorboard = False
    made.evaluation.ks = (5, 10)
    made.evaluation.bootstrap = 50
    return made


def main() -> None:
    """Builds, extracts, trains and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", required=True, type=Path, help="directory with data/ and weights/")
    parser.add_argument("--workdir", type=Path, help="kept; else a temporary one")
    options = parser.parse_args()
    if options.workdir:
        run(options.shared, options.workdir)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options.shared, Path(folder))


def run(shared: Path, workdir: Path) -> None:
    """As the command line says."""
    data, weights = shared / "data", shared / "weights"
    captions = pl.read_csv(data / "flickr8k/captions.csv").unique("image", keep="first", maintain_order=True)
    media = {
        "picture": [data / "flickr8k/images" / name for name in captions["image"]],
        "recording": sorted((data / "spoken-digits/recordings").iterdir())[:400],
        "clip": sorted((data / "msrvtt-clips/videos").glob("*.mp4")),
    }
    build(workdir / "data", captions["caption"].to_list(), media, users=400)
    backbones = {
        "title": weights / "minilm-l6",
        "picture": weights / "dinov2-small",
        "recording": weights / "whisper-tiny-en-encoder",
        "clip": random_videomae(workdir / "videomae"),
    }
    made = config(workdir / "data", {name: str(path) for name, path in backbones.items()}, epochs=3)
    trained = modes.open_run(made, workdir / "run", trains=True)
    modes.train(trained)
    report = json.loads((workdir / "run/store" / REPORT).read_text())
    for name, part in report.items():
        failed = dict(list(part.pop("reasons").items())[: part["failed"]])
        print(name, json.dumps(part), *(f"\n  {item}: {reason}" for item, reason in failed.items()))


if __name__ == "__main__":
    main()
