"""Whether two evaluations set every user the same task: what a paired comparison needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from mmrec_jax.data.prepared import Examples, PreparedData
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class HeldOut:
    """What was to be predicted.

    Attributes:
        users: id of each example's user, in the same order for all that are compared.
        targets: id of the item that each example holds out.
        candidates: ids of all items that are ranked, sorted.
        left_out: places in `candidates`, ascending, of the items that each example's user had and that therefore take
            no place in the ranking; with the target among them, which is then a miss. None where that is not compared.
    """

    users: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray
    left_out: Ragged | None = None


def held_out(prepared: PreparedData, config: EvaluationConfig, split: str = "test") -> HeldOut:
    """What a split of prepared data holds out, and what an evaluation ranks it among.

    Raises:
        EmptySplitError: nothing.
    """
    examples = prepared.examples(split)
    users, targets = prepared.user_ids[examples.users], prepared.item_ids[examples.targets]
    order, by_id = np.argsort(users), np.argsort(prepared.item_ids[1:])
    places = np.zeros(len(prepared.item_ids), np.int64)
    places[1 + by_id] = np.arange(len(by_id))
    return HeldOut(users[order], targets[order], prepared.item_ids[1:][by_id], _masked(examples, order, places, config))


def _masked(
    examples: Examples,
    order: Int64[np.ndarray, " example"],
    places: Int64[np.ndarray, " row"],
    config: EvaluationConfig,
) -> Ragged:
    """The items that the ranking of each example leaves out, examples in this order."""
    count = len(order)
    if not config.mask_history:
        return Ragged.of_lengths(np.zeros(0, np.int32), np.zeros(count, np.int64))
    histories = examples.histories.take(order)
    user = np.repeat(np.arange(count), histories.lengths)
    user, item = np.divmod(np.unique(user * len(places) + places[histories.values]), len(places))
    if not config.repeats_are_misses:
        kept = item != places[examples.targets[order]][user]
        user, item = user[kept], item[kept]
    return Ragged.of_lengths(item, np.bincount(user, minlength=count))


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
    if not found and first.left_out is not None and second.left_out is not None:
        found = _other_rankings(first, first.left_out, second.left_out)
    return found


def _other_rankings(held: HeldOut, first: Ragged, second: Ragged) -> list[str]:
    """For whom the rankings of the same examples leave out other items."""
    if first is second:
        return []
    size = len(held.candidates)
    one, other = (np.repeat(np.arange(len(part)), part.lengths) * size + part.values for part in (first, second))
    users = np.unique(np.setxor1d(one, other, assume_unique=True) // size)
    if not users.size:
        return []
    user = users[0]
    more = f" (and others for {users.size - 1} more users)" if users.size > 1 else ""
    what = f"items left out of the ranking for user {str(held.users[user])!r}{more}"
    return _sets(what, *(held.candidates[part.rows(user)] for part in (first, second)))


def _sets(what: str, first: np.ndarray, second: np.ndarray) -> list[str]:
    if np.array_equal(first, second):
        return []
    only = [(f"{str(ids[0])!r} only in the {name}") for name, ids in _only(first, second) if ids.size]
    return [f"{what}: {len(first):,} and {len(second):,}, {' and '.join(only)}"]


def _only(first: np.ndarray, second: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("first", np.setdiff1d(first, second)), ("second", np.setdiff1d(second, first))]
