"""XSMoE's protocol (papers.md 4 b2 and f) over any stream of windows, as phases between which it can be killed.

A window comes; the model of the windows before is tested on it, put in service or not, pruned and expanded, and trained
on it with a new optimiser. Each phase ends with a checkpoint. Killed anywhere and started again over the same windows,
a stream ends with the same bits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import polars as pl

from mmrec_jax.errors import ConfigError
from mmrec_jax.evaluation.evaluate import EvaluationResult
from mmrec_jax.evaluation.metrics import gain_table, metric_names, metrics, rank_cells
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.streaming import growth
from mmrec_jax.streaming.learner import Learner
from mmrec_jax.streaming.state import PHASES, StreamCheckpoints, StreamState
from mmrec_jax.streaming.windows import Window, numbered
from mmrec_jax.training.compilations import process_counter
from mmrec_jax.types import Params

LIVING = ("carry", "replay")
"""Learners whose parameters go from window to window, and grow."""


class Promotion(Protocol):
    """Decides what is put in service."""

    def __call__(self, learner: Learner, window: Window, params: Params, result: EvaluationResult) -> dict[str, Any]:
        """Called when a model was tested on the newest window; a second time if the stream was killed within.

        Args:
            learner: evaluates others on the same window.
            window: the newest; the model was trained on the one before.
            params: of the model.
            result: its evaluation.

        Returns:
            What the report says of it, plain JSON values.
        """


class StreamRun:
    """One stream.

    Args:
        learner: the model.
        promotion: asked after each test; None where nothing is in service.
        say: takes a line for the person who watches.
    """

    def __init__(self, learner: Learner, promotion: Promotion | None = None, say=print) -> None:
        self.learner, self._promotion, self._say = learner, promotion, say
        self._stream = learner.config.stream
        self._checkpoints = StreamCheckpoints(learner.workdir, learner.run)
        self.state: StreamState
        self._params: Params | None  # None before the first training
        self.state, self._params = self._checkpoints.load()
        learner.sizes = [(distinct, steps) for distinct, steps in self.state.sizes]
        self._result: EvaluationResult | None = None

    @property
    def params(self) -> Params:
        """The parameters as the last phase left them."""
        assert self._params is not None, "no window was trained yet"
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        """Puts others in their place, between two windows."""
        self._params = params

    def close(self) -> None:
        """Releases the workdir."""
        self._checkpoints.close()

    def run(self, windows: Iterable[Window], last: int | None = None, first: int = 1) -> list[dict[str, Any]]:
        """Lives through the windows; those that a checkpoint is of already are only remembered.

        Args:
            windows: in order; may be endless.
            last: number of the last window, which is tested on only unless `stream.train_last`; None trains on all.
            first: number of the first of them: later than 1 where older ones are forgotten.

        Returns:
            A report a trained window.
        """
        compiled = process_counter()
        for window in numbered(iter(windows), first):
            self.state.check(window)
            known = self.learner.memory.num_items
            self.learner.observe(window)
            self._new_items = self.learner.memory.num_items - known
            for phase in PHASES:
                if self.state.done(window.number, phase):
                    continue
                if window.number == last and phase in PHASES[2:] and not self._stream.train_last:
                    continue
                before, start = compiled.count, time.perf_counter()
                if window.number > 1 or phase == "train":
                    getattr(self, f"_{phase}")(window)
                    self._account(phase, time.perf_counter() - start, compiled.count - before)
                self.state.window, self.state.phase = window.number, phase
                if self._params is not None:
                    self._checkpoints.save(self.state, self.params)
            if self.state.done(window.number, PHASES[-1]):  # what training left is in the stream's checkpoint
                shutil.rmtree(self.learner.folder(window.number) / "checkpoints", ignore_errors=True)
        return self.state.reports

    @property
    def report(self) -> dict[str, Any]:
        """Of the window that was trained last."""
        return self.state.reports[-1]

    def _account(self, phase: str, seconds: float, programs: int) -> None:
        """Notes what a phase took; the phases before a training are those of the window trained before."""
        self.report.setdefault("seconds", {})[phase] = seconds
        self.report["recompilations"] = self.report.get("recompilations", 0) + programs

    def _train(self, window: Window) -> None:
        memory, learner, grows = self.learner.memory, self._stream.learner, self._stream.learner in LIVING
        self._say(f"\nwindow {window.number}: {len(window):,} events, {self._new_items:,} new items")
        report: dict[str, Any] = {
            "window": window.number,
            "name": window.name,
            "events": len(window),
            "items": memory.num_items,
            "new_items": self._new_items,
            "users": memory.num_users,
        }
        if learner == "frozen" and self._params is not None:
            report |= {"training": {"epochs": 0, "seconds": 0.0}}
        else:
            trained = self.learner.train(window.number, self._params if grows else None)
            self._params, self.state.utilisation = trained.params, trained.utilisation
            self.state.sizes = [list(size) for size in self.learner.sizes]
            report |= {"training": trained.facts}
        trainable, total = growth.counts(self.params)
        shares = {name: np.asarray(values) for name, values in self.state.utilisation.items()}
        report |= {
            "parameters": {"trainable": trainable if learner != "frozen" or window.number == 1 else 0, "total": total},
            "experts": growth.describe(self.params, shares or None),
            "pruned": [],
            "born": [],
        }
        self.state.reports.append(report)

    def _test(self, window: Window) -> None:
        scorer = self.learner.scorer(self.params)
        self._result = result = self.learner.test(scorer, window.number, whole=True)
        if result is None:
            self.report["test"] = {"window": window.number, "examples": 0}
            self._say(f"window {window.number}: no user to test on")
            return
        self.report["test"] = {"window": window.number, **facts(result)}
        self._write_ranks(result, window.number)
        shown = ", ".join(f"{name} {100 * value:.2f}%" for name, value in self.report["test"]["metrics"].items())
        self._say(f"tested on window {window.number}: {shown}")
        self.report["held_out"] = {}
        for earlier in range(max(1, window.number - self._stream.forgetting), window.number):
            if (found := self.learner.held_out(scorer, earlier)) is not None:
                told = facts(found)
                self.report["held_out"][str(earlier)] = {"items": told["items"], **told["metrics"]}

    def _promote(self, window: Window) -> None:
        if self._promotion is None:
            return
        if self._result is None:  # the stream was killed after the test
            self._result = self.learner.test(self.learner.scorer(self.params), window.number)
        if self._result is not None:
            self.report["promotion"] = self._promotion(self.learner, window, self.params, self._result)

    def _prune(self, window: Window) -> None:
        self._result = None
        if not self._stream.prune or not self._grows:
            return
        self._take_away(self._stream.threshold, None)

    def _expand(self, window: Window) -> None:
        if not self._stream.expand or not self._grows:
            return
        full = [name for name, rung in growth.rungs(self.params).items() if not len(rung.free)]
        if full and self._stream.at_capacity == "prune":
            self._say(f"window {window.number}: no free slot in {', '.join(full)}: the least used expert makes room")
            self._take_away(np.inf, full)
        elif full and self._stream.at_capacity == "grow":
            capacity = 2 * max(rung.capacity for rung in growth.rungs(self.params).values())
            self._say(f"window {window.number}: no free slot in {', '.join(full)}: {capacity} slots a rung from now on")
            self._params = growth.grow_capacity(self.params, capacity)
        rng = np.random.default_rng([self.learner.config.training.seed, window.number])
        self._params, born, left = growth.expand(self.params, self.report["window"], rng)
        self.report["born"] = [{"rung": one.rung, "slot": one.slot} for one in born]
        if left:
            self._say(f"window {window.number}: no free slot in {', '.join(left)}: they do not grow")

    @property
    def _grows(self) -> bool:
        return self._stream.learner in LIVING and bool(growth.rungs(self.params))

    def _take_away(self, threshold: float, only: list[str] | None) -> None:
        if not self.state.utilisation:
            raise ConfigError(
                "stream.prune needs the utilisation of experts, which this model's training does not measure: switch "
                "it off, and stream.expand beyond the capacity too."
            )
        shares = {name: np.asarray(values) for name, values in self.state.utilisation.items()}
        self._params, pruned = growth.prune(self.params, shares, threshold, only)
        self.report["pruned"] += [{"rung": p.rung, "slot": p.slot, "utilisation": p.utilisation} for p in pruned]

    def _write_ranks(self, result: EvaluationResult, number: int) -> None:
        """`ranks/<window>.parquet`: user, item and rank, which is null for a repeat that is a miss."""
        folder = self.learner.workdir / "ranks"
        folder.mkdir(parents=True, exist_ok=True)
        memory = self.learner.memory
        users, items = np.array(memory.user_ids), np.array(["", *memory.item_ids])
        columns = {"user": users[result.users], "item": items[result.targets], "rank": result.ranks}
        table = pl.DataFrame(columns).with_columns(pl.col("rank").replace(MISS, None))
        unfinished = folder / f".{number:04d}.parquet"
        table.write_parquet(unfinished)
        unfinished.replace(folder / f"{number:04d}.parquet")


def facts(result: EvaluationResult) -> dict[str, Any]:
    """An evaluation for the report: HR and NDCG over examples and, which differs where all events of a user are
    predicted, their means over users; what the lists of all users say and metrics of slices, where asked for."""
    ks = result.config.ks
    names = [name for name in result.metrics if name.startswith(("HR@", "NDCG@"))]
    users, place = np.unique(result.users, return_inverse=True)
    weights = 1 / np.bincount(place)[place]
    by_user = {}
    if len(users) < len(result.users):
        means = weights @ gain_table(ks)[rank_cells(result.ranks, ks)] / len(users)
        by_user = {name: value for name, value in zip(metric_names(ks), means.tolist(), strict=True) if name in names}
    values = metrics(result.ranks, ks)
    lists = {name: value for name, value in result.metrics.items() if name not in values}
    slices = {
        title: {group: {name: held[name] for name in ("count", *names) if name in held} for group, held in of.items()}
        for title, of in result.slices.items()
    }
    return {
        "examples": len(result.ranks),
        "users": len(users),
        "items": result.num_items,
        "repeats": result.repeats,
        "metrics": {name: values[name] for name in names},
        **({"by_user": by_user} if by_user else {}),
        **({"lists": lists} if lists else {}),
        **({"slices": slices} if slices else {}),
    }
