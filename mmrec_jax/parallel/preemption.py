"""SIGTERM, which comes before a machine is taken away: the run saves at the next step boundary, and ends.

Outside of training the run ends at once, as with Ctrl-C: what was finished is saved already. Signals belong to the
process, so what is asked of it is kept here once, in `REQUEST`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from mmrec_jax.errors import Preempted


class StopRequest:
    """Whether this run is to end, and at which of the step boundaries that all its processes pass.

    A process that is alone ends at the next one. Several have to end at the same one: when one is told to end, each
    says how many boundaries it has passed and waits at its next until it has heard the number at which all end, which
    is one more than any of them has passed.

    Attributes:
        told: whether this process was told to end, by SIGTERM.
        grouped: whether other processes have to be asked.
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """Begins anew, for the next command line of this process."""
        self.told = False
        self.grouped = False
        self._changed = threading.Condition()
        self._passed = 0
        self._asked = False
        self._last: int | None = None
        self._between_steps = False

    def boundary(self) -> bool:
        """Passes a step boundary; whether the run is to be saved and ended here. To be called once a step."""
        if not self.grouped:
            return self.told
        with self._changed:
            self._changed.wait_for(lambda: not self._asked or self._last is not None)
            self._passed += 1
            return self._last is not None and self._passed >= self._last

    @property
    def passed(self) -> int:
        """How many boundaries this process has passed."""
        return self._passed

    def ask(self) -> int:
        """How many boundaries this process has passed; it passes no further one before `decide`."""
        with self._changed:
            self._asked = True
            return self._passed

    def decide(self, last: int) -> None:
        """The boundary at which all processes end."""
        with self._changed:
            self._last = last
            self._changed.notify_all()

    @contextlib.contextmanager
    def at_boundaries(self) -> Iterator[None]:
        """While this lasts, being told to end raises nothing: `boundary` is asked.

        Raises:
            Preempted: there was no boundary any more after that.
        """
        self._between_steps = True
        try:
            yield
        finally:
            self._between_steps = False
        if self.told:
            raise Preempted("after the training, which is saved")

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listens to SIGTERM; where another handler is set, or outside of the main thread, it is left alone."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.forget()

    def _terminate(self, number, frame) -> None:
        self.told = True
        if not self._between_steps:
            raise Preempted("outside of training; what was finished before is saved")


REQUEST = StopRequest()
