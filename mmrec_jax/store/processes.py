"""Several processes at one store: who is who, waiting for one another, and hearing of each other's failures."""

from __future__ import annotations

import itertools
import time

import jax
import tensorstore as ts

from mmrec_jax.errors import StoreError
from mmrec_jax.store.arrays import read_json, store_errors, write_json

FOLDER = "extraction"  # in the store, while an extraction runs
_POLL = 0.2  # seconds
_MEETINGS = itertools.count()


class Processes:
    """The processes of `jax.distributed`, or the only one.

    They meet at barriers, which are short, and see each other's progress in small files of the store, so that one
    waits for another as long as it goes on.

    Attributes:
        index: of this process.
        count: of all.
    """

    def __init__(self, files: ts.KvStore, timeout: int):
        self.index, self.count = jax.process_index(), jax.process_count()
        self._files, self._timeout = files, timeout

    @property
    def first(self) -> bool:
        """Whether this process makes and assembles what there is one of."""
        return self.index == 0

    def meet(self, what: str) -> None:
        """Waits until every process is here.

        Raises:
            StoreError: not all came in time; the message says what was waited for.
        """
        if self.count == 1:
            return
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        try:
            get_barrier_sync_fn()(key=f"mmrec_jax {next(_MEETINGS)}: {what}", timeout_ms=1000 * self._timeout)
        except jax.errors.JaxRuntimeError as error:
            raise StoreError(
                f"process {self.index} waited for the {self.count - 1} others until {what}, for {self._timeout} s "
                f"(process_timeout): {str(error).splitlines()[0]}. See what became of them, and start all again: "
                "finished work is kept"
            ) from error

    def tell(self, done: int, *, finished: bool = False, error: str = "") -> None:
        """Lets the other processes know how far this one is."""
        if self.count > 1:
            write_json(self._files, self._name(self.index), {"done": done, "finished": finished, "error": error})

    def wait_for_all(self, what: str) -> None:
        """Waits until every process has told that it is finished, as long as those that are not go on.

        Raises:
            StoreError: one of them failed, or nothing went on for `timeout` seconds.
        """
        seen, since = None, time.monotonic()
        while self.count > 1:
            told = {i: read_json(self._files, self._name(i)) for i in range(self.count)}
            for i, state in told.items():
                if isinstance(state, dict) and state["error"]:
                    raise StoreError(f"process {i} of {self.count} failed at {what}: {state['error']}")
            if all(isinstance(state, dict) and state["finished"] for state in told.values()):
                return
            if told != seen:
                seen, since = told, time.monotonic()
            if time.monotonic() - since > self._timeout:
                behind = [str(i) for i, state in told.items() if not isinstance(state, dict) or not state["finished"]]
                raise StoreError(
                    f"process {self.index} waited for process {', '.join(behind)} to finish {what}, and nothing went "
                    f"on for {self._timeout} s (process_timeout): start all again, finished work is kept"
                )
            time.sleep(_POLL)

    def clear(self) -> None:
        """Removes what an extraction left for the other processes and for its report."""
        with store_errors(f"{self._files.url}{FOLDER} cannot be removed"):
            (self._files / f"{FOLDER}/").delete_range(ts.KvStore.KeyRange()).result()

    @staticmethod
    def _name(index: int) -> str:
        return f"{FOLDER}/process_{index}.json"
