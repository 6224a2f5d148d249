"""Backbones in the step: the same model as with cached states, trained, evaluated and served like any other."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrec_jax import Recommender, experiment, modes
from mmrec_jax.adapters.peft_files import export_lora
from mmrec_jax.backbones.backbone import load
from mmrec_jax.config import method, resolve
from mmrec_jax.errors import CheckpointError, ConfigError
from mmrec_jax.live import LiveStream
from mmrec_jax.modes.run import Run, open_run
from mmrec_jax.training import load_params
from mmrec_jax.training.manifest import describe
from mmrec_jax.training.step import seed_keys
from mmrec_jax.training.trees import named_leaves
from tests.tiny_dataset import NO_PICTURE, write_picture
from tests.tiny_run import CONFIG

METHODS = {"words": {"kind": "lora", "rank": 2, "dropout": 0.1}, "picture": {"kind": "houlsby", "bottleneck": 4}}


def config_of(shop: Path, methods: dict | None = None, only: str = ""):
    config = runpy.run_path(str(CONFIG))["get_config"](f"{shop}{only and ','}{only}")
    for name, settings in (methods or {}).items():
        config.methods[name] = method(**settings)
    config.baselines = ()
    config.training.epochs = 2
    config.training.compilation_cache_dir = "off"  # the tests have set it up
    return config


@pytest.fixture(scope="module")
def live(shop, tmp_path_factory) -> Run:
    """A finished run of side adapters over two live backbones with methods in them."""
    run = open_run(config_of(shop, METHODS), tmp_path_factory.mktemp("live") / "run", trains=True)
    before = {name: jax.tree.map(np.array, tree) for name, tree in run.frozen.live.backbones.items()}
    modes.train(run)
    for name, tree in before.items():
        jax.tree.map(np.testing.assert_array_equal, run.frozen.live.backbones[name], tree)
    return run


def loss_and_gradients(run: Run, params, key):
    """Of the first training batch."""
    stream = experiment.training_stream(run.config, run.data, run.live, run.live_catalogue)
    batch = next(stream)
    stream.close()

    def loss(params, frozen, batch):
        return run.task.loss(params, frozen, run.task.inputs(frozen, batch, key), key)[0]

    return jax.jit(jax.value_and_grad(loss))(params, jax.device_put(run.frozen), batch)


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(live: Run) -> None:
    params, manifest = load_params(live.workdir)
    assert set(params) == {"items", "users", "embedded"}
    names = named_leaves(params["embedded"])
    assert all("/added_" in name for name in names)
    assert {name.rsplit("/", 1)[1] for name in names if name.startswith("words")} == {"a", "b"}
    key = seed_keys(live.config.training.seed)[0]
    started = named_leaves(jax.jit(live.task.init)(key, live.frozen)["embedded"])  # the program that the training had
    assert started.keys() == names.keys()
    for name, leaf in names.items():
        assert np.abs(leaf - started[name]).max() > 0, name
    for name, part in live.live.backbones.items():
        described = manifest["run"]["modalities"][name]
        assert described["weights_sha256"] == part.backbone.weights_sha256
        assert described["method"]["kind"] == METHODS[name]["kind"]


def test_a_finished_run_recommends_explains_and_takes_new_items(live: Run, shop: Path) -> None:
    recommender = Recommender.load(live.workdir)
    listed = recommender.recommend(users=["u01", "u02"], k=3)
    assert listed.height == 6
    vectors = recommender.embed_items()
    title, about = live.data.catalogue.filter(live.data.catalogue["item"] == "i05").select("title", "about").row(0)
    record = {"item": "twin", "title": title, "about": about, "picture": "pictures/i05.png"}
    assert recommender.add_items([record, {**record, "item": "bare", "picture": ""}], shop / "data") == ["twin", "bare"]
    # the same inputs in another batch: float32 in another order
    np.testing.assert_allclose(
        recommender.embed_items(["twin"])[0], recommender.embed_items(["i05"])[0], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(recommender.embed_items()[: len(vectors)], vectors)
    told = recommender.explain(["bare", NO_PICTURE, "twin"])
    weights = dict(zip(zip(told["item"], told["modality"], strict=True), told["weight"], strict=True))
    assert weights["bare", "picture"] == weights[NO_PICTURE, "picture"] == 0
    assert weights["twin", "picture"] > 0
    recommender.add_items([{**record, "item": "lost", "picture": "pictures/gone.png"}], shop / "data")
    assert recommender.failed == {"picture": {"lost": "file not found"}}


def test_another_backbone_is_an_error_that_names_it(live: Run, shop: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shop / "bert", tmp_path / "bert")
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in weights.items()}, other / "model.safetensors")
    config = config_of(shop, METHODS)
    config.modalities.words.backbone = str(other)
    with pytest.raises(CheckpointError, match=r"modalities\.words\.weights_sha256"):
        open_run(config, live.workdir).parameters()


def test_live_frozen_backbones_are_the_same_model_as_cached_states(shop: Path, tmp_path: Path) -> None:
    key = jax.random.key(3)
    cached = open_run(config_of(shop), tmp_path / "cached")
    methods = {name: {"kind": "frozen"} for name in cached.config.modalities}
    live = open_run(config_of(shop, methods), tmp_path / "live")
    params = jax.jit(cached.task.init)(jax.random.key(0), cached.frozen)
    shapes = jax.eval_shape(live.task.init, jax.random.key(0), live.frozen)
    assert describe(params) == describe(shapes)
    expected, theirs = loss_and_gradients(cached, params, key)
    loss, ours = loss_and_gradients(live, params, key)
    # The backbone's states in other batches and another program: float32 rounding, carried through the model.
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, gradient in named_leaves(ours).items():
        wanted = named_leaves(theirs)[name]
        scale = max(float(jnp.abs(wanted).max()), 1e-4)
        np.testing.assert_allclose(gradient, wanted, atol=2e-4 * scale, rtol=0, err_msg=name)
    table, stored = live.task.computed(params, live.frozen).states, cached.table
    for name, layers in table.values.items():
        for layer, state in enumerate(layers):
            np.testing.assert_allclose(state, stored.values[name][layer], atol=1e-5)
        np.testing.assert_array_equal(table.present[name], stored.present[name])


def test_chunks_rematerialisation_and_scans_change_memory_and_not_the_gradient(shop: Path, tmp_path: Path) -> None:
    key, found = jax.random.key(1), []
    for more in ({}, {"remat": True, "scan": True, "chunk": 2, "heads": 1}):
        settings = {"words": {"kind": "lora", "rank": 2, "targets": ("query", "up"), **more}}
        run = open_run(config_of(shop, settings, "words"), tmp_path / "run")
        if not found:
            params = jax.jit(run.task.init)(jax.random.key(0), run.frozen)
            params["embedded"] = jax.tree.map(lambda leaf: leaf + 0.05, params["embedded"])
        found.append(loss_and_gradients(run, params, key))
    (loss, gradients), (other_loss, others) = found
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    for name, gradient in named_leaves(gradients["embedded"]).items():
        scale = float(jnp.abs(gradient).max())
        assert scale > 0, name
        np.testing.assert_allclose(named_leaves(others["embedded"])[name], gradient, atol=1e-4 * scale, err_msg=name)


def test_one_modality_may_be_live_and_another_cached(shop: Path, tmp_path: Path) -> None:
    run = open_run(config_of(shop, {"words": {"kind": "bitfit"}}), tmp_path / "run")
    assert set(run.store.modalities) == {"picture"}
    assert list(run.present) == list(run.config.modalities)
    params = jax.jit(run.task.init)(jax.random.key(0), run.frozen)
    own = named_leaves(load(str(shop / "bert"), kind="text", max_tokens=16).params)
    for name, leaf in named_leaves(params["embedded"]["words"]).items():
        np.testing.assert_array_equal(leaf, own[name])  # training begins with the pretrained weights
        assert name.endswith("bias")
        assert name not in named_leaves(run.frozen.live.backbones["words"])
        assert name not in named_leaves(run.live.backbones["words"].backbone.params)
    _, gradients = loss_and_gradients(run, params, jax.random.key(0))
    moved = [name for name, leaf in named_leaves(gradients["embedded"]).items() if jnp.abs(leaf).max() > 0]
    assert len(moved) > 20


def test_weights_that_a_training_begins_with_lie_on_the_device_once(shop: Path, tmp_path: Path, monkeypatch) -> None:
    run = open_run(config_of(shop, {"words": {"kind": "bitfit"}}, "words"), tmp_path / "run", trains=True)
    given = {}

    def fit(task, frozen, stream, config, workdir, description, begin, **options):
        given.update(frozen=frozen, begin=begin)
        raise ConfigError("this is all that was asked")

    monkeypatch.setattr("mmrec_jax.training.fit", fit)
    with pytest.raises(ConfigError, match="all that was asked"):
        modes.train(run)
    begin = named_leaves(given["begin"]["embedded"]["words"])
    assert begin
    assert not begin.keys() & named_leaves(given["frozen"].live.backbones["words"]).keys()
    assert given["frozen"].live.start == {}
    for tree in (given["begin"], run.live.backbones["words"].start):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))


def test_a_training_begins_with_lora_that_peft_may_have_written(live: Run, shop: Path, tmp_path: Path) -> None:
    part, added = live.live.backbones["words"], live.parameters()["embedded"]["words"]
    export_lora(tmp_path / "lora", part.backbone, part.method, added)
    settings = {"words": {"kind": "lora", "rank": 2, "start": str(tmp_path / "lora")}}
    run = open_run(config_of(shop, settings, "words"), tmp_path / "run")
    begun = jax.jit(run.task.init)(jax.random.key(0), run.frozen)
    jax.tree.map(np.testing.assert_array_equal, begun["embedded"]["words"], added)
    settings["words"]["layers"] = (0, 1, 2)  # all of them, by number
    assert experiment.load_live(resolve(config_of(shop, settings, "words"))) is not None
    settings["words"]["rank"] = 3
    with pytest.raises(ConfigError, match=r"holds LoRA of other settings: set targets=.*, rank=2"):
        experiment.load_live(resolve(config_of(shop, settings, "words")))


def test_lora_below_the_last_state_that_is_read_begins_another_training(shop: Path, tmp_path: Path) -> None:
    def loaded(read: tuple[int, ...], **settings):
        config = config_of(shop, {"words": {"kind": "lora", "rank": 2, **settings}}, "words")
        config.modalities["words"].layers = read
        return experiment.load_live(resolve(config)).backbones["words"]

    part = loaded((0, 2))  # of three blocks two are trained, though the config names none
    added = part.init(jax.random.key(0), {})
    export_lora(tmp_path, part.backbone, part.method, added)
    for settings in ({}, {"layers": (0, 1), "targets": ("value", "query")}):
        begun = loaded((0, 2), start=str(tmp_path), **settings)
        jax.tree.map(np.testing.assert_array_equal, begun.start, added)
    for read, settings in (
        ((0, 3), {}),
        ((0, 2), {"layers": (1,)}),
        ((0, 2), {"alpha": 2.0}),
    ):
        message = r"set targets=\('query', 'value'\), rank=2, alpha=16.0, layers=\(0, 1\)"
        with pytest.raises(ConfigError, match=message):
            loaded(read, start=str(tmp_path), **settings)
    with pytest.raises(ConfigError, match=r"block_1/\S+, which no state that is read depends on"):
        loaded((0, 1), start=str(tmp_path))


def test_a_finished_run_does_not_need_what_it_began_with(
    live: Run, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, added = live.live.backbones["words"], live.parameters()["embedded"]["words"]
    monkeypatch.chdir(tmp_path)
    export_lora("lora", part.backbone, part.method, added)
    config = config_of(shop, {"words": {"kind": "lora", "rank": 2, "start": "lora"}}, "words")
    config.training.epochs = 1
    trained = modes.train(open_run(config, tmp_path / "run", trains=True))
    listed = Recommender.load(tmp_path / "run").recommend(users=["u01"], k=3)
    shutil.rmtree(tmp_path / "lora")
    assert Recommender.load(tmp_path / "run").recommend(users=["u01"], k=3).equals(listed)
    run = open_run(None, tmp_path / "run")
    assert named_leaves(run.parameters()["embedded"]["words"]).keys() == named_leaves(added).keys()
    again = modes.train(open_run(config, tmp_path / "run", trains=True))  # nothing is left but to evaluate
    (ours,), (theirs,) = again["models"].values(), trained["models"].values()
    assert ours["test"]["metrics"] == theirs["test"]["metrics"]
    with pytest.raises(CheckpointError, match=r"lora/adapter_config\.json cannot be read"):
        modes.train(open_run(config, tmp_path / "another", trains=True))


@pytest.mark.parametrize("settings", [{"kind": "top", "top": 1}, *({"kind": k} for k in ("full", "bitfit"))])
def test_own_weights_of_a_bfloat16_backbone_are_trained_from_what_its_files_hold(settings: dict, shop: Path) -> None:
    config = config_of(shop, {"words": settings}, "words")
    config.modalities.words.compute_dtype = "bfloat16"
    part = experiment.load_live(resolve(config)).backbones["words"]
    own = named_leaves(load(str(shop / "bert"), kind="text").params)
    start = named_leaves(part.start)
    assert start.keys() == part.trained
    rounded = [np.any(leaf.astype(jnp.bfloat16) != leaf) for leaf in start.values()]
    assert any(rounded)  # bfloat16 cannot hold them
    for name, leaf in start.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, own[name], err_msg=name)
    assert {leaf.dtype for leaf in jax.tree.leaves(part.frozen)} <= {jnp.dtype("bfloat16")}


def test_combinations_that_cannot_be_are_found_before_anything_is_loaded(shop: Path, tmp_path: Path) -> None:
    def refused(message: str, methods: dict, **changes) -> None:
        config = config_of(shop, methods)
        for key, value in changes.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
        with pytest.raises(ConfigError, match=message):
            resolve(config)

    refused("methods names posters, which is no modality", {"posters": {"kind": "lora"}})
    refused("objective.kind='full_softmax' scores items", {"words": {"kind": "lora"}}, objective__kind="full_softmax")
    refused("methods.words: rank=0: must be at least 1", {"words": {"kind": "lora", "rank": 0}})
    refused("methods.words: targets: quarry unknown", {"words": {"kind": "lora", "targets": ("quarry",)}})
    config = config_of(shop, {"words": {"kind": "lora", "targets": ("gate",)}})
    with pytest.raises(ConfigError, match=r"methods\.words: kind='lora': the backbone has no projection gate"):
        open_run(config, tmp_path / "run").live  # noqa: B018 - it is loaded on the first use


def test_raw_inputs_are_made_once(shop: Path, tmp_path: Path) -> None:
    run = open_run(config_of(shop, {"picture": {"kind": "frozen"}}), tmp_path / "run")
    inputs = run.live_catalogue.inputs["picture"]
    assert inputs.values.dtype == np.uint8
    (folder,) = (run.workdir / "inputs").glob("picture-*")
    stamp = (folder / "values.bin").stat().st_mtime_ns
    again = replace(run)
    np.testing.assert_array_equal(again.live_catalogue.inputs["picture"].values, inputs.values)
    assert (folder / "values.bin").stat().st_mtime_ns == stamp


def test_raw_inputs_are_made_anew_of_a_picture_that_was_exchanged(shop: Path, tmp_path: Path) -> None:
    config = config_of(shop, {"picture": {"kind": "frozen"}})
    config.data.source = str(shutil.copytree(shop / "data", tmp_path / "data"))
    run = open_run(config, tmp_path / "run")
    before = np.array(run.live_catalogue.inputs["picture"].values)
    write_picture(tmp_path / "data/pictures/i07.png", 1000)
    after = replace(run).live_catalogue.inputs["picture"]
    row = int(np.flatnonzero(run.data.item_ids == "i07")[0])
    changed = np.flatnonzero(after.values != before)
    assert after.starts[row] <= changed.min() <= changed.max() < after.starts[row + 1]
    shutil.move(tmp_path / "data/pictures", tmp_path / "elsewhere")  # what cannot be asked is taken as it was
    np.testing.assert_array_equal(replace(run).live_catalogue.inputs["picture"].values, after.values)


@pytest.mark.long
def test_a_training_that_was_stopped_within_an_epoch_ends_with_the_bits_of_one_that_was_not(
    live: Run, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(shop, METHODS)
    config.training.checkpoint_every_steps = 1
    steps, given = load_params(live.workdir, "last")[1]["progress"]["step"], []

    def stops(stream: LiveStream):
        given.append(None)
        if len(given) == steps - 1:
            raise KeyboardInterrupt
        return following(stream)

    following = LiveStream.__next__
    with monkeypatch.context() as patch:
        patch.setattr(LiveStream, "__next__", stops)
        with pytest.raises(KeyboardInterrupt):
            modes.train(open_run(config, tmp_path / "run", trains=True))
    position = load_params(tmp_path / "run", "last")[1]["progress"]
    assert 0 < position["step"] < steps
    assert position["step"] % position["batches_per_epoch"] != 0
    modes.train(open_run(config, tmp_path / "run", trains=True))
    for which in ("best", "last"):
        ours, theirs = (named_leaves(load_params(place, which)[0]) for place in (tmp_path / "run", live.workdir))
        assert ours.keys() == theirs.keys()
        for name, leaf in ours.items():
            np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
