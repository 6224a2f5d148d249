"""A sentencepiece model file (.spm, .model) as a fast tokenizer, without the sentencepiece library.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece). Of its fields, 1 is a piece of the
vocabulary with its text (1) and score (2), 2 the training's settings with the kind of model (3), and 3 the normaliser
with its compiled table of characters (2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmrec_jax.errors import BackboneError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNIGRAM = 1
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3 in fairseq; the file has <unk>, <s>, </s> as its first three


def xlm_roberta_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that transformers' XLMRobertaTokenizer makes of a sentencepiece file.

    Ids are fairseq's: `SPECIAL`, then the file's pieces from the fourth on, then <mask>. A text becomes <s> ... </s>.

    Raises:
        BackboneError: the file is no sentencepiece file, or its model is not a unigram one.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    try:
        pieces, kind, characters = _read(path.read_bytes())
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise BackboneError(f"{path} is not a sentencepiece model ({error}): fetch it again") from error
    if kind != UNIGRAM or [text for text, _ in pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise BackboneError(
            f"{path} is not a unigram model that starts with <unk>, <s>, </s>: make its tokenizer.json with "
            "transformers (XLMRobertaTokenizerFast) and name that instead"
        )
    vocabulary = [*((text, 0.0) for text in SPECIAL), *pieces[3:], ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>")))
    if characters:
        tokenizer.normalizer = normalizers.Precompiled(characters)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([*SPECIAL, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
    )
    return tokenizer


def _read(data: bytes) -> tuple[list[tuple[str, float]], int, bytes]:
    """Pieces with their scores, the kind of model, and the normaliser's table of characters."""
    pieces: list[tuple[str, float]] = []
    kind: int | bytes = UNIGRAM
    characters = b""
    for number, value in _fields(data):
        if number not in (1, 2, 3):
            continue
        inner = dict(_fields(_bytes(value)))
        if number == 1:
            (score,) = struct.unpack("<f", _bytes(inner.get(2, bytes(4))))
            pieces.append((_bytes(inner.get(1, b"")).decode(), score))
        elif number == 2:
            kind = inner.get(3, UNIGRAM)
        else:
            characters = _bytes(inner.get(2, b""))
    if not pieces:
        raise ValueError("it holds no pieces")
    return pieces, kind if isinstance(kind, int) else 0, characters


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer's message: number and value, varints as int and the rest as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"field {number} is of an unknown wire type, {wire}")
        if at + length > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of base 128, lowest digits first, and where the next field starts."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a message is expected")
    return value
