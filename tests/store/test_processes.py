"""Shares of a catalogue, and waiting for other processes: bounded, and with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest

from mmrec_jax.errors import StoreError
from mmrec_jax.store.arrays import key_value_store, write_json
from mmrec_jax.store.blocks import blocks_of, share_of
from mmrec_jax.store.processes import Processes
from mmrec_jax.store.report import ModalityReport, as_json


def test_blocks_lie_at_fixed_rows_and_shares_are_disjoint_whatever_their_number() -> None:
    rows = np.random.default_rng(0).permutation(100)
    waiting = rows % 7 > 0
    blocks = blocks_of(rows, waiting, size=8, chunk=30)
    for block in blocks:
        assert len(set(rows[block] // 30)) == 1
        assert len(set(rows[block] % 30 // 8)) == 1
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.flatnonzero(waiting))
    for count in (1, 2, 3, 50):
        shares = [share_of(blocks, index, count) for index in range(count)]
        assert [id(block) for share in shares for block in share] == [id(block) for block in blocks]
    assert blocks_of(rows, np.zeros(100, bool), 8, 30) == []


def test_a_process_that_fails_or_is_silent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    files = key_value_store(tmp_path)
    processes = Processes(files, timeout=1)
    processes.tell(8, finished=True)
    with pytest.raises(StoreError, match=r"process 0 waited for process 1 to finish title, .* for 1 s"):
        processes.wait_for_all("title")
    write_json(files, "extraction/process_1.json", {"done": 3, "finished": False, "error": "OSError: full"})
    with pytest.raises(StoreError, match="process 1 of 2 failed at title: OSError: full"):
        processes.wait_for_all("title")
    write_json(files, "extraction/process_1.json", {"done": 9, "finished": True, "error": ""})
    processes.wait_for_all("title")
    processes.clear()
    assert not list((tmp_path / "extraction").rglob("*.json"))


def test_the_report_says_what_failed_most() -> None:
    reasons = {"a": "file not found", "b": "too long: 7", "c": "file not found", "d": "empty text"}
    report = ModalityReport(9, 5, 1, 3, reasons, 9, 1.0)
    line = "t: 5 of 9 items present, 1 absent, 3 failed (file not found: 2; too long: 1)"
    assert report.summary("t") == line
    assert json.loads(as_json(report, reasons.items())) == asdict(report)
    assert json.loads(as_json(report, []))["reasons"] == {}
