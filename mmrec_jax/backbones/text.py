"""Texts of items, and their tokens."""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mmrec_jax.backbones.config import template_columns
from mmrec_jax.backbones.vocabulary import read_tokenizer, tokenizer_files
from mmrec_jax.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def fill_template(template: str, catalogue: pl.DataFrame) -> list[str]:
    """As `filled`, as a list."""
    return filled(template, catalogue).to_list()


def filled(template: str, catalogue: pl.DataFrame) -> pl.Series:
    """A text for every item: "" where all of the template's columns are empty. Lists are joined by ", ".

    Raises:
        ConfigError: the catalogue lacks a column that the template names, or one holds structs, lists of lists or of
            bytes.
    """
    literals, columns = template_columns(template)
    if missing := [column for column in columns if column not in catalogue.columns]:
        raise ConfigError(
            f"template {template!r} names the column {missing[0]!r}, which the catalogue lacks; it has "
            f"{', '.join(catalogue.columns)}"
        )
    texts = [_as_text(template, column, catalogue.schema[column]) for column in columns]
    values = [text.fill_null("").str.strip_chars() for text in texts]
    escaped = "{}".join(literal.replace("{", "{{").replace("}", "}}") for literal in literals)
    text = pl.when(pl.any_horizontal([v != "" for v in values])).then(pl.format(escaped, *values))
    return catalogue.select(text.otherwise(pl.lit("")).alias("text"))["text"]


def _as_text(template: str, column: str, kind: pl.DataType) -> pl.Expr:
    """A column as strings; of a list, what it holds, joined by ", "."""
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    if inner.is_nested() or (inner == pl.Binary and inner is not kind):
        raise ConfigError(
            f"template {template!r} names the column {column!r} of type {kind}: make it a column of text, "
            "numbers or plain lists"
        )
    if inner is kind:
        return pl.col(column).cast(pl.String)
    lists = pl.col(column).cast(pl.List(pl.String))
    return lists.list.eval(pl.element().filter(pl.element() != "")).list.join(", ")


def clean(text: str) -> str:
    """HTML entities as the characters they stand for, and no space around."""
    return html.unescape(text).strip()


@dataclass(frozen=True)
class TextPreprocessor:
    """A fast tokenizer with the special tokens and truncation of a backbone.

    Attributes:
        tokenizer: of the `tokenizers` library, without padding.
        max_tokens: texts are cut to this length.
        fingerprint: what its result depends on, as JSON values.
    """

    tokenizer: Tokenizer
    max_tokens: int
    fingerprint: dict

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, int32[tokens], cut to the maximum with the special tokens kept."""
        return [np.asarray(e.ids, np.int32) for e in self.tokenizer.encode_batch([clean(text) for text in texts])]


def read_text_preprocessor(directory: Path, max_tokens: int) -> TextPreprocessor:
    """The tokenizer of a backbone's directory.

    Raises:
        BackboneError: there is no readable tokenizer.
    """
    tokenizer = read_tokenizer(directory)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in tokenizer_files(directory))).hexdigest()
    return TextPreprocessor(tokenizer, max_tokens, {"tokenizer_sha256": digest, "max_tokens": max_tokens})
