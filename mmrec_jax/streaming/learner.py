"""A model and the stream that it learns from: one window is trained from given parameters, another tested."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int64

from mmrec_jax import experiment
from mmrec_jax.config import VALIDATED, RunConfig
from mmrec_jax.data.prepared import Examples
from mmrec_jax.data.rows import Rows
from mmrec_jax.errors import ConfigError, EmptySplitError
from mmrec_jax.evaluation.blocks import BlockShape, inner_block, pair_capacity
from mmrec_jax.evaluation.evaluate import EvaluationResult, evaluate
from mmrec_jax.objectives import log_popularity
from mmrec_jax.parallel.preemption import REQUEST
from mmrec_jax.streaming import examples, growth
from mmrec_jax.streaming.batches import training_stream
from mmrec_jax.streaming.memory import Events, Memory
from mmrec_jax.streaming.table import PaddedTable, StatesOf
from mmrec_jax.streaming.utilisation import with_evaluations
from mmrec_jax.streaming.windows import Window
from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.kept import KeptSteps
from mmrec_jax.training.loop import fit
from mmrec_jax.training.scorer import SequentialScorer
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.training.step import Programs, seed_keys
from mmrec_jax.training.trees import host_copy
from mmrec_jax.types import Params

USERS_A_CALL = 256
AHEAD = 4
"""How much more room than the first window needs is made where nobody knows what will come, for items and histories."""


@dataclass(frozen=True)
class Trained:
    """What training on a window gave.

    Attributes:
        params: the best ones.
        utilisation: rung -> of each slot, of the epoch that the parameters are of; {} for models without a ladder.
        facts: for the report: plain values.
    """

    params: Params
    utilisation: dict[str, list[float]]
    facts: dict[str, Any]


@dataclass
class Learner:
    """Holds the stream so far, the table of its items' states, and what was compiled.

    Items get rows of the table in order of appearance; rows and batches have sizes that stay as they are, so that
    windows after the first compile nothing.

    Attributes:
        config: of the run.
        workdir: takes `windows/<number>/` while a window is trained.
        states: of items by id; None for systems by id.
        capacity: rows of the table.
        run: description of what is trained, for checkpoints.
        memory: the stream so far.
        sizes: of batches; chosen by the first training unless they are given.
    """

    config: RunConfig
    workdir: Path
    states: StatesOf | None
    capacity: int
    run: Mapping[str, Any]
    memory: Memory = field(init=False)
    sizes: Sequence[tuple[int, int]] = field(init=False, default=())
    _table: PaddedTable | None = field(init=False, default=None)
    _task: SequentialRecommendation | None = field(init=False, default=None)
    _kept: KeptSteps = field(init=False, default_factory=KeptSteps)
    _fresh: Params | None = field(init=False, default=None)
    _first_items: int = field(init=False, default=0)
    _pairs: int = field(init=False, default=1)
    _validation: tuple[Examples, Bool[np.ndarray, " row"]] | None = field(init=False, default=None)
    _windows: list[Window] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        for key in ("methods", "warm_start"):
            if getattr(self.config, key):
                raise ConfigError(
                    f"{key} is not read by --mode=stream, which trains on stored states from the first on."
                )
        self.memory = Memory(self.config.stream)
        if self.states is not None:
            self._table = PaddedTable(self.states, self.capacity)

    def foresee(self, windows: Sequence[Window]) -> None:
        """Makes room for the evaluations of windows that will come: none is then compiled anew."""
        ahead = Memory(self.config.stream)
        for window in windows:
            ahead.add(window)
            self._make_room(self._tested(ahead.events, window.number), self._validated(ahead.events, window.number))

    def observe(self, window: Window) -> None:
        """Takes a window in: its events, users and items.

        Raises:
            ConfigError: `model.add_ids` with more items than rows.
        """
        if not self._windows:
            self.memory = Memory(self.config.stream, window.number)
        added = self.memory.add(window)
        if not self._windows:
            self._first_items = len(added)
        self._windows.append(window)
        if self._table is not None:
            if self.config.model.add_ids and self.memory.num_items > self.capacity:
                raise ConfigError(
                    f"window {window.number}: model.add_ids cannot do with more items than stream.item_capacity="
                    f"{self.capacity} from the first window on: set it to the number of all items to come."
                )
            self._table.add(added)
            self.capacity = self._table.capacity
        while self.memory.num_items > self.capacity:  # of systems by id, whose parameters have a row an item
            self.capacity *= 2
            self._task = self._fresh = None

    def forget(self, oldest: int) -> None:
        """Forgets windows before one, and users and items that only they had; others get numbers anew, as if the stream
        had begun there.

        Raises:
            ConfigError: `model.add_ids`, whose vectors would be those of other items.
        """
        kept = [window for window in self._windows if window.number >= oldest]
        if len(kept) == len(self._windows):
            return
        if self._table is not None and self.config.model.add_ids:
            raise ConfigError("model.add_ids cannot do with items that are forgotten: switch it off.")
        self._windows, self._fresh = [], None
        if self.states is not None:
            self._table = PaddedTable(self.states, self.capacity)
        for window in kept:
            self.observe(window)

    @property
    def rows(self) -> int:
        """Rows of the table, padding included."""
        return self.capacity + 1

    def folder(self, number: int) -> Path:
        """Where a window is trained."""
        return self.workdir / "windows" / f"{number:04d}"

    def fresh(self) -> Params:
        """Parameters to begin with; what the model measures of its items, it measures on those of the first window that
        is remembered, however many came since."""
        if self._fresh is None:
            filled = None if self._table is None else self._table.first(self._first_items)
            shares = jnp.zeros(self.rows if filled is None else filled.num_rows)
            frozen = SequentialFrozen(filled, shares)
            key = seed_keys(self.config.training.seed)[0]
            self._fresh = host_copy(Programs(self.task.init)((), key, frozen))
        return self._fresh

    @property
    def task(self) -> SequentialRecommendation:
        """The model with its objective; the same object as long as the shapes stay."""
        if self._task is None:
            table = None if self._table is None else self._table.table
            self._task = replace(experiment.build_task(self.config, table, self.rows), validator=self._validate)
        return self._task

    def fitted(self, params: Params) -> Params:
        """Makes model and parameters fit each other; other shapes are compiled anew.

        The model holds as many experts a rung as the parameters do; parameters of systems by id get rows for the items
        that came since, as fresh ones have them.
        """
        slots = {rung.capacity for rung in growth.rungs(params).values()}
        if slots and slots != {self.config.model.capacity}:
            model = replace(self.config.model, capacity=slots.pop())
            self.config, self._task = replace(self.config, model=model), None
        return params if self._table is not None else jax.tree.map(_with_rows, params, self.fresh())

    def train(self, number: int, params: Params | None) -> Trained:
        """Trains on a window as `stream.learner` says, or goes on with that training where it was interrupted.

        Args:
            number: of the window, which was observed.
            params: to begin with; None for fresh ones.

        Raises:
            EmptySplitError: the window has nothing to train on, or nothing to validate with.
            Preempted: this process was told to end; the training goes on after the step that was saved.
        """
        start = time.perf_counter()
        params = self.fresh() if params is None else params
        params = self.fitted(params)
        config, rows = self.config, self._rows(number)
        self._validation = self._validating(number)
        training = replace(
            config.training,
            seed=(config.training.seed + number - 1) % 2**32,
            compilation_cache_dir="",
            learning_curve=False,
            tensorboard=False,
        )
        stream, self.sizes = training_stream(rows, self.sizes, self.capacity, training, f"window {number}")
        try:
            place, frozen = self.folder(number), self._frozen(rows)
            with REQUEST.at_boundaries():
                fitted = fit(
                    self.task,
                    frozen,
                    stream,
                    training,
                    place,
                    dict(self.run),
                    params,
                    kept=self._kept,
                    stop=REQUEST.boundary,
                )
            best = next((entry for entry in fitted.history if entry["step"] == fitted.best_step), {})
            measured = {
                name.removeprefix("utilisation/"): list(values)
                for name, values in best.get("measured", {}).items()
                if name.startswith("utilisation/")
            }
            if measured and config.stream.utilisation == "paper":
                encoded = sum(int(np.sum(batch.items > 0)) for batch in stream.sample(stream.batches_per_epoch)[0])
                measured = with_evaluations(self.task, fitted.params, frozen, measured, encoded)
        finally:
            stream.close()
        facts = {
            "rows": len(rows),
            "targets": int(examples.popularity(rows, self.rows).sum()),
            "validation_examples": len(self._validation[0]),
            "epochs": len(fitted.history),
            "best_epoch": best.get("epoch"),
            "steps": fitted.step,
            "seconds": time.perf_counter() - start,
            "step_seconds": sum(entry["seconds"] for entry in fitted.history),
            "peak_memory_bytes": max((entry["peak_memory_bytes"] for entry in fitted.history), default=0),
            "validation": {config.training.monitor: fitted.best_value},
        }
        return Trained(fitted.params, measured, facts)

    def scorer(self, params: Params) -> SequentialScorer:
        """Vectors of all items so far, and of users."""
        params = self.fitted(params)
        return SequentialScorer(self.task, params, self._frozen(None))

    def test(self, scorer: SequentialScorer, number: int, whole: bool = False) -> EvaluationResult | None:
        """The evaluation on a window that was observed and not trained on, over all items so far; None where no user of
        the window can be tested.

        Args:
            scorer: of the model.
            number: of the window.
            whole: with what `evaluation.lists` and `evaluation.slices` ask for; popularity is that of the windows
                before, so that a new item has none.
        """
        events = self.memory.events
        if not whole:
            return self._evaluate(scorer, self._tested(events, number), self.known)
        before = events.items[events.windows < number]
        return self._evaluate(
            scorer, self._tested(events, number), self.known, popularity=np.bincount(before, minlength=self.rows)
        )

    def held_out(self, scorer: SequentialScorer, number: int) -> EvaluationResult | None:
        """The evaluation on the part of a window that validated, over the items that were known at the window's end;
        None where it has none, or is not remembered."""
        if not len(found := self._validated(self.memory.events, number)):
            return None
        known = self.known & (np.arange(self.rows) <= self.memory.totals[number - self.memory.first])
        return self._evaluate(scorer, found, known)

    @property
    def known(self) -> Bool[np.ndarray, " row"]:
        """Rows of the items so far."""
        rows = np.arange(self.rows)
        return (rows > 0) & (rows <= self.memory.num_items)

    def _rows(self, number: int) -> Rows:
        stream, model = self.config.stream, self.config.model
        windows = np.arange(1, number + 1) if stream.learner == "retrain_all" else np.asarray([number])
        own = examples.rows(self.memory.events, windows, model.length, model.window, stream.context)
        if not len(own):
            raise EmptySplitError(
                f"window {number} has no event to train on: every user has one event in it, or only such that "
                "validate. Lower stream.windows or stream.valid_fraction, or set stream.context='all'."
            )
        if stream.learner == "replay" and number > 1:
            old = examples.rows(self.memory.events, np.arange(1, number), model.length, model.window, stream.context)
            count = min(round(stream.replay * len(own)), len(old))
            rng = np.random.default_rng([self.config.training.seed, number])
            own = examples.joined(own, old, np.sort(rng.choice(len(old), count, replace=False)))
        return own

    def _validating(self, number: int) -> tuple[Examples, Bool[np.ndarray, " row"]]:
        found = self._validated(self.memory.events, number)
        if not len(found):
            raise EmptySplitError(
                f"no user of window {number} has an event that validates and one before it: raise "
                "stream.valid_fraction, lower stream.windows, or set stream.validation='user'."
            )
        if self.config.stream.valid_candidates == "seen":
            return found, self.known
        return found, examples.validating_items(self.memory.events, number, self.rows)

    def _validate(self, task, params, frozen) -> dict[str, float]:
        assert self._validation is not None
        k = int(self.config.training.monitor.split("@")[1])
        scorer = SequentialScorer(task, params, frozen)
        result = self._evaluate(scorer, *self._validation, ks=(k,))
        assert result is not None
        return {f"{name}@{k}": result.metrics[f"{name}@{k}"] for name in VALIDATED}

    def _evaluate(
        self,
        scorer: SequentialScorer,
        found: Examples,
        candidates: Bool[np.ndarray, " row"],
        ks: tuple[int, ...] = (),
        popularity: Int64[np.ndarray, " row"] | None = None,
    ) -> EvaluationResult | None:
        """Metrics, and only with a popularity what is asked for beside them."""
        if not len(found):
            return None
        self._make_room(found, ahead=AHEAD)
        config = replace(self.config.evaluation, bootstrap=0)
        if popularity is None:
            config = replace(config, ks=ks or config.ks, lists=False, slices=False)
        return evaluate(
            scorer,
            found,
            np.zeros(self.rows, np.int64) if popularity is None else popularity,
            length=self.config.model.length,
            config=config,
            present=None if self._table is None else self._table.present,
            candidates=candidates,
            blocks=BlockShape(USERS_A_CALL, self._pairs),
        )

    def _make_room(self, *found: Examples, ahead: int = 1) -> None:
        """Lets evaluations have as many pairs of users and seen items in a block as the fullest one needs; where they
        have not, `ahead` times as many, as histories become longer."""
        inner = inner_block(USERS_A_CALL, self.rows)
        needed = max((pair_capacity(part.histories, inner) for part in found if len(part)), default=1)
        if needed > self._pairs:
            self._pairs = ahead * needed

    def _tested(self, events: Events, number: int) -> Examples:
        stream = self.config.stream
        return examples.tested(
            events, number, min_events=stream.min_events, context=stream.context, targets=stream.targets
        )

    def _validated(self, events: Events, number: int) -> Examples:
        stream = self.config.stream
        return examples.validated(events, number, context=stream.context, targets=stream.valid_targets)

    def _frozen(self, rows: Rows | None) -> SequentialFrozen:
        """What the task reads: states, and how popular items are among what is trained on."""
        counts = np.zeros(self.rows, np.int64) if rows is None else examples.popularity(rows, self.rows)
        table = None if self._table is None else self._table.table
        return SequentialFrozen(table, jax.device_put(np.asarray(log_popularity(jnp.asarray(counts)))))


def _with_rows(old: Any, fresh: Any) -> Any:
    """A parameter with the rows beyond its own of a fresh one."""
    return old if len(np.shape(old)) == 0 or len(old) == len(fresh) else np.concatenate([old, fresh[len(old) :]])
