"""Window files that appear in a directory: order, half-written ones, and those that were taken in."""

from __future__ import annotations

import polars as pl
import pytest

from mmrec_jax.errors import DataError
from mmrec_jax.streaming.arrivals import Arrivals, BadWindow
from mmrec_jax.streaming.journal import Entry, Journal

EVENTS = pl.DataFrame({"user": ["u1", "u2"], "item": ["a", "b"], "timestamp": [1, 2]})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


@pytest.fixture
def arrivals(folder, clock) -> Arrivals:
    return Arrivals(folder, settle=2, patience=60, clock=clock)


def settled(arrivals: Arrivals, clock: Clock, entries=()):
    """What is next after a look and a wait."""
    arrivals.next(entries)
    clock.now += 3
    return arrivals.next(entries)


def taken(arrival) -> Entry:
    return Entry(arrival.name, arrival.digest, 1)


def test_windows_come_in_the_order_of_their_names(folder, arrivals, clock):
    for name in ("2024-02.csv", "2024-01.csv"):
        EVENTS.write_csv(folder / name)
    first = settled(arrivals, clock)
    assert (first.name, first.events, first.items) == ("2024-01", folder / "2024-01.csv", None)
    assert arrivals.next([taken(first)]).name == "2024-02"


def test_every_format_is_taken_with_its_items_beside(folder, arrivals, clock):
    EVENTS.write_parquet(folder / "w1.parquet")
    EVENTS.write_csv(folder / "w1.items.csv")
    EVENTS.write_csv(folder / "w2.tsv", separator="\t")
    first = settled(arrivals, clock)
    assert first.items == folder / "w1.items.csv"
    assert settled(arrivals, clock, [taken(first)]).events == folder / "w2.tsv"


@pytest.mark.parametrize("name", [".w1.csv", "_w1.csv", "w1.csv.tmp", "w1.json"])
def test_files_of_other_names_are_not_windows(folder, arrivals, clock, name):
    EVENTS.write_csv(folder / name)
    assert settled(arrivals, clock) is None


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_half_written_file_is_waited_for_and_holds_back_the_next(folder, arrivals, clock, suffix):
    path = folder / f"w1.{suffix}"
    EVENTS.write_csv(path) if suffix == "csv" else EVENTS.write_parquet(path)
    EVENTS.write_csv(folder / "w2.csv")
    content = path.read_bytes()
    for share in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:share])
        assert settled(arrivals, clock) is None
    path.write_bytes(content)
    assert arrivals.next([]) is None, "it has only just changed"
    clock.now += 3
    assert arrivals.next([]).name == "w1"


def test_a_file_that_is_still_growing_is_waited_for_although_its_lines_are_whole(folder, arrivals, clock):
    for rows in range(1, 5):
        EVENTS.head(1).select(pl.all().repeat_by(rows).explode()).write_csv(folder / "w1.csv")
        clock.now += 1
        assert arrivals.next([]) is None
    clock.now += 3
    assert arrivals.next([]) is not None


def test_a_half_written_items_file_holds_back_its_window(folder, arrivals, clock):
    EVENTS.write_csv(folder / "w1.csv")
    (folder / "w1.items.csv").write_text("item,title\na,lamp")
    assert settled(arrivals, clock) is None
    (folder / "w1.items.csv").write_text("item,title\na,lamp\n")
    assert settled(arrivals, clock).items is not None


def test_a_file_that_stays_half_written_is_told_after_a_while(folder, arrivals, clock):
    (folder / "w1.csv").write_text("user,item,timestamp\nu1,a,1")
    assert settled(arrivals, clock) is None
    clock.now += 60
    with pytest.raises(BadWindow, match=r"w1: w1.csv has no end of line .* half-written. Write it anew") as error:
        arrivals.next([])
    skipped = Entry("w1", error.value.digest, None, "half-written")
    assert arrivals.next([skipped]) is None, "it is told once"
    EVENTS.write_csv(folder / "w1.csv")
    assert settled(arrivals, clock, [skipped]).name == "w1", "mended, it comes again"


def test_a_window_that_was_taken_in_may_lie_there_or_go_but_not_change(folder, arrivals, clock):
    EVENTS.write_csv(folder / "w1.csv")
    entry = taken(settled(arrivals, clock))
    assert settled(arrivals, clock, [entry]) is None
    EVENTS.reverse().write_csv(folder / "w1.csv")
    with pytest.raises(BadWindow, match="was taken in, and its files hold something else") as error:
        settled(arrivals, clock, [entry])
    assert settled(arrivals, clock, [entry, Entry("w1", error.value.digest, None, "changed")]) is None
    (folder / "w1.csv").unlink()
    assert settled(arrivals, clock, [entry]) is None


def test_two_files_of_one_name_are_refused(folder, arrivals, clock):
    EVENTS.write_csv(folder / "w1.csv")
    EVENTS.write_parquet(folder / "w1.parquet")
    with pytest.raises(BadWindow, match=r"w1.csv and w1.parquet: remove one"):
        settled(arrivals, clock)


def test_a_directory_that_is_not_there_is_an_error(tmp_path, clock):
    with pytest.raises(DataError, match="no directory"):
        Arrivals(tmp_path / "nowhere", 0, 0, clock).next([])


def test_the_journal_keeps_a_window_when_its_file_is_gone(tmp_path):
    journal = Journal(tmp_path)
    journal.accept(Entry("w1", "d1", 1, notes=("odd",), columns=("user",)), EVENTS, pl.DataFrame({"item": ["a"]}))
    journal.skip("w2", "d2", "empty")
    again = Journal(tmp_path)
    assert again.entries == journal.entries
    assert [entry.name for entry in again.accepted] == ["w1"]
    assert again.events(1).equals(EVENTS)
    assert again.items(1)["item"].to_list() == ["a"]


def test_what_a_kill_left_of_a_line_is_cut_off_and_the_window_taken_in_again(tmp_path):
    Journal(tmp_path).accept(Entry("w1", "d1", 1), EVENTS, EVENTS)
    lines = tmp_path / "journal" / "journal.jsonl"
    whole = lines.read_bytes()
    for end in range(1, len(whole)):
        lines.write_bytes(whole + whole[:end])
        journal = Journal(tmp_path)
        assert [entry.name for entry in journal.entries] == ["w1"]
        assert lines.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    Journal(tmp_path).skip("w1", "d1", "empty")
    lines = tmp_path / "journal" / "journal.jsonl"
    lines.write_text("{}\n" + lines.read_text())
    with pytest.raises(DataError, match=r"journal.jsonl, line 1, is damaged"):
        Journal(tmp_path)


def test_old_copies_can_be_removed_and_then_say_that_they_are_gone(tmp_path):
    journal = Journal(tmp_path)
    for number in (1, 2, 3):
        journal.accept(Entry(f"w{number}", f"d{number}", number), EVENTS, EVENTS)
    journal.remove_before(3)
    assert journal.events(3).equals(EVENTS)
    with pytest.raises(DataError, match="own copy of a window is gone"):
        journal.items(2)
    assert len(Journal(tmp_path).accepted) == 3
