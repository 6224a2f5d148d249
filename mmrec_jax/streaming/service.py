"""A model that is kept alive: windows are taken in as they arrive, learned from, and models put in service.

The order of things with each window: it is checked, its new items are encoded, and it is copied into the journal; what
is served knows of it from then on. The protocol tests the model of the windows before on it, compares it with the model
in service, grows and trains it. Then its figures are held against their usual range, and what is not needed any more is
removed. Whatever is done is on disk before the next begins, and doing it again gives the same: killed at any moment and
started again, the service ends with the same numbers.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmrec_jax.config import RunConfig
from mmrec_jax.errors import DataError
from mmrec_jax.evaluation.evaluate import EvaluationResult
from mmrec_jax.evaluation.pairing import HeldOut
from mmrec_jax.streaming import drift, examples, growth, served, stores
from mmrec_jax.streaming.arrivals import Arrival, Arrivals, BadWindow
from mmrec_jax.streaming.intake import Intake
from mmrec_jax.streaming.journal import Entry, Journal
from mmrec_jax.streaming.learner import AHEAD, Learner
from mmrec_jax.streaming.memory import Memory
from mmrec_jax.streaming.promotion import Tried, judge
from mmrec_jax.streaming.protocol import StreamRun
from mmrec_jax.streaming.state import PHASES
from mmrec_jax.streaming.versions import Change, Versions
from mmrec_jax.streaming.windows import Window, in_core
from mmrec_jax.types import Params

Reports = Sequence[Mapping[str, Any]]


@dataclass
class Service:
    """The service of a workdir.

    Attributes:
        config: of the run.
        workdir: takes everything.
        directory: in which windows arrive.
        intake: how they are taken in.
        learner: makes the model, once the first window is there, from the stream's fingerprint and the number of items
            to make room for.
        publish: makes parameters a version and puts it in service: window, parameters, reason, what of the state
            belongs to them, and the number of the change that this was decided on; gives None where a roll-back came
            since, which stays.
        note: is given the reports after each window.
        say: takes a line for the person who watches.
        clock, sleep: tell and pass the time in seconds.
    """

    config: RunConfig
    workdir: Path
    directory: Path
    intake: Intake
    learner: Callable[[str, int], Learner]
    publish: Callable[[int, Params, str, Mapping[str, Any], int], Change | None]
    note: Callable[[Reports], object]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    journal: Journal = field(init=False)
    living: StreamRun = field(init=False)
    _served: served.Served = field(init=False)
    _served_before: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.settings = self.config.service
        self.versions = Versions(self.workdir)
        self._arrivals = Arrivals(
            self.directory, self.settings.settle_seconds, self.settings.patience_seconds, self.clock
        )

    def run(self) -> Reports:
        """Lives until no window has come for `service.idle_seconds`; a report a trained window.

        Raises:
            BadWindow: a window cannot be used, and `service.on_bad_window` is `stop`.
        """
        self.journal, self._served = Journal(self.workdir), served.read(self.workdir)
        for entry in self.journal.accepted[self._served.window :]:  # a kill came before they were served
            assert entry.number is not None
            events, items = self.journal.events(entry.number), self.journal.items(entry.number)
            self._serve(self._served.after(entry.number, events, items))
        if not self.journal.accepted and not self._wait():
            return []
        learner = self.learner(self.fingerprint, self.config.stream.item_capacity or self._room())
        self.living = StreamRun(learner, self._promote, self.say)
        try:
            return self.living.run(self._windows(), first=self._oldest(self.living.state.window))
        finally:
            self.living.close()

    @property
    def reports(self) -> Reports:
        """Of the windows that were trained on, also after `run` has ended by an error."""
        return self.living.state.reports if hasattr(self, "living") else ()

    @property
    def fingerprint(self) -> str:
        """Of the stream, which its first window tells from others."""
        return hashlib.sha256(f"stream {self.journal.accepted[0].digest}".encode()).hexdigest()

    def _room(self) -> int:
        """Items to make room for where the config does not say, as a power of two."""
        return 1 << (AHEAD * self.journal.accepted[0].items - 1).bit_length()

    def _oldest(self, window: int) -> int:
        """Number of the oldest window that is remembered after one."""
        return max(1, window - self.settings.forget_after + 1) if self.settings.forget_after else 1

    def _windows(self) -> Iterator[Window]:
        """The windows that are remembered and then those that arrive."""
        number = first = self._oldest(self.living.state.window)
        while number <= len(self.journal.accepted) or self._wait():
            entry = self.journal.accepted[number - 1]
            window = self._window(entry)
            self.living.learner.forget(max(self._oldest(number), first))
            self._follow_roll_back(number)
            if not self.living.state.done(number, PHASES[-1]):
                self.say(f"window {number}: {entry.name}: {entry.events:,} events, {entry.new_items:,} new items")
            yield window
            self._finish(number)
            number += 1

    def _window(self, entry: Entry) -> Window:
        assert entry.number is not None
        events = in_core(self.journal.events(entry.number), self.config.stream)
        return Window(entry.number, entry.name, events)

    def _wait(self) -> bool:
        """Waits for a window and takes it in; False where none came for too long."""
        since = self.clock()
        while True:
            try:
                arrival = self._arrivals.next(self.journal.entries)
                if arrival is not None:
                    self._take_in(arrival)
                    return True
            except BadWindow as bad:
                self.intake.end_attempt()
                if not self.intake.skip:
                    raise
                self.journal.skip(bad.name, bad.digest, str(bad))
                self.say(f"Skipped. {bad}")
                continue
            if self.settings.idle_seconds and self.clock() - since >= self.settings.idle_seconds:
                return False
            self.sleep(self.settings.poll_seconds)

    def _take_in(self, arrival: Arrival) -> None:
        accepted = self.journal.accepted
        entry, events, items = self.intake.read(arrival, accepted, self._served.items, self._served.users)
        self._check_learnable(Window(len(accepted) + 1, entry.name, in_core(events, self.config.stream)), arrival)
        try:
            state = self._served.after(len(accepted) + 1, events, items)
        except DataError as error:  # accepted, it would be met at each start
            raise BadWindow(entry.name, str(error), arrival.digest) from error
        for text in entry.notes:
            self.say(f"window {entry.number} ({entry.name}): {text}")
        self.journal.accept(entry, events, items)
        self._serve(state)

    def _check_learnable(self, window: Window, arrival: Arrival) -> None:
        """Refuses a window from which nothing can be learned."""
        stream, model = self.config.stream, self.config.model
        if not len(window):
            text = "no event is left by stream.user_core and stream.item_core: lower them, or give longer windows."
            raise BadWindow(window.name, text, arrival.digest)
        alone, number = Memory(stream), 1
        if stream.context == "all" and (known := self._remembered(window.number)):
            # What users did before is something to go by: one event of each stands for it.
            alone.add(Window(number, "", pl.DataFrame({"user": known, "item": known})))
            number += 1
        alone.add(window)
        rows = examples.rows(alone.events, np.asarray([number]), model.length, model.window, stream.context)
        valid = examples.validated(alone.events, number, context=stream.context, targets=stream.valid_targets)
        if not (len(rows) and len(valid)):
            text = (
                f"none of its {len(window)} events can be {'validated with' if len(rows) else 'trained on'}: a user "
                "needs two events in a window before those that validate. Give longer windows, or see to "
                "stream.valid_fraction and stream.validation."
            )
            raise BadWindow(window.name, text, arrival.digest)

    def _remembered(self, number: int) -> list[str]:
        """Users whose events the learner will remember when it trains on a window that comes next."""
        if not self.journal.accepted:
            return []
        memory = self.living.learner.memory
        recent = memory.events.windows[memory.events.begins] >= self._oldest(number)
        return np.asarray(memory.user_ids)[np.unique(memory.events.visitors[recent])].tolist()

    def _serve(self, state: served.Served) -> None:
        """Lets the versions know of a window."""
        self._served_before = self._served.items
        self._served = state.forgetting(self.settings.forget_after, self.settings.history)
        self._served.write(self.workdir, self.fingerprint, self.config.data.title_column)

    def _follow_roll_back(self, number: int) -> None:
        """Lets a window be begun with the parameters of a version that was rolled back to."""
        state, change = self.living.state, self._rolled_back(self.versions.changes())
        if change is None or not state.reports or state.done(number, PHASES[0]):
            return
        self.living.params = self.versions.parameters(change.version)
        state.utilisation = self.versions.document(change.version, UTILISATION)
        # What comes now is told in the report of the window before, whose own model is not the one that it is about.
        shares = {name: np.asarray(values) for name, values in state.utilisation.items()}
        state.reports[-1] |= {
            "rolled_back": change.number,
            "rolled_back_to": {
                "version": change.version,
                "experts": growth.describe(self.living.params, shares or None),
            },
        }
        self.say(f"window {number}: begins with version {change.version}, which was rolled back to")

    def _rolled_back(self, changes: Sequence[Change]) -> Change | None:
        """The roll-back that no window was begun with yet, if that is what put the version in service there."""
        followed = max((report.get("rolled_back", 0) for report in self.living.state.reports), default=0)
        return changes[-1] if changes and changes[-1].rolled_back and changes[-1].number > followed else None

    def _promote(self, learner: Learner, window: Window, params: Params, result: EvaluationResult) -> dict[str, Any]:
        """Compares the model of the windows before with the one in service, on a window that neither was trained on."""
        version, state = window.number - 1, self.living.state
        changes = self.versions.changes()
        if "rolled_back" in state.reports[-1]:
            return {"promoted": False, "reason": "rolled back to this version", "version": changes[-1].version}
        if change := self._rolled_back(changes):
            return self._overtaken(version, change)
        # If this version was promoted before a kill, it is compared with the one before once more.
        before = next((change.version for change in reversed(changes) if change.version != version), None)
        serving = None
        if before is not None:
            other = self._fitting(self.versions.parameters(before), params)
            found = learner.test(learner.scorer(other), window.number)
            assert found is not None  # the same examples as the candidate's
            serving = _tried(learner, found)
        evaluation = self.config.evaluation
        verdict = judge(
            _tried(learner, result),
            serving,
            rule=self.settings.promote,
            metric=self.config.training.monitor,
            resamples=evaluation.bootstrap or 1000,
            confidence=evaluation.confidence,
            seed=evaluation.seed,
        )
        published = bool(changes) and changes[-1].version == version  # before a kill
        if (
            verdict.promoted
            and not published
            and not self._publish(version, params, verdict.reason, changes[-1].number if changes else 0)
        ):
            return self._overtaken(version, self.versions.changes()[-1])
        what = "is in service" if verdict.promoted else f"is not put in service, version {before} stays"
        self.say(f"window {window.number}: version {version} {what} ({verdict.reason})")
        return verdict.as_json() | {"version": version, "before": before}

    def _overtaken(self, version: int, change: Change) -> dict[str, Any]:
        """A version that is not put in service because somebody rolled back while it was made."""
        reason = f"version {change.version} was rolled back to meanwhile"
        self.say(f"version {version} is not put in service: {reason}")
        return {"promoted": False, "reason": reason, "version": version, "before": change.version}

    @staticmethod
    def _fitting(params: Params, like: Params) -> Params:
        """Parameters with as many slots as others have."""
        slots = max((rung.capacity for rung in growth.rungs(like).values()), default=0)
        own = max((rung.capacity for rung in growth.rungs(params).values()), default=0)
        return growth.grow_capacity(params, slots) if own < slots else params

    def _publish(self, version: int, params: Params, reason: str, after: int = 0) -> bool:
        """Whether the version is in service, and not one that was rolled back to after the change `after`."""
        change = self.publish(version, params, reason, {UTILISATION: self.living.state.utilisation}, after)
        self.versions.clean(self.settings.keep_versions)
        return change is not None

    def _finish(self, number: int) -> None:
        """What follows a window, if it is the newest."""
        state = self.living.state
        if number != state.window:
            return
        if self.versions.in_service() is None:
            assert self.living.params is not None
            self._publish(number, self.living.params, "the first")
        metric = self.config.training.monitor
        found = figures(state.reports, self.journal.accepted, metric)
        alarms = drift.alarms(
            number,
            found[-1],
            found[:-1],
            windows=self.settings.drift_windows,
            least=self.settings.drift_least,
            limit=self.settings.drift_limit,
        )
        for alarm in alarms:
            self.say(str(alarm))
        drift.note(self.workdir / drift.FILE, alarms)
        self.note(state.reports)
        self._clean(number)

    def _clean(self, number: int) -> None:
        """Removes what belongs to windows that are forgotten."""
        oldest = self._oldest(number)
        self.journal.remove_before(oldest)
        for folder in ("windows", "ranks"):
            for path in (self.workdir / folder).glob("[0-9]*"):
                if int(path.stem) < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.settings.forget_after and not self.config.store:
            # Readers that have opened what was served before this window need its items too.
            needed = {*self._served.items, *self._served_before, *self.living.learner.memory.item_ids}
            if found := stores.compact(self.workdir, needed, self.settings.compact_at):
                self.say(f"The store is written anew without forgotten items: {found[1]:,} of {found[0]:,} stay")


UTILISATION = "utilisation.json"


def figures(reports: Reports, entries: Sequence[Entry], metric: str) -> list[dict[str, float]]:
    """What `drift` watches, one entry a window.

    Args:
        reports: of the protocol.
        entries: the journal's windows.
        metric: of the test on the window; the first NDCG where the test has no such metric.
    """
    found: list[dict[str, float]] = [
        {f"missing/{name}": share for name, share in entry.missing.items()} for entry in entries[: len(reports)]
    ]
    for report in reports:
        number = report["window"] - 1
        for rung, held in report["experts"].items():
            shares = [expert["utilisation"] for expert in held]
            if shares and None not in shares:
                found[number][f"load/{rung}"] = drift.evenness(np.asarray(shares, float))
        test = report.get("test", {})
        if test.get("examples") and test["window"] <= len(found):
            values = test["metrics"]
            name = metric if metric in values else next(name for name in values if name.startswith("NDCG"))
            found[test["window"] - 1][f"quality/{name}"] = values[name]
    return found


def _tried(learner: Learner, result: EvaluationResult) -> Tried:
    users, items = np.array(learner.memory.user_ids), np.array(["", *learner.memory.item_ids])
    return Tried(HeldOut(users[result.users], items[result.targets], np.sort(items[1:])), result.ranks)
