"""Tokenizers out of vocabulary files, for checkpoints that are older than tokenizer.json, such as CodeBERT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mmrec_jax.errors import BackboneError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OPTIONS = "tokenizer_config.json"
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """The files that a directory's tokenizer is read from, the newest layout first.

    Raises:
        BackboneError: there are none.
    """
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)):
        found = tuple(directory / name for name in names)
        options = directory / OPTIONS
        if all(path.is_file() for path in found):
            return (*found, options) if names[0] != "tokenizer.json" and options.is_file() else found
    raise BackboneError(
        f"{directory} has no tokenizer.json, and neither vocab.json with merges.txt nor vocab.txt: save the fast "
        "tokenizer there (transformers: AutoTokenizer.from_pretrained(...).save_pretrained(directory))"
    )


def read_tokenizer(directory: Path) -> Tokenizer:
    """A directory's tokenizer: tokenizer.json, or what transformers makes of RoBERTa's or BERT's older files.

    Raises:
        BackboneError: there are no such files, they cannot be read, or they are of another kind of tokenizer.
    """
    from tokenizers import Tokenizer

    files = tokenizer_files(directory)
    try:
        if files[0].name == "tokenizer.json":
            return Tokenizer.from_file(str(files[0]))
        options = json.loads(files[-1].read_text()) if files[-1].name == OPTIONS else {}
        if files[0].name == "vocab.txt":
            return _word_piece(files[0], options)
        return _byte_level(files[0], files[1], options)
    except BackboneError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise BackboneError(f"{files[0]} cannot be read as a tokenizer: {error}") from error


def _byte_level(vocabulary: Path, merges: Path, options: dict) -> Tokenizer:
    """RoBERTa's byte-level pairs (arXiv 1907.11692): <s> text </s>."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    model = models.BPE.from_file(str(vocabulary), str(merges))
    ids = _ids(Tokenizer(model), ROBERTA_SPECIAL, vocabulary)
    tokenizer = Tokenizer(model)
    space = bool(options.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>") for token in ROBERTA_SPECIAL])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=space
    )
    return tokenizer


def _word_piece(vocabulary: Path, options: dict) -> Tokenizer:
    """BERT's word pieces: [CLS] text [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    model = models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]")
    ids = _ids(Tokenizer(model), BERT_SPECIAL, vocabulary)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
        strip_accents=options.get("strip_accents"),
        lowercase=bool(options.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _ids(tokenizer: Tokenizer, special: tuple[str, ...], path: Path) -> dict[str, int]:
    """The ids of a vocabulary with the special tokens.

    Raises:
        BackboneError: the vocabulary lacks one of them: it is of another kind of tokenizer.
    """
    found = tokenizer.get_vocab()
    if missing := [token for token in special if token not in found]:
        raise BackboneError(
            f"{path} lacks {', '.join(missing)}, so that it is of another kind of tokenizer: save the fast one as "
            "tokenizer.json (transformers: AutoTokenizer.from_pretrained(...).save_pretrained(directory))"
        )
    return found
