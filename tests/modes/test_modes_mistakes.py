"""A user's mistake ends in one message that says what is wrong and where, exit code 2, and no traceback."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import polars as pl
import pytest

from tests.tiny_backbones import golden, golden_weights, write_backbone
from tests.tiny_dataset import write_dataset
from tests.tiny_run import CONFIG, ROOT, arguments, subprocess_of


@pytest.fixture
def refused(cli):
    """Runs a command line that must be refused, and returns its message."""

    def run(argv):
        code, _, err = cli(argv)
        assert code == 2, err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(trained, tmp_path / "shop")


def config_file(path, body):
    path.write_text(f"from mmrec_jax.config import base\n\ndef get_config():\n    config = base('x')\n{body}")
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.training.epoch=3"], "--config.training.epoch: the config has no key 'epoch'. Did you mean"),
        (["--config.modalities.sound.kind=text"], "the config has no key 'sound'"),
        (["--config.training.epochs=many"], "--config.training.epochs=many"),
        (["--config.training.epochs=0"], "training.epochs=0: must be at least 1"),
        (["--config.training.monitor=Loss"], "training.monitor='Loss': choose one of HR, NDCG, MRR"),
        (["--config.evaluation.ks=('a',)"], "evaluation: ks=('a',) must be"),
        (["--config.baselines=('best',)"], "baselines: best unknown"),
        (["--config.user.heads=3"], "user.heads=3 does not divide the width 8"),
        (["--config.user.heads=0"], "user.heads=0: must be at least 1"),
        (["--config.user.dropout=1.0"], "user.dropout=1.0: must lie in [0, 1)"),
        (["--modes=train"], "Unknown command line flag 'modes'"),
        (["--mode=fit"], "value should be one of"),
        (["--k=0"], "not a positive integer"),
        (["train"], "Unexpected argument 'train'"),
    ],
)
def test_flags_and_values_that_cannot_be(refused, shop, tmp_path, flags, message):
    assert message in refused(arguments(shop, tmp_path / "new", *flags))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        ("--workdir", "train"),
        ("--workdir", "plan"),
        ("--watch", "stream"),
        ("--out", "recommend"),
        ("--config.prepared", "train"),
        ("--config.data.source", "train"),
        ("--config.warm_start", "train"),
    ],
)
def test_a_bucket_is_refused_where_files_have_to_be_local(refused, shop, tmp_path, monkeypatch, flag, mode):
    monkeypatch.chdir(tmp_path)
    argv = arguments(shop, tmp_path / "new", f"--mode={mode}", f"{flag}=gs://bucket/folder")
    message = refused(argv)
    assert f"{flag.removeprefix('--config.')}=gs://bucket/folder: a URL cannot be used here" in message
    assert "store=gs://bucket/folder" in message
    assert list(tmp_path.iterdir()) == []


def test_config_files_that_cannot_be_loaded_are_named_with_the_line(refused, tmp_path):
    def loaded(path):
        return refused(["mmrec_jax", f"--config={path}"])

    path = tmp_path / "mine.py"
    assert "there is no such file" in loaded(path)
    assert "Name a config" in refused(["mmrec_jax"])
    assert "mine.py line 5: NameError" in loaded(config_file(path, "    config.name = nothing\n    return config\n"))
    assert "mine.py line 5: TypeError" in loaded(config_file(path, "    config.training.epochs = 'x'\n"))
    assert "mine.py line 5: AttributeError" in loaded(config_file(path, "    config.traning.epochs = 1\n"))
    assert "get_config() must return a ConfigDict" in loaded(config_file(path, "    pass\n"))
    wrong_key = "    config.training.epoch = 1\n    return config\n"
    assert "training: unknown key epoch. Did you mean epochs?" in loaded(config_file(path, wrong_key))
    wrong_type = "    config.model.bottlenecks = (('words', 'x'),)\n    return config\n"
    assert "model: bottlenecks=(('words', 'x'),) must be tuple[tuple[str, int], ...]" in loaded(
        config_file(path, wrong_type)
    )
    path.write_text("def get_config(:\n")
    assert "mine.py line 1: invalid syntax" in loaded(path)
    assert "does not know the argument 'big'; it knows smoke" in loaded(f"{ROOT}/configs/crossan.py:big")
    assert "takes no argument" in loaded(f"{config_file(path, '    return config')}:big")


def test_a_mistake_ends_a_process_with_code_2_and_help_comes_fast():
    import subprocess
    import time

    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess_of(["mmrec_jax", "--config=gone.py"], **options)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, "", "ConfigError: --config=gone.py: there is no such file.\n")
    start = time.perf_counter()
    process = subprocess_of(["mmrec_jax", "--help", f"--config={CONFIG}:nowhere"], **options)
    out, _ = process.communicate(timeout=60)
    assert time.perf_counter() - start < 3  # what the project promises; it takes some 0.2 s
    assert process.returncode == 0
    assert all(mode in out for mode in ("train", "extract", "evaluate", "recommend", "inspect"))


def test_a_workdir_that_cannot_be_written_to(refused, shop, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in refused(arguments(shop, tmp_path / "file"))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "x"), pl.exceptions.ComputeError("No space left (os error 28)")],
)
def test_a_disk_that_is_full_anywhere(refused, shop, tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("mmrec_jax.data.builder.write_histories", fails)
    message = refused(arguments(shop, tmp_path / "run", "--mode=extract"))
    assert message.startswith("The disk is full: ")
    assert "Free some space and start the same command again" in message


def test_an_error_of_the_program_keeps_its_traceback(cli, shop, tmp_path, monkeypatch):
    monkeypatch.setattr("mmrec_jax.data.builder.write_histories", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli(arguments(shop, tmp_path / "run", "--mode=extract"))


def test_a_damaged_config_in_the_workdir(refused, copied):
    (copied / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refused(["mmrec_jax", "--mode=evaluate", f"--workdir={copied}"])
    (copied / "config.json").write_text('{"name": "x", "future": 1}')
    assert "unknown key future" in refused(["mmrec_jax", "--mode=evaluate", f"--workdir={copied}"])


def test_a_modality_without_its_column(refused, shop, tmp_path):
    flag = "--config.modalities.words.template={title} {colour}"
    assert "the column 'colour', which the catalogue lacks" in refused(arguments(shop, tmp_path / "new", flag))
    flag = "--config.modalities.picture.column=photo"
    assert "the column 'photo', which the catalogue lacks" in refused(arguments(shop, tmp_path / "new", flag))


def test_extraction_for_a_model_by_ids(refused, tmp_path):
    path = config_file(tmp_path / "mine.py", "    config.model.system = 'sasrec'\n    return config\n")
    message = refused(["mmrec_jax", f"--config={path}", f"--workdir={tmp_path / 'new'}", "--mode=extract"])
    assert "x has no modality whose hidden states are stored" in message


def test_a_store_of_another_backbone_or_pooling_says_what_differs(refused, shop, trained, tmp_path):
    tensors, _ = golden("bert")
    other = {name: value * 1.5 for name, value in golden_weights(tensors).items()}
    backbone = write_backbone(tmp_path / "other", "bert", weights=other)
    store = f"--config.store={trained / 'store'}"
    message = refused(arguments(shop, tmp_path / "new", store, f"--config.modalities.words.backbone={backbone}"))
    assert "words: backbone is" in message
    assert "in the store and" in message
    message = refused(
        arguments(shop, tmp_path / "new", store, "--config.modalities.words.pooling=cls", "--config.model.width=4")
    )
    assert "words: pooling is 'mean' in the store and 'cls' in the config" in message


def test_states_that_are_not_numbers_name_modality_and_items(refused, shop, trained, tmp_path):
    from mmrec_jax.store.arrays import key_value_store, open_array

    store = shutil.copytree(trained / "store", tmp_path / "store")
    values = open_array(key_value_store(store), "words/values")
    values[[4, 7], 1, 3] = np.nan
    message = refused(arguments(shop, tmp_path / "new", f"--config.store={store}"))
    assert "hidden states of modality words are not finite (NaN or infinity) for 2 items: i05, i08" in message


def test_items_with_no_modality_at_all_are_listed(refused, shop, tmp_path):
    data = write_dataset(tmp_path / "data")
    items = pl.read_csv(data / "items.csv").with_columns(
        pl.when(pl.col("item").is_in(["i04", "i09"])).then(pl.lit("")).otherwise(pl.col(name)).alias(name)
        for name in ("title", "about", "picture")
    )
    items.write_csv(data / "items.csv")
    message = refused(arguments(shop, tmp_path / "new", f"--config.data.source={data}"))
    assert "2 items have none of the modalities picture, words: i04, i09" in message


def test_an_empty_evaluation_split_is_found_before_training(refused, shop, tmp_path):
    data = write_dataset(tmp_path / "data")
    log = pl.read_csv(data / "interactions.csv")
    log.group_by("user", maintain_order=True).head(2).write_csv(data / "interactions.csv")
    message = refused(
        arguments(shop, tmp_path / "new", f"--config.data.source={data}", "--config.data.user_core=0", only="words")
    )
    assert "the valid split" in message
    assert "holds no user with a history and a held-out event" in message
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_cut_offs_beyond_the_catalogue_are_found_before_training(refused, shop, tmp_path):
    message = refused(arguments(shop, tmp_path / "new", "--config.evaluation.ks=(5,31)"))
    assert "evaluation.ks: k = 31 is larger than the catalogue of 30 items" in message
    message = refused(arguments(shop, tmp_path / "new", "--config.training.monitor=NDCG@40"))
    assert "training.monitor: k = 40 is larger" in message
    assert not (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["model"].update(width=16), "model.width: checkpoint 8, now 16"),
        (lambda config: config["modalities"].pop("picture"), "modalities.picture"),
        (lambda config: config["fusion"].update(kind="sum"), "fusion.kind: checkpoint 'momef', now 'sum'"),
        (
            lambda config: (config["model"].update(system="sasrec", bottleneck=64), config["modalities"].clear()),
            "system: checkpoint 'crossan', now 'sasrec'",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_a_checkpoint_of_another_system_width_or_modality_set(refused, copied, mode, change, message):
    content = json.loads((copied / "config.json").read_text())
    change(content)
    (copied / "config.json").write_text(json.dumps(content))
    assert message in refused(["mmrec_jax", f"--mode={mode}", f"--workdir={copied}"])


def test_checkpoints_that_are_all_damaged(refused, copied):
    for file in (path for path in (copied / "checkpoints").rglob("*") if path.is_file()):
        file.write_bytes(b"")
    assert "no usable checkpoint" in refused(["mmrec_jax", "--mode=evaluate", f"--workdir={copied}"])
    assert "checkpoints are damaged" in refused(["mmrec_jax", f"--workdir={copied}"])
