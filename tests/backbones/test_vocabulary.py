"""Tokenizers from vocabulary files, for checkpoints that have no tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.backbones.media import Missing, TextInputs
from mmrec_jax.backbones.text import TextPreprocessor, read_text_preprocessor
from mmrec_jax.errors import BackboneError
from tests.tiny_backbones import BYTE_LEVEL_TEXTS, write_byte_level


def test_pairs_of_bytes_are_read_as_robertas(tmp_path: Path) -> None:
    preprocess = read_text_preprocessor(write_byte_level(tmp_path), 12)
    for text, ids in zip(BYTE_LEVEL_TEXTS, preprocess(BYTE_LEVEL_TEXTS), strict=True):
        tokens = [preprocess.tokenizer.id_to_token(i) for i in ids]
        assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
        assert len(ids) <= 12
        # Byte-level pieces are the text itself, letter by letter, when their signs are turned back.
        read = "".join(tokens[1:-1]).replace("Ġ", " ")
        assert not text.isascii() or text.strip().startswith(read)
    ids = {tuple(ids.tolist()) for ids in preprocess(["fit", "Fit", "<mask>"])}
    assert len(ids) == 3
    assert 4 in preprocess(["<mask>"])[0]


def test_the_digest_covers_all_files(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    before = read_text_preprocessor(tmp_path, 12).fingerprint
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(merges[:-1]))
    fewer = read_text_preprocessor(tmp_path, 12).fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    spaced = read_text_preprocessor(tmp_path, 12).fingerprint
    assert len({made["tokenizer_sha256"] for made in (before, fewer, spaced)}) == 3


def test_word_pieces_are_read_with_the_options_beside_them(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##c", "Ab"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    assert read_text_preprocessor(tmp_path, 12)(["Abc ab"])[0].tolist() == [2, 5, 6, 5, 3]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert read_text_preprocessor(tmp_path, 12)(["Abc ab"])[0].tolist() == [2, 7, 6, 5, 3]


def test_a_vocabulary_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<pad>\na\nb")
    with pytest.raises(BackboneError, match=r"vocab.txt lacks \[PAD\], \[UNK\], .* another kind of tokenizer"):
        read_text_preprocessor(tmp_path, 12)
    write_byte_level(tmp_path)
    (tmp_path / "merges.txt").write_text("no pair at all\n")
    with pytest.raises(BackboneError, match=r"vocab.json cannot be read as a tokenizer"):
        read_text_preprocessor(tmp_path, 12)


@pytest.mark.shared
def test_a_real_vocabulary_gives_the_tokens_of_its_tokenizer_json(shared: Path, tmp_path: Path) -> None:
    folder = shared / "weights" / "minilm-l6"
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    rows = (shared / "data" / "amazon-scientific" / "items.tsv").read_text().splitlines()[::50]
    texts = [row.split("\t")[1] for row in rows] + ["Ünïcödé 棚 🙂 [SEP]", "x " * 100]
    expected = read_text_preprocessor(folder, 32)(texts)
    for text, ours, theirs in zip(texts, read_text_preprocessor(tmp_path, 32)(texts), expected, strict=True):
        assert ours.tolist() == theirs.tolist(), text


def test_a_text_without_tokens_is_an_empty_one() -> None:
    from tokenizers import Tokenizer, models, normalizers

    # Decoders such as Qwen2 put no special tokens around a text.
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.normalizer = normalizers.Replace("\u200b", "")
    preprocess = TextPreprocessor(tokenizer, 8, {})
    catalogue = pl.DataFrame({"item": ["1", "2", "3"], "title": ["a", "\u200b", ""]})
    inputs = TextInputs(ModalityConfig(template="{title}"), preprocess, catalogue)([0, 1, 2])
    assert [isinstance(made, Missing) for made in inputs] == [False, True, True]
    assert not any(made.failed for made in inputs[1:])
