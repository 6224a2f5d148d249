"""Extraction of videos: by a video encoder, by an image encoder frame by frame, and with broken files among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from mmrec_jax.backbones import ExtractionConfig, ModalityConfig
from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.video import read_video
from mmrec_jax.errors import ConfigError, StoreMismatchError
from mmrec_jax.store import HiddenStateStore, extract
from tests.tiny_backbones import write_backbone

av = pytest.importorskip("av", reason="video needs PyAV (the `media` extra)")

QUIET = ExtractionConfig(video_batch=2, commit_batches=2, progress=False, max_failure_share=0.5, max_video_seconds=5)


def make_video(path: Path, seed: int, count: int = 12) -> None:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(count):
            picture = np.kron(rng.integers(0, 256, (2, 3, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_videos_are_extracted_and_broken_ones_are_reasons(tmp_path: Path) -> None:
    for item in range(3):
        make_video(tmp_path / f"{item}.mp4", item)
    (tmp_path / "3.mp4").write_bytes((tmp_path / "2.mp4").read_bytes()[:500])
    make_video(tmp_path / "4.mp4", 4, count=40)
    catalogue = pl.DataFrame({"item": list("012345"), "clip": [*(f"{item}.mp4" for item in range(5)), None]})
    whole, image = write_backbone(tmp_path / "videomae", "videomae"), write_backbone(tmp_path / "vit", "vit")
    modalities = {
        "clip": ModalityConfig("video", str(whole), column="clip", layers=(2,)),
        "frames": ModalityConfig("video", str(image), column="clip", layers=(0, 2), pooling="cls", frames=3),
        "largest": ModalityConfig("video", str(image), column="clip", layers=(2,), frames=3, frame_pooling="max"),
    }
    for name, unfit in (("clip", {"pooling": "cls"}), ("clip", {"frame_pooling": "max"})):
        with pytest.raises(ConfigError, match=r"has no class token|encodes all frames as one"):
            extract({name: replace(modalities[name], **unfit)}, catalogue, tmp_path, tmp_path / "store", QUIET)
    reports = extract(modalities, catalogue, tmp_path, tmp_path / "store", QUIET)
    assert [(r.present, r.absent, r.failed) for r in reports.values()] == [(3, 1, 2)] * 3
    reasons = reports["clip"].reasons
    assert "broken" in reasons["3"]
    assert reasons["4"] == "too long: more than 5 seconds"
    assert reasons["5"] == "no video in the catalogue"

    store = HiddenStateStore.open(tmp_path / "store")
    store.check(modalities)
    table = store.table({"clip": (2,), "frames": (2,), "largest": (2,)}, catalogue["item"].to_list())
    videomae, vit = load(str(whole)), load(str(image), kind="video", frames=3)
    for item in range(3):
        pixels = videomae.preprocess(read_video(tmp_path / f"{item}.mp4", 4, 10_000, 5))
        state = videomae.hidden_states(jnp.asarray(pixels[None]))[2][0]
        np.testing.assert_allclose(table.values["clip"][0][item + 1], state.mean(axis=0), atol=1e-5)
        frames = vit.hidden_states(jnp.asarray(vit.preprocess(read_video(tmp_path / f"{item}.mp4", 3, 10_000, 5))))[2]
        np.testing.assert_allclose(table.values["frames"][0][item + 1], frames[:, 0].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(table.values["largest"][0][item + 1], frames.mean(axis=1).max(axis=0), atol=1e-5)

    for changes, difference in (
        ({"frames": 0}, "frames is 3 in the store and 8 in the config"),
        ({"frame_pooling": "max"}, "frame_pooling is 'mean' in the store and 'max' in the config"),
    ):
        with pytest.raises(StoreMismatchError, match=difference):
            store.check({"frames": replace(modalities["frames"], **changes)})
