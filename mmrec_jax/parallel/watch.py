"""While a run goes on, its processes tell each other that they are alive, where to stop, and how they ended.

A collective waits for ever for a process that is gone. So a thread of each process watches the others, and ends its own
process with a message that names the host, whatever the main thread waits for. The first process hears all; the others
hear the first.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from mmrec_jax.parallel.peers import ready
from mmrec_jax.parallel.preemption import StopRequest
from mmrec_jax.parallel.rendezvous import Meeting

LOST = 69  # EX_UNAVAILABLE of sysexits.h
PREEMPTED = 75  # EX_TEMPFAIL
FINISHED, STOPPED, TOLD = "finished", "stopped", "told to end"
_POLL = 0.1  # seconds
_GRACE = 2.0
"""Seconds for what the others do by themselves: failing at the same mistake, or ending at the same signal."""


class Watch(threading.Thread):
    """Of one process over the others.

    Args:
        meeting: the processes.
        timeout: seconds of silence after which a process counts as lost.
        stuck: seconds after which one counts as lost that is behind the others, none of which advances.
        request: where the run is asked to stop.
    """

    def __init__(self, meeting: Meeting, timeout: float, stuck: float, request: StopRequest):
        super().__init__(name="watch over the other processes", daemon=True)
        self._me, self._peers, self._lines = meeting.me, meeting.peers, meeting.lines
        self._timeout, self._beat = timeout, min(max(timeout / 10, 0.2), 5.0)
        self._stuck, self._advanced = stuck, time.monotonic()
        self._boundaries = dict.fromkeys(range(len(self._peers)), 0)
        self._request = request
        self._first = meeting.me.index == 0
        self._heard = dict.fromkeys(self._lines, time.monotonic())
        self._ended: dict[int, str] = {}
        self._passed: dict[int, int] = {}
        self._asked = self._told = False
        self._leaving: str | None = None
        self._all_ended = True
        self._over = threading.Event()
        self._beaten = 0.0
        self._bad_since: float | None = None

    def leave(self, how: str) -> bool:
        """Tells the others how this process ends, and waits until all have. False where the first process is gone
        before it could tell so.

        Args:
            how: `FINISHED`, `STOPPED` (with the others, at a step boundary), `TOLD` (by SIGTERM, outside of training),
                or what failed.
        """
        self._leaving = how
        self._over.wait()
        return self._all_ended

    def settle(self) -> None:
        """Waits, after an error that the loss of another process may have caused, as long as one may be found lost.

        Where one is, this process ends here.
        """
        time.sleep(2 * _GRACE)
        while self._any_in_doubt():
            time.sleep(_POLL)

    def _any_in_doubt(self) -> bool:
        now = time.monotonic()
        silent = any(now - self._heard[i] > 3 * self._beat for i in self._lines if i not in self._ended)
        return silent or any(how not in (FINISHED, STOPPED) for how in self._ended.values())

    def run(self) -> None:
        """Watches until all have ended. Where that fails it ends the process, which would wait for ever in `leave`."""
        try:
            self._watch()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    def _watch(self) -> None:
        while not self._over.is_set():
            for line in ready(self._lines.values(), _POLL):
                index = next(index for index, other in self._lines.items() if other is line)
                for message in line.receive():
                    self._heard[index] = time.monotonic()
                    self._take(index, message)
            self._send_what_is_due()
            self._look_for_the_lost()
            self._look_for_the_stuck()
            self._end_together()

    def _take(self, index: int, message: dict[str, Any]) -> None:
        if "beat" in message:
            self._count(index, message["beat"])
        if "bye" in message:
            self._ended[index] = message["bye"]
        if "told" in message:
            self._told = True
        if "ask" in message:
            self._lines[0].send(passed=self._request.ask())
        if "passed" in message:
            self._passed[index] = message["passed"]
        if "last" in message:
            self._request.decide(message["last"])
        if "over" in message:
            self._over.set()
        if "end" in message:
            self._exit(message["end"], message["code"])

    def _send_what_is_due(self) -> None:
        now = time.monotonic()
        if now - self._beaten > self._beat:
            self._beaten = now
            self._count(self._me.index, self._request.passed)
            self._tell_all(beat=self._request.passed)
        if self._request.told and not self._told:
            self._told = True
            if not self._first:
                self._lines[0].send(told=True)
        if self._first and self._told and not self._asked:
            self._asked = True
            self._passed[0] = self._request.ask()
            self._tell_all(ask=True)
        if self._first and len(self._passed) == len(self._peers):
            last = max(self._passed.values()) + 1
            self._passed.clear()
            self._tell_all(last=last)
            self._request.decide(last)
        if self._leaving is not None and self._me.index not in self._ended:
            self._ended[self._me.index] = self._leaving
            self._tell_all(bye=self._leaving)

    def _look_for_the_lost(self) -> None:
        now, everybody = time.monotonic(), range(len(self._peers))
        for index, line in self._lines.items():
            if index in self._ended:
                if not self._first and not line.open:
                    self._part_without_the_first()
                continue
            silent = now - self._heard[index]
            if not line.open:
                self._end_all(f"{self._peers[index]} is gone: it was killed, or its host is down.", LOST, everybody)
            elif silent > self._timeout:
                said = f"{self._peers[index]} has been silent for {silent:.0f} s (parallel.timeout_seconds)"
                self._end_all(f"{said}: its host is down, hangs, or cannot be reached.", LOST, everybody)

    def _count(self, index: int, passed: int) -> None:
        if self._boundaries[index] != passed:
            self._boundaries[index], self._advanced = passed, time.monotonic()

    def _look_for_the_stuck(self) -> None:
        """One whose main thread waits for something of its own, such as a disk, while the others wait for it."""
        least, most = min(self._boundaries.values()), max(self._boundaries.values())
        waited = time.monotonic() - self._advanced
        if not self._first or self._ended or least == most or waited < self._stuck:
            return
        late = min(self._boundaries, key=lambda index: self._boundaries[index])
        self._end_all(
            f"{self._peers[late]} lives but is stuck: after step {least} of this start, with others after step {most}, "
            f"none advanced for {waited:.0f} s (parallel.stuck_seconds). See its disks, and what it prints.",
            LOST,
            range(len(self._peers)),
        )

    def _part_without_the_first(self) -> None:
        """The first process is gone after its end, and cannot say any more when all have come to theirs."""
        if self._leaving is not None:
            self._all_ended = False
            self._over.set()
        elif self._ended[0] not in (FINISHED, STOPPED):
            self._exit(*self._cause(0))

    def _cause(self, index: int) -> tuple[str, int]:
        """Why all end where a process came to a bad end, and the exit code of the others."""
        if self._ended[index] == TOLD:
            return f"{self._peers[index]} was told to end (SIGTERM) outside of a training step.", PREEMPTED
        return f"{self._peers[index]} failed: {self._ended[index]}", LOST

    def _end_together(self) -> None:
        """A good end waits for that of all; after a bad one the others have a moment to come to theirs."""
        me, left = self._me.index, [index for index in range(len(self._peers)) if index not in self._ended]
        bad = [index for index, how in self._ended.items() if how not in (FINISHED, STOPPED)]
        if not self._first:
            if me in bad:
                self._over.set()
            return
        if bad and left:
            self._bad_since = self._bad_since or time.monotonic()
            if time.monotonic() - self._bad_since < _GRACE:
                return
            self._end_all(*self._cause(bad[0]), left)
        elif left:
            return
        self._tell_all(over=True)
        self._over.set()

    def _end_all(self, why: str, code: int, those: Sequence[int]) -> None:
        """Ends the processes that are still there, this one last: with the first one JAX's own service goes, whose
        clients would end with an error of theirs."""
        if self._first:
            others = [self._lines[index] for index in those if index in self._lines]
            for line in others:
                line.send(end=why, code=code)
            deadline = time.monotonic() + _GRACE
            while any(line.open for line in others) and time.monotonic() < deadline:
                for line in ready(others, _POLL):
                    line.receive()
        if self._me.index in those:
            self._exit(why, code)

    def _exit(self, why: str, code: int) -> None:
        """The main thread may be inside a collective that never ends: nothing but this ends it."""
        name = "HostError" if code == LOST else "Preempted"
        again = "Start all processes again: they go on from the last checkpoint."
        os.write(2, f"\n{name}: {why} {again} (Said by {self._me}.)\n".encode())
        os._exit(code)

    def _tell_all(self, **message: Any) -> None:
        for line in self._lines.values():
            if line.open:
                line.send(**message)
