"""Training batches show every row once an epoch, share it out, and go on where they were."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from mmrec_jax.data import Ragged, TrainingStream, training_batches
from mmrec_jax.data.rows import distinct_counts, step_counts, training_rows
from mmrec_jax.errors import CheckpointError, ConfigError, EmptySplitError


def epoch(stream: TrainingStream) -> list:
    return [next(stream) for _ in range(stream.batches_per_epoch)]


def users_of(batches: list) -> list[int]:
    users = np.concatenate([batch.users for batch in batches])
    return users[users >= 0].tolist()


def events_of(batch) -> np.ndarray:
    return batch.items[batch.positions]


@pytest.fixture
def stream(synthetic):
    """Makes streams over the synthetic data and closes them."""
    made = []

    def make(**settings) -> TrainingStream:
        made.append(training_batches(synthetic, **({"batch_size": 16, "length": 5, "seed": 3} | settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_every_epoch_shows_each_trainable_user_once_in_another_order(stream, synthetic):
    batches = stream()
    orders = [users_of(epoch(batches)) for _ in range(3)]
    trainable = np.flatnonzero(synthetic.train.lengths >= 2).tolist()
    assert [sorted(order) for order in orders] == [trainable] * 3
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_depends_on_the_seed_alone_and_epochs_of_other_seeds_are_other_orders(stream):
    orders = {}
    for seed in (3, 4):
        batches = stream(seed=seed)
        orders |= {(seed, number): tuple(users_of(epoch(batches))) for number in range(3)}
    assert len(set(orders.values())) == 6
    assert tuple(users_of(epoch(stream(seed=3)))) == orders[3, 0]


def test_a_batch_holds_the_last_events_of_its_users(stream, synthetic):
    batches = epoch(stream())
    for batch in batches:
        assert batch.positions.shape == (16, 6)
        real = batch.users >= 0
        assert events_of(batch)[real].tolist() == synthetic.train.last(batch.users[real], 6).tolist()
        assert not batch.positions[~real].any()
    assert np.count_nonzero(batches[-1].users < 0) == -len(users_of(batches)) % 16


def test_items_name_each_distinct_item_once_with_its_count(stream):
    for batch in epoch(stream(batch_size=7)):
        assert batch.items[0] == batch.counts[0] == 0
        named = batch.items[batch.items > 0]
        assert len(set(named.tolist())) == len(named)
        events = events_of(batch)
        for item, count in zip(batch.items, batch.counts, strict=True):
            assert count == (np.count_nonzero(events == item) if item else 0)
        for leaf in (batch.items, batch.counts, batch.positions, batch.steps, batch.users):
            assert leaf.dtype == np.int32


def test_steps_are_the_inputs_that_have_a_target(stream):
    for batch in epoch(stream(batch_size=7)):
        real = batch.positions[:, :-1].ravel() > 0
        named = batch.steps[batch.steps < len(real)]
        assert named.tolist() == np.flatnonzero(real).tolist()
        assert (batch.positions[:, 1:].ravel()[named] > 0).all()
        assert (batch.steps[len(named) :] == len(real)).all()


def test_rows_without_padding_still_have_the_padding_item_first(stream):
    batches = stream(batch_size=1, length=1, seed=0)
    for batch in epoch(batches):
        assert batch.items[0] == 0
        assert (batch.positions > 0).all()


@pytest.mark.parametrize("length", [1, 3, 5, 50])
def test_chunks_make_every_event_but_the_first_a_target_once(stream, synthetic, length):
    batches = epoch(stream(window="chunks", length=length))
    pairs = []
    for batch in batches:
        events = events_of(batch)
        for user, row in zip(batch.users, events, strict=True):
            pairs += [(user, *pair) for pair in pairwise(row) if pair[0]]
    expected = [(user, *pair) for user in range(synthetic.num_users) for pair in pairwise(synthetic.train.rows(user))]
    assert sorted(pairs) == sorted(expected)


@pytest.mark.parametrize("shards", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_processes_share_an_epoch_without_loss_or_repetition(stream, synthetic, shards, batch_size):
    parts = [epoch(stream(shard_index=index, shard_count=shards, batch_size=batch_size)) for index in range(shards)]
    assert len({len(part) for part in parts}) == 1
    shown = [user for part in parts for user in users_of(part)]
    assert sorted(shown) == np.flatnonzero(synthetic.train.lengths >= 2).tolist()
    for step in zip(*parts, strict=True):
        assert len({batch.items.shape for batch in step}) == 1


def test_processes_together_take_the_steps_of_one_process_with_the_whole_batch(stream):
    alone = epoch(stream(batch_size=12))
    parts = [epoch(stream(batch_size=4, shard_index=index, shard_count=3)) for index in range(3)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert sorted(users_of([whole])) == sorted(users_of(shares))


@pytest.mark.parametrize("taken", [0, 1, 5, 6, 17])
def test_a_stream_goes_on_exactly_from_a_saved_state(stream, taken):
    first = stream()
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = [next(first) for _ in range(12)]
    fresh, used = stream(), stream()
    for _ in range(9):
        next(used)
    for other in (fresh, used, first):
        other.set_state(state)
        for batch in expected:
            again = next(other)
            for field in dataclasses.fields(batch):
                assert np.array_equal(getattr(batch, field.name), getattr(again, field.name))
        assert other.get_state()["step"] == taken + 12


@pytest.mark.parametrize("change", [{"seed": 4}, {"batch_size": 8}, {"length": 6}, {"window": "chunks", "length": 1}])
def test_the_state_of_another_stream_is_refused(stream, change):
    state = stream().get_state()
    with pytest.raises(CheckpointError, match="the saved position is of other training batches"):
        stream(**change).set_state(state)


def test_a_state_may_move_to_another_number_of_processes_with_the_same_step(stream):
    state = stream(batch_size=16).get_state()
    stream(batch_size=4, shard_count=4, shard_index=1).set_state(state)


@pytest.mark.parametrize("multiple", [1, 8, 32])
@pytest.mark.parametrize("epochs", [0, 6])
def test_no_batch_has_a_size_that_was_not_announced(stream, multiple, epochs):
    batches = stream(size_multiple=multiple, epochs=epochs)
    sizes = batches.sizes()
    seen = {(len(batch.items), len(batch.steps)) for _ in range(6) for batch in epoch(batches)}
    assert seen <= set(sizes)
    assert all(size % multiple == 0 for pair in sizes for size in pair)
    assert len(sizes) <= 5
    if epochs:
        assert seen == set(sizes)


def test_a_stream_goes_on_after_the_epochs_it_was_made_for(stream):
    batches = stream(size_multiple=1, epochs=1)
    largest = batches.sizes()[-1]
    later = [(len(batch.items), len(batch.steps)) for _ in range(12) for batch in epoch(batches)]
    assert any(size > limit for sizes in later for size, limit in zip(sizes, largest, strict=True))


def test_the_largest_size_holds_any_batch_that_the_data_could_give(stream, synthetic):
    sizes = stream(size_multiple=1).sizes()
    widest = np.sort(np.minimum(synthetic.train.lengths, 6))[-16:]
    assert sizes[-1] == (min(synthetic.num_items, widest.sum()) + 1, (widest - 1).sum())


def test_warm_up_batches_have_every_size_and_only_padding(stream):
    batches = stream()
    warm = batches.warmup_batches()
    assert [(len(batch.items), len(batch.steps)) for batch in warm] == batches.sizes()
    first = next(batches)
    for batch in warm:
        for leaf in (batch.items, batch.counts, batch.positions):
            assert not leaf.any()
        assert (batch.users == -1).all()
        assert (batch.steps == 16 * 5).all()
        assert batch.positions.shape == first.positions.shape
    assert batches.get_state()["step"] == 1


def test_distinct_counts_are_those_of_each_share():
    events = np.random.default_rng(0).integers(0, 9, (11, 4)).astype(np.int32)
    for shards in (1, 2, 3, 4):
        expected = [len({0, *events[index::shards].ravel().tolist()}) for index in range(shards)]
        assert distinct_counts(events, shards).tolist() == expected


def test_step_counts_are_those_of_each_share():
    events = np.sort(np.random.default_rng(0).integers(0, 3, (11, 4)), axis=1).astype(np.int32)
    for shards in (1, 2, 3, 4):
        expected = [np.count_nonzero(events[index::shards, :-1]) for index in range(shards)]
        assert step_counts(events[:, :-1] > 0, shards).tolist() == expected


def test_histories_without_a_target_cannot_be_trained_on(synthetic):
    single = Ragged.of_lengths(np.ones(3, np.int32), np.ones(3, np.int64))
    with pytest.raises(EmptySplitError, match="has 2 training events"):
        training_batches(dataclasses.replace(synthetic, train=single), batch_size=4, length=5)


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 0},
        {"length": 0},
        {"window": "first"},
        {"seed": -1},
        {"shard_index": 2, "shard_count": 2},
        {"size_multiple": 0},
    ],
)
def test_impossible_settings_are_refused(stream, setting):
    with pytest.raises(ConfigError):
        stream(**setting)


def test_a_process_makes_the_rows_of_its_own_groups_of_the_same_batch(stream):
    whole, halves = stream(groups=4), [stream(groups=4, own_groups=own) for own in ((0, 1), (2, 3))]
    for _ in range(whole.batches_per_epoch):
        batch, parts = next(whole), [next(half) for half in halves]
        for name in ("items", "counts"):
            for part in parts:
                np.testing.assert_array_equal(getattr(part, name), getattr(batch, name))
        for name in ("positions", "steps", "users"):
            own, every = [getattr(part, name).parts for part in parts], getattr(batch, name)
            assert [sorted(part) for part in own] == [[0, len(every) // 4], [len(every) // 2, len(every) * 3 // 4]]
            found = own[0] | own[1]
            np.testing.assert_array_equal(np.concatenate([found[start] for start in sorted(found)]), every)
            assert getattr(parts[0], name).shape == every.shape
            with pytest.raises(KeyError, match="were not made here"):
                getattr(parts[0], name)[slice(len(every) // 2, None),]


def test_rows_are_spans_of_at_most_one_more_than_the_length(synthetic):
    rows = training_rows(synthetic, 4, "chunks")
    spans = rows.stops - rows.starts
    assert spans.min() >= 2
    assert spans.max() == 5


def test_only_what_is_to_be_predicted_is_a_step(synthetic):
    rows = training_rows(synthetic, 5, "last")
    lengths = rows.stops - rows.starts - 1
    wanted = np.minimum(lengths, np.arange(len(rows)) % 4)
    chosen = np.arange(len(rows))
    events = rows.events(chosen)
    inputs = dataclasses.replace(rows, targets=wanted).inputs(chosen)
    assert inputs.sum(axis=1).tolist() == wanted.tolist()
    assert (events[:, 1:][inputs] > 0).all()
    assert (inputs[:, 1:] >= inputs[:, :-1]).all()  # the last ones
    np.testing.assert_array_equal(rows.inputs(chosen), events[:, :-1] > 0)


def test_streams_over_other_rows_share_their_sizes(synthetic):
    rows = training_rows(synthetic, 5, "last")
    few = dataclasses.replace(rows, **{key: getattr(rows, key)[:30] for key in ("users", "starts", "stops")})
    sizes = [(32, 48), (112, 80)]
    settings = {"num_items": synthetic.num_items, "batch_size": 16, "seed": 0, "shard_index": 0, "shard_count": 1}
    stream = TrainingStream(few, **settings, size_multiple=16, fingerprint="", epochs=0, sizes=sizes)
    assert stream.sizes() == sizes
    for batch in epoch(stream):
        assert (len(batch.items), len(batch.steps)) in sizes
    stream.close()
