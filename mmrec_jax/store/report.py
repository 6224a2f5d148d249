"""What an extraction came to: counts, and why items have no states."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import tensorstore as ts

from mmrec_jax.store.arrays import read_lines, store_errors, write_lines
from mmrec_jax.store.processes import FOLDER

REPORT = "extraction_report.json"
EXAMPLES = 1000  # reasons that are kept in memory
EARLIER = "failed in an earlier run"


@dataclass(frozen=True)
class ModalityReport:
    """What a catalogue's extraction came to for one modality.

    Attributes:
        items: of the catalogue.
        present: items with states.
        absent: items for which the catalogue has no medium (empty text, no path).
        failed: items whose medium is broken or was not found.
        reasons: item -> why it is absent or failed, the failed ones first; at most 1000, the report on disk has all.
        computed: items gone through in this run; the others were finished before.
        seconds: this run's time for the modality and those encoded with it, loading and compilation included.
        waited: seconds of these in which this process's encoder waited for media.
        changed: items of `computed` that had been finished, but were made of something else than now.
    """

    items: int
    present: int
    absent: int
    failed: int
    reasons: dict[str, str]
    computed: int
    seconds: float
    waited: float = 0.0
    changed: int = 0

    def summary(self, name: str) -> str:
        """One line for a person."""
        line = (
            f"{name}: {self.present:,} of {self.items:,} items present, {self.absent:,} absent, {self.failed:,} failed"
        )
        failed = list(self.reasons.values())[: self.failed]
        common = Counter(reason.split(":")[0] for reason in failed).most_common(3)
        return line + (f" ({'; '.join(f'{reason}: {n:,}' for reason, n in common)})" if common else "")


def note_failures(files: ts.KvStore, group: str, block: int, failures: dict[str, str]) -> None:
    """Keeps the reasons of a block's failed items on disk until the report is made."""
    if failures:
        records = [{"item": item, "reason": reason} for item, reason in failures.items()]
        write_lines(files, f"{_folder(group)}/{block:012}.jsonl", records)


def noted_failures(files: ts.KvStore, group: str) -> dict[str, str]:
    """Item -> reason, of all processes."""
    return {record["item"]: record["reason"] for record in read_lines(files, _folder(group))}


def _folder(group: str) -> str:
    return str(PurePosixPath(FOLDER) / "failures" / group)


def reasons_of(
    failed: Iterable[str], absent: Iterable[str], noted: dict[str, str], why_absent: str
) -> Iterator[tuple[str, str]]:
    """(item, reason) of all items without states, the failed ones first."""
    for item in failed:
        yield item, noted.get(item, EARLIER)
    for item in absent:
        yield item, why_absent


def as_json(report: ModalityReport, reasons: Iterable[tuple[str, str]]) -> str:
    """The report with all reasons, as JSON made piece by piece."""
    counts = {key: value for key, value in asdict(report).items() if key != "reasons"}
    text = io.StringIO()
    text.write(json.dumps(counts, indent=1)[:-2] + ',\n "reasons": {')
    for number, (item, reason) in enumerate(reasons):
        text.write(f"{',' if number else ''}\n  {_quoted(item)}: {_quoted(reason)}")
    text.write("\n }\n}")
    return text.getvalue()


def write_report(files: ts.KvStore, texts: dict[str, str]) -> None:
    """Replaces `extraction_report.json`: modality -> its report."""
    content = "{\n" + ",\n".join(f"{_quoted(name)}: {text}" for name, text in texts.items()) + "\n}\n"
    with store_errors(f"{files.url}{REPORT} cannot be written"):
        files.write(REPORT, content.encode()).result()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
