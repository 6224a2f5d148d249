"""From the events of a stream to rows to train on and examples to be tested with (papers.md 4 f)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Int64

from mmrec_jax.data.prepared import Examples
from mmrec_jax.data.ragged import Ragged, offsets_of
from mmrec_jax.data.rows import Rows
from mmrec_jax.streaming.memory import Events

_SHUFFLE = 0  # seed of the order of examples


def rows(events: Events, windows: Int[np.ndarray, " some"], length: int, cut: str, context: str) -> Rows:
    """Rows of an epoch over some windows: every event that trains is a target once.

    Args:
        events: of the stream.
        windows: numbers of those to train on.
        length: inputs a row.
        cut: `chunks` cuts what a user did in a window into rows from the end backwards, `last` takes the last row only
            (which is what the paper's code does).
        context: `window` lets a row begin with the user's first event of the window at the earliest, which is then no
            target; `all` lets it reach back to earlier windows, whose events are no targets of this one.
    """
    visits = events.visits(windows)
    stops, users = events.trained[visits], events.visitors[visits]
    earliest = events.begins[visits] if context == "window" else events.offsets[users]
    # An event with nothing before it cannot be predicted.
    targets = np.maximum(stops - np.maximum(events.begins[visits], earliest + 1), 0)
    visits = np.flatnonzero(targets)
    stops, users, earliest, targets = stops[visits], users[visits], earliest[visits], targets[visits]
    number = -(-targets // length) if cut == "chunks" else np.ones(len(visits), np.int64)
    back = length * (np.repeat(np.cumsum(number), number) - 1 - np.arange(number.sum()))
    stops, left = np.repeat(stops, number) - back, np.repeat(targets, number) - back
    starts = np.maximum(np.repeat(earliest, number), stops - length - 1)
    return Rows(events.items, np.repeat(users, number), starts, stops, length + 1, np.minimum(left, length))


def joined(first: Rows, second: Rows, chosen: Int[np.ndarray, " chosen"]) -> Rows:
    """The first rows, and some of the second, which are of the same events."""
    assert first.targets is not None
    assert second.targets is not None

    def both(a, b):
        return np.concatenate([a, b[chosen]])

    return Rows(
        first.values,
        both(first.users, second.users),
        both(first.starts, second.starts),
        both(first.stops, second.stops),
        first.width,
        both(first.targets, second.targets),
    )


def popularity(rows: Rows, count: int) -> Int64[np.ndarray, " {count}"]:
    """How often each catalogue row is a target of an epoch."""
    assert rows.targets is not None
    return np.bincount(rows.values[_spans(rows.stops - rows.targets, rows.stops)], minlength=count)


def tested(events: Events, window: int, *, min_events: int, context: str, targets: str) -> Examples:
    """What is to be predicted of a window that was not trained on.

    The paper's protocol: of each user with at least `min_events` events in the window, the last one, by those of the
    window before it. All events of a user before the target, whichever window they are of, are taken out of the
    ranking; a target that is among them is a repeat.
    """
    visits = events.visits(np.asarray([window]))
    begins, stops = events.begins[visits], events.stops[visits]
    enough = stops - begins >= min_events
    return _examples(events, visits[enough], begins[enough], stops[enough], context, targets)


def validated(events: Events, window: int, *, context: str, targets: str) -> Examples:
    """What is to be predicted of the part of a window that validates."""
    visits = events.visits(np.asarray([window]))
    return _examples(events, visits, events.trained[visits], events.stops[visits], context, targets)


def validating_items(events: Events, window: int, count: int) -> Bool[np.ndarray, " {count}"]:
    """Which catalogue rows occur in the part of a window that validates."""
    found = np.zeros(count, bool)
    found[events.items[(events.windows == window) & events.valid]] = True
    return found


def _examples(
    events: Events,
    visits: Int64[np.ndarray, " visit"],
    starts: Int64[np.ndarray, " visit"],
    stops: Int64[np.ndarray, " visit"],
    context: str,
    targets: str,
) -> Examples:
    """Examples for the events from `starts` to `stops` of each visit, or for the last of them."""
    users = events.visitors[visits]
    earliest = events.begins[visits] if context == "window" else events.offsets[users]
    starts = np.maximum(starts, earliest + 1)
    if targets == "last":
        starts = np.maximum(starts, stops - 1)
    number = np.maximum(stops - starts, 0)
    places, users = _spans(starts, starts + number), np.repeat(users, number)
    readable = places - np.repeat(earliest, number)
    if targets == "all":
        # Neighbours have long histories at the same time; mixed, all blocks of an evaluation have about as many pairs.
        order = np.random.default_rng(_SHUFFLE).permutation(len(places))
        places, users, readable = places[order], users[order], readable[order]
    first = events.offsets[users]
    histories = Ragged(events.items[_spans(first, places)], offsets_of(places - first))
    wanted = events.items[places]
    row = np.repeat(np.arange(len(places)), places - first)
    repeat = np.bincount(row, histories.values == wanted[row], minlength=len(places)) > 0
    return Examples(users, histories, wanted, repeat, readable)


def _spans(starts: Int64[np.ndarray, " span"], stops: Int64[np.ndarray, " span"]) -> Int64[np.ndarray, " place"]:
    """The places from each start to its stop, one span after another."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
