"""Whether two evaluations are of the same users, held-out items and candidates: what a paired comparison needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrec_jax.data.prepared import PreparedData


@dataclass(frozen=True)
class HeldOut:
    """What was to be predicted.

    Attributes:
        users: id of each example's user, in the same order for all that are compared.
        targets: id of the item that each example holds out.
        candidates: ids of all items that are ranked, sorted.
    """

    users: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray


def held_out(prepared: PreparedData, split: str = "test") -> HeldOut:
    """What a split of prepared data holds out.

    Raises:
        EmptySplitError: nothing.
    """
    examples = prepared.examples(split)
    users, targets = prepared.user_ids[examples.users], prepared.item_ids[examples.targets]
    order = np.argsort(users)
    return HeldOut(users[order], targets[order], np.sort(prepared.item_ids[1:]))


def unpaired(first: HeldOut, second: HeldOut) -> list[str]:
    """What differs, one text each; none where the two can be compared user by user."""
    found = _sets("users", first.users, second.users)
    found += _sets("candidate items", first.candidates, second.candidates)
    if not found and (other := np.flatnonzero(first.targets != second.targets)).size:
        one = other[0]
        more = f", and others for {other.size - 1} more users" if other.size > 1 else ""
        found.append(
            f"held-out items: {str(first.targets[one])!r} and {str(second.targets[one])!r} for user "
            f"{str(first.users[one])!r}{more}"
        )
    return found


def _sets(what: str, first: np.ndarray, second: np.ndarray) -> list[str]:
    if np.array_equal(first, second):
        return []
    only = [(f"{str(ids[0])!r} only in the {name}") for name, ids in _only(first, second) if ids.size]
    return [f"{what}: {len(first):,} and {len(second):,}, {' and '.join(only)}"]


def _only(first: np.ndarray, second: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("first", np.setdiff1d(first, second)), ("second", np.setdiff1d(second, first))]
