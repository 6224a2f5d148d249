"""Whether two evaluations can be compared user by user."""

from __future__ import annotations

import numpy as np

from mmrec_jax.evaluation.pairing import HeldOut, unpaired


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
