"""Text, image, video and audio from raw media, some of them broken, to a trained CROSSAN."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmrec_jax import modes
from mmrec_jax.config import method
from mmrec_jax.store import HiddenStateStore
from mmrec_jax.training import load_params
from mmrec_jax.training.trees import named_leaves
from tests.tiny_backbones import write_backbone
from tests.tiny_run import ROOT

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


NAMES = {"title": "bert", "picture": "vit", "recording": "whisper", "clip": "videomae"}


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """The config of a run over text, image, video and audio, and the workdir that it was trained in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import four_modalities
    from tests.store.test_extract_video import make_video

    folder = tmp_path_factory.mktemp("four")
    raw = folder / "raw"
    raw.mkdir()
    clips = [raw / f"{i}.mp4" for i in range(4)]
    for seed, clip in enumerate(clips):
        make_video(clip, seed)
    media = {
        "picture": [write_picture(raw / f"{i}.png", i) for i in range(30)],
        "recording": [write_recording(raw / f"{i}.wav", i) for i in range(20)],
        "clip": clips,
    }
    four_modalities.build(folder / "data", [f"a thing of {i}" for i in range(40)], media, users=30)
    backbones = {name: str(write_backbone(folder / family, family)) for name, family in NAMES.items()}
    config = four_modalities.config(folder / "data", backbones, epochs=1)
    config.modalities.title.max_tokens = 20
    config.extraction.progress = False
    config.extraction.max_failure_share = 0.1
    config.baselines, config.show_users = (), 0
    modes.train(modes.open_run(config, folder / "run", trains=True))
    return config, folder / "run"


@pytest.mark.long
def test_four_modalities_are_extracted_in_one_run_and_crossan_trains_on_them(four: tuple[ConfigDict, Path]) -> None:
    _, workdir = four
    report = json.loads((workdir / "store/extraction_report.json").read_text())
    counts = {name: (part["present"], part["absent"], part["failed"]) for name, part in report.items()}
    assert counts == {"title": (40, 0, 0), "picture": (28, 10, 2), "recording": (18, 20, 2), "clip": (3, 36, 1)}
    assert report["picture"]["reasons"]["item4"] == "file not found"
    assert report["recording"]["reasons"]["item2"] == "empty file (zero bytes)"
    assert report["clip"]["reasons"]["item39"] == "no video in the catalogue"
    store = HiddenStateStore.open(workdir / "store")
    table = store.table(dict.fromkeys(NAMES, ()), store.item_ids)
    assert not table.complete
    assert (workdir / "metrics.csv").is_file()


@pytest.mark.long
def test_a_video_and_an_audio_backbone_are_trained_in_the_step(four: tuple[ConfigDict, Path], tmp_path: Path) -> None:
    config, workdir = four
    config = config.copy_and_resolve_references()
    del config.modalities["picture"]
    config.store = str(workdir / "store")
    for name in ("recording", "clip"):
        config.methods[name] = method(kind="bitfit")
    run = modes.open_run(config, tmp_path / "run", trains=True)
    begun = jax.jit(run.task.init)(jax.random.key(0), run.frozen)
    live = run.task.computed(begun, run.frozen).states  # of the weights as they were when the store was filled
    stored = run.store.table({"recording": (), "clip": ()}, [str(item) for item in run.data.item_ids[1:]])
    for name, layers in stored.values.items():
        np.testing.assert_array_equal(live.present[name], stored.present[name])
        for ours, theirs in zip(live.values[name], layers, strict=True):
            # float32 in batches of other sizes
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(np.abs(theirs).max()), err_msg=name)
    modes.train(run)
    trained = load_params(tmp_path / "run")[0]["embedded"]
    assert set(trained) == {"recording", "clip"}
    for name, tree in trained.items():
        before = named_leaves(begun["embedded"][name])
        moved = [path for path, leaf in named_leaves(tree).items() if np.abs(leaf - before[path]).max() > 0]
        assert len(moved) > len(before) / 2, name
