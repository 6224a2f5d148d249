"""Whether two evaluations can be compared user by user."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmrec_jax.data.prepared import PreparedData
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.evaluation import EvaluationConfig
from mmrec_jax.evaluation.pairing import HeldOut, held_out, unpaired


def held(users: str, targets: str, candidates: str) -> HeldOut:
    return HeldOut(*(np.array(text.split()) for text in (users, targets, candidates)))


ONE = held("u1 u2 u3", "a b a", "a b c")


def test_the_same_examples_can_be_compared():
    assert unpaired(ONE, held("u1 u2 u3", "a b a", "a b c")) == []


def test_what_differs_is_named():
    assert unpaired(ONE, held("u1 u3", "a a", "a b c")) == ["users: 3 and 2, 'u2' only in the first"]
    assert unpaired(ONE, held("u1 u2 u4", "a b a", "a b")) == [
        "users: 3 and 3, 'u3' only in the first and 'u4' only in the second",
        "candidate items: 3 and 2, 'c' only in the first",
    ]
    assert unpaired(ONE, held("u1 u2 u3", "a c c", "a b c")) == [
        "held-out items: 'b' and 'c' for user 'u2', and others for 1 more users"
    ]


def prepared(items: str, **events: str) -> PreparedData:
    """Prepared data with these items; `events`: user -> items in time order, of which the last tests."""
    rows = {item: row for row, item in enumerate(items.split(), 1)}
    users = [[rows[item] for item in text.split()] for text in events.values()]

    def part(lists):
        return Ragged.of_lengths(np.array([*chain(*lists)], np.int32), np.array([len(each) for each in lists]))

    return PreparedData(
        Path(),
        "",
        {},
        np.array(["", *rows]),
        np.array(list(events)),
        pl.DataFrame({"item": list(rows)}),
        "title",
        train=part([each[:-2] for each in users]),
        valid=part([each[-2:-1] for each in users]),
        test=part([each[-1:] for each in users]),
    )


WHOLE = prepared("a b c d", u1="a b c d", u2="b a b c b")
SETTINGS = {
    "masked": {},
    "exempt": {"repeats_are_misses": False},
    "open": {"mask_history": False},
    "open_exempt": {"mask_history": False, "repeats_are_misses": False},
}


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [("masked", ["abc", "abc"]), ("exempt", ["abc", "ac"]), ("open", ["", ""]), ("open_exempt", ["", ""])],
)
def test_what_the_ranking_leaves_out_is_that_of_the_protocol(settings, left_out):
    found = held_out(WHOLE, EvaluationConfig(**SETTINGS[settings]))
    assert ["".join(found.candidates[found.left_out.rows(user)]) for user in range(2)] == left_out


def test_other_protocols_and_shorter_histories_are_told():
    held = {name: held_out(WHOLE, EvaluationConfig(**each)) for name, each in SETTINGS.items()}
    assert unpaired(held["masked"], held["open"]) == [
        "items left out of the ranking for user 'u1' (and others for 1 more users): 3 and 0, 'a' only in the first"
    ]
    assert unpaired(held["exempt"], held["masked"]) == [
        "items left out of the ranking for user 'u2': 2 and 3, 'b' only in the second"
    ]
    assert unpaired(held["open"], held["open_exempt"]) == []
    shorter = held_out(prepared("a b c d", u1="b c d", u2="b c b"), EvaluationConfig())
    assert "'a' only in the first" in unpaired(held["masked"], shorter)[0]


def test_the_numbers_of_users_and_items_do_not_matter():
    turned = prepared("d c b a", u2="b b a c b", u1="c a b d")
    assert unpaired(held_out(WHOLE, EvaluationConfig()), held_out(turned, EvaluationConfig())) == []
