"""Text, image, video and audio from raw media, some of them broken, to a trained CROSSAN."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrec_jax import modes
from mmrec_jax.store import HiddenStateStore
from tests.tiny_backbones import write_backbone
from tests.tiny_run import ROOT, kept_programs

pytest.importorskip("av", reason="video and audio need PyAV (the `media` extra)")


def write_recording(path: Path, seed: int) -> Path:
    samples = np.random.default_rng(seed).integers(-9000, 9000, 8000).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def write_picture(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)).save(path)
    return path


def test_four_modalities_are_extracted_in_one_run_and_crossan_trains_on_them(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import four_modalities

    from tests.store.test_extract_video import make_video

    raw = tmp_path / "raw"
    raw.mkdir()
    clips = [raw / f"{i}.mp4" for i in range(4)]
    for seed, clip in enumerate(clips):
        make_video(clip, seed)
    media = {
        "picture": [write_picture(raw / f"{i}.png", i) for i in range(30)],
        "recording": [write_recording(raw / f"{i}.wav", i) for i in range(20)],
        "clip": clips,
    }
    four_modalities.build(tmp_path / "data", [f"a thing of {i}" for i in range(40)], media, users=30)
    names = {"title": "bert", "picture": "vit", "recording": "whisper", "clip": "videomae"}
    backbones = {name: str(write_backbone(tmp_path / family, family)) for name, family in names.items()}
    config = four_modalities.config(tmp_path / "data", backbones, epochs=1)
    config.modalities.title.max_tokens = 20
    config.extraction.progress = False
    config.extraction.max_failure_share = 0.1
    config.baselines = ()
    with kept_programs(compiled):
        modes.train(modes.open_run(config, tmp_path / "run", trains=True))

    report = json.loads((tmp_path / "run/store/extraction_report.json").read_text())
    counts = {name: (part["present"], part["absent"], part["failed"]) for name, part in report.items()}
    assert counts == {"title": (40, 0, 0), "picture": (28, 10, 2), "recording": (18, 20, 2), "clip": (3, 36, 1)}
    assert report["picture"]["reasons"]["item4"] == "file not found"
    assert report["recording"]["reasons"]["item2"] == "empty file (zero bytes)"
    assert report["clip"]["reasons"]["item39"] == "no video in the catalogue"
    store = HiddenStateStore.open(tmp_path / "run/store")
    table = store.table(dict.fromkeys(names, ()), store.item_ids)
    assert not table.complete
    assert (tmp_path / "run" / "metrics.csv").is_file()
