"""What holds for every kind of media: going on after an interruption, and reading only a little ahead."""

from __future__ import annotations

import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmrec_jax.backbones import ExtractionConfig, ModalityConfig
from mmrec_jax.store import HiddenStateStore, extract
from mmrec_jax.store.reading import read_ahead
from tests.store.test_extract import contents
from tests.store.test_extract_bytes import picture
from tests.store.test_extract_video import make_video
from tests.tiny_backbones import write_backbone

CONFIG = ExtractionConfig(image_batch=2, audio_batch=2, video_batch=2, commit_batches=1, progress=False)


def write_picture(path: Path, seed: int) -> None:
    path.write_bytes(picture(seed))


def write_recording(path: Path, seed: int) -> None:
    """Noise of a length of its own."""
    samples = np.random.default_rng(seed).integers(-9000, 9000, 2000 + 700 * seed).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())


@pytest.mark.parametrize(
    ("kind", "family", "write"),
    [
        ("image", "vit", write_picture),
        ("audio", "wav2vec2", write_recording),
        ("video", "videomae", make_video),
    ],
)
def test_an_interrupted_extraction_goes_on_and_ends_the_same_to_the_byte(
    kind: str, family: str, write: Callable[[Path, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="video and audio need PyAV (the `media` extra)")
    files = [f"{seed}.{'avi' if kind == 'video' else 'media'}" for seed in range(7)]
    for seed, file in enumerate(files):
        write(tmp_path / file, seed)
    catalogue = pl.DataFrame({"item": [f"i{seed}" for seed in range(7)], "file": files})
    modality = {"m": ModalityConfig(kind, str(write_backbone(tmp_path / family, family)), column="file")}
    whole = extract(modality, catalogue, tmp_path, tmp_path / "whole", CONFIG)["m"]
    assert (whole.present, whole.computed) == (7, 7)

    written = []
    with monkeypatch.context() as patch:
        write_block = HiddenStateStore.write

        def interrupted(self: HiddenStateStore, *block) -> None:
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(block)
            write_block(self, *block)

        patch.setattr(HiddenStateStore, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(modality, catalogue, tmp_path, tmp_path / "again", CONFIG)
    assert extract(modality, catalogue, tmp_path, tmp_path / "again", CONFIG)["m"].computed == 3
    stores = [contents(tmp_path / name) for name in ("whole", "again")]
    for store in stores:
        del store["extraction_report.json"]
    assert stores[0] == stores[1]


def test_no_more_is_read_ahead_than_is_asked_for() -> None:
    asked = []

    def read(piece: int) -> int:
        asked.append(piece)
        return int(piece) ** 2

    stream = read_ahead(read, np.arange(1000), threads=2, ahead=8)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    time.sleep(0.2)
    assert len(asked) <= 3 + 8 + 2
    stream.close()
    assert list(read_ahead(read, np.arange(0), threads=2, ahead=8)) == []
