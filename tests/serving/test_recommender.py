"""The Recommender of a finished run: lists, vectors, explanations, and items that are new."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest

import mmrec_jax
from mmrec_jax.errors import ConfigError, DataError, MissingModalityError, StoreMismatchError, UnknownItemError
from mmrec_jax.modes import open_run
from mmrec_jax.modes.train import id_run
from mmrec_jax.serving import Recommender
from tests.tiny_backbones import golden, golden_weights, write_backbone
from tests.tiny_dataset import ITEMS, NO_PICTURE, catalogue, item_ids, write_picture


@pytest.fixture(scope="module")
def loaded(trained):
    """The recommender of the finished run; not to be added to."""
    return Recommender.load(trained)


@pytest.fixture
def fresh(trained):
    """A recommender of its own, to be added to."""
    return Recommender.load(trained)


def new_items(*names, folder=None, picture=True):
    """Items that the catalogue does not have, with pictures written to `folder`."""
    if folder is not None and picture:
        for number, name in enumerate(names):
            write_picture(folder / f"{name}.png", 100 + number)
    return pl.DataFrame(
        {
            "item": names,
            "title": [f"a blue {name}" for name in names],
            "about": ["pink and rug"] * len(names),
            "picture": [f"{name}.png" if picture else "" for name in names],
        }
    )


def test_lists_are_ordered_complete_and_leave_out_what_was_seen(loaded):
    listed = loaded.recommend([["i01", "i02"], ["i05"]], k=7)
    assert listed.columns == ["query", "rank", "item", "title", "score", "weight_picture", "weight_words"]
    assert listed["query"].to_list() == ["0"] * 7 + ["1"] * 7
    assert listed["rank"].to_list() == [*range(1, 8)] * 2
    for part in listed.partition_by("query"):
        assert part["score"].is_sorted(descending=True)
    assert not {"i01", "i02"} & set(listed.filter(pl.col("query") == "0")["item"])
    assert "i05" not in set(listed.filter(pl.col("query") == "1")["item"])


def test_what_was_seen_is_listed_where_that_is_asked_for(loaded):
    listed = loaded.recommend([["i01", "i02"]], k=ITEMS, exclude_seen=False)
    assert set(listed["item"]) == set(item_ids())


def test_a_list_is_shorter_where_nearly_everything_was_seen(loaded):
    assert set(loaded.recommend([item_ids()[:-2]], k=10)["item"]) == set(item_ids()[-2:])


def test_the_score_is_the_product_of_the_vectors_and_weights_sum_to_one(loaded):
    listed = loaded.recommend({"ann": ["i03", "i04"]}, k=ITEMS, exclude_seen=False)
    weights = listed.select("weight_picture", "weight_words").to_numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    vectors = loaded.embed_items(listed["item"].to_list())
    assert vectors.shape == (ITEMS, 8)
    # The scores are linear in the item vectors: one user vector explains all of them, to rounding of float32.
    user, *_ = np.linalg.lstsq(vectors, listed["score"].to_numpy(), rcond=None)
    np.testing.assert_allclose(vectors @ user, listed["score"].to_numpy(), atol=1e-4)


def test_a_missing_picture_weighs_exactly_nothing(loaded):
    listed = loaded.recommend([["i01"]], k=ITEMS, exclude_seen=False)
    row = listed.filter(pl.col("item") == NO_PICTURE)
    assert row["weight_picture"].item() == 0.0
    assert row["weight_words"].item() == 1.0
    assert listed.filter(pl.col("item") != NO_PICTURE)["weight_picture"].min() > 0


def test_known_users_bring_their_histories(loaded, trained, shop):
    events = pl.read_csv(shop / "data" / "interactions.csv").filter(pl.col("user") == "u07")
    history = events.sort("timestamp")["item"].to_list()
    by_user, by_history = loaded.recommend(users=["u07"], k=5), loaded.recommend({"u07": history}, k=5)
    assert by_user.equals(by_history)


def test_unknown_items_are_an_error_or_skipped_and_counted(loaded):
    with pytest.raises(UnknownItemError, match=r"1 items .*: nowhere \(history 0\)"):
        loaded.recommend([["i01", "nowhere"]], k=3)
    listed = loaded.recommend([["i01", "nowhere"]], k=3, on_unknown_item="skip")
    assert loaded.skipped == 1
    assert listed.equals(loaded.recommend([["i01"]], k=3))
    assert loaded.skipped == 0
    listed = loaded.recommend({"x": ["nowhere"], "y": ["i01"]}, k=3, on_unknown_item="skip")
    assert set(listed["query"]) == {"y"}
    assert (loaded.skipped, loaded.left_out) == (1, ["x"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"histories": [["i01"]], "k": ITEMS + 1}, ConfigError, "larger than the catalogue of 30 items"),
        ({"histories": [["i01"]], "k": 0}, ConfigError, "at least one item"),
        ({}, ConfigError, "either histories or users"),
        ({"histories": [["i01"]], "users": ["u01"]}, ConfigError, "either histories or users"),
        ({"histories": ["i01", "i02"]}, DataError, "a list of histories"),
        ({"users": "u01"}, DataError, "a list of user ids"),
        ({"users": ["ann"]}, DataError, "unknown users: ann"),
        ({"histories": [[]]}, DataError, "empty histories"),
    ],
)
def test_what_cannot_be_recommended_for_is_refused(loaded, arguments, error, message):
    with pytest.raises(error, match=message):
        loaded.recommend(**arguments)


def test_explanations_give_each_modality_its_weight_and_its_towers_gates(loaded):
    explained = loaded.explain(["i05", NO_PICTURE])
    assert explained["item"].to_list() == ["i05", "i05", NO_PICTURE, NO_PICTURE]
    assert explained["modality"].to_list() == ["picture", "words"] * 2
    assert explained["weight"].to_list()[2:] == [0.0, 1.0]
    listed = loaded.recommend([["i01"]], k=ITEMS, exclude_seen=False).filter(pl.col("item") == "i05")
    np.testing.assert_array_equal(explained["weight"][:2], listed.select("weight_picture", "weight_words").row(0))
    # One gate a block: the picture's tower has two, the text's three.
    assert explained["backbone"].list.len().to_list() == [2, 3, 2, 3]
    words = explained.filter(pl.col("modality") == "words")
    gates = np.array(words.select("backbone", "from_words", "from_picture").rows())
    np.testing.assert_allclose(gates.sum(axis=1), 1, rtol=1e-6)
    assert gates[0, 2, 1:].min() > 0
    assert not gates[1, 2].any(), "the text's tower must receive nothing from a picture that is not there"


def test_explaining_items_that_are_unknown_names_them(loaded):
    with pytest.raises(UnknownItemError, match="2 items are not in the catalogue: x, y"):
        loaded.explain(["i01", "x", "y"])
    with pytest.raises(UnknownItemError, match="x"):
        loaded.embed_items(["x"])


def test_new_items_are_listed_embedded_explained_and_read_as_history(fresh, tmp_path):
    before = fresh.recommend([["i01"]], k=5)
    name = "a-name-longer-than-any-other"
    assert fresh.add_items(new_items(name, "n2", folder=tmp_path), media_root=tmp_path) == [name, "n2"]
    listed = fresh.recommend([["i01"]], k=ITEMS + 2, exclude_seen=False)
    assert set(listed["item"]) == {*item_ids(), name, "n2"}
    assert listed.filter(pl.col("item") == name)["title"].item() == f"a blue {name}"
    old = listed.filter(pl.col("item").is_in(item_ids()) & (pl.col("item") != "i01"))
    assert old["item"].to_list()[:5] == before["item"].to_list(), "what was there keeps its scores"
    assert fresh.embed_items().shape == (ITEMS + 2, 8)
    assert fresh.explain(["i05", "n2"])["item"].to_list() == ["i05", "i05", "n2", "n2"]
    assert len(fresh.recommend([[name, "i01"]], k=3)) == 3


def test_a_new_item_with_the_media_of_an_old_one_gets_its_vector_and_gates(fresh, shop):
    twin = catalogue().filter(pl.col("item") == "i05").with_columns(item=pl.lit("twin"))
    fresh.add_items(twin, media_root=shop / "data")
    np.testing.assert_allclose(fresh.embed_items(["twin"]), fresh.embed_items(["i05"]), rtol=1e-5, atol=1e-6)
    explained = fresh.explain(["i05", "twin"])
    old, new = (explained.filter(pl.col("item") == item) for item in ("i05", "twin"))
    np.testing.assert_allclose(new["weight"], old["weight"], rtol=1e-5)
    for column in ("backbone", "from_words", "from_picture"):
        np.testing.assert_allclose(new[column].explode(), old[column].explode(), rtol=1e-5)


def test_a_new_item_may_lack_a_picture(fresh, tmp_path):
    fresh.add_items(new_items("n1", picture=False).to_dicts(), media_root=tmp_path)
    assert fresh.explain(["n1"])["weight"].to_list() == [0.0, 1.0]


def test_a_new_item_may_lack_the_columns_of_a_modality(fresh, tmp_path):
    records = [{"item": "n1", "title": "a blue lamp", "about": "blue and lamp"}]
    records += [{**records[0], "item": f"n{number}"} for number in range(2, 120)]
    write_picture(tmp_path / "n1.png", 1)
    records.append({**records[0], "item": "late", "picture": "n1.png"})
    fresh.add_items(records, media_root=tmp_path)
    assert fresh.explain(["n1"])["weight"].to_list() == [0.0, 1.0]
    assert fresh.explain(["late"])["weight"][0] > 0
    assert fresh.failed == {}
    with pytest.raises(ConfigError, match="names the column 'about'"):
        fresh.add_items([{"item": "half", "title": "a blue lamp"}])


def test_media_of_new_items_that_cannot_be_read_are_warned_of(fresh, tmp_path, caplog):
    fresh.add_items(new_items("n1", "n2", folder=tmp_path), media_root=tmp_path / "elsewhere")
    assert fresh.explain(["n1"])["weight"].to_list() == [0.0, 1.0]
    assert fresh.failed == {"picture": {"n1": "file not found", "n2": "file not found"}}
    assert "the media of 2 of 2 items cannot be read, and they are added without picture (n1: file not" in caplog.text
    assert str(tmp_path / "elsewhere") in caplog.text


def test_new_items_without_any_medium_are_refused_and_nothing_is_added(fresh, tmp_path):
    frame = new_items("n1", "n2", folder=tmp_path).with_columns(
        title=pl.Series(["x", ""]), about=pl.Series(["y", ""]), picture=pl.Series(["n1.png", "gone.png"])
    )
    with pytest.raises(MissingModalityError, match="1 items have none of the modalities picture, words: n2"):
        fresh.add_items(frame, media_root=tmp_path)
    assert len(fresh.item_ids) == ITEMS + 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["i01"], "in the catalogue already: i01"),
        (["n1", "n1"], "there twice: n1"),
        (["n1", ""], "are empty"),
        ([], "no item"),
    ],
)
def test_ids_that_cannot_be_new_are_refused(fresh, names, message):
    with pytest.raises(DataError, match=message):
        fresh.add_items(new_items(*names, picture=False).cast({"item": pl.String}))


def test_a_backbone_of_other_weights_is_refused_for_new_items_unless_allowed(fresh, shop, tmp_path):
    tensors, _ = golden("bert")
    other = {name: value * 1.5 for name, value in golden_weights(tensors).items()}
    mirror = write_backbone(tmp_path / "bert", "bert", weights=other)
    backbones = {str(shop / "bert"): str(mirror)}
    with pytest.raises(StoreMismatchError, match="words: weights_sha256 is"):
        fresh.add_items(new_items("n1", picture=False), backbones=backbones)
    assert len(fresh.item_ids) == ITEMS + 1
    fresh.add_items(new_items("n1", picture=False), backbones=backbones, allow_other_weights=True)
    assert len(fresh.item_ids) == ITEMS + 2


def test_a_run_is_loaded_by_its_workdir_or_its_folder_of_checkpoints(trained):
    histories = [["i01", "i03"]]
    by_workdir = mmrec_jax.Recommender.load(trained).recommend(histories)
    assert mmrec_jax.Recommender.load(str(trained / "checkpoints")).recommend(histories).equals(by_workdir)
    Recommender.load(trained, which="last")


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no workdir of a run"):
        Recommender.load(tmp_path / "nowhere")


def test_a_model_by_ids_recommends_but_cannot_explain_or_take_new_items(trained, tmp_path):
    run = open_run(None, shutil.copytree(trained, tmp_path / "shop"))
    recommender = Recommender.of_run(id_run(run))
    assert recommender.recommend([["i01"]], k=3).columns == ["query", "rank", "item", "title", "score"]
    with pytest.raises(ConfigError, match="by id only"):
        recommender.explain(["i01"])
    with pytest.raises(ConfigError, match="new items need training"):
        recommender.add_items([{"item": "n1"}])
