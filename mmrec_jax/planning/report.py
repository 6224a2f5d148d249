"""A plan as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GIB = 2.0**30
ACCOUNTS = {
    "roofline": "each instruction at the chip's peak or its memory's rate, then each message by itself",
    "overlapped": "the same, with all messages beside the computing",
    "compiler": "the compiler's optimum, messages as memory traffic only, each loop once",
    "cycles": "the compiler's estimates of single instructions, without messages",
}
"""By which a step's time is told, and what each has."""


def as_page(plan: dict[str, Any], command: str) -> str:
    """The plan as Markdown.

    Args:
        plan: of `plan.make_plan`.
        command: what it was made with.
    """
    training = plan["training"]
    parts = [
        f"# {plan['config']} on {plan['topology']}",
        f"    {command}",
        _verdict(plan),
        "## Memory of a chip in training",
        _memory(training),
        "## A training step",
        _seconds(plan),
        _programs(training["programs"]),
        _messages(training["programs"]),
    ]
    if plan["evaluation"]:
        parts += ["## Evaluation", _evaluation(plan)]
    if plan["extraction"]:
        parts += ["## Extraction", _extraction(plan["extraction"])]
    if plan["compared"] or plan["not_compared"]:
        parts += ["## Scaling", _scaling(plan)]
    if plan["advice"]:
        parts += ["## What to change", _advice(plan["advice"])]
    parts += ["## Where this is weak", weaknesses(plan)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(plan: dict[str, Any]) -> str:
    training, sizes = plan["training"], plan["sizes"]
    used, available = training["total_bytes"], training["available_bytes"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    told = (
        f"{plan['chips']} chips ({mesh}); {sizes['items']:,} items, {sizes['batch']:,} users a batch of "
        f"{sizes['distinct']:,} items and {sizes['steps']:,} steps."
    )
    if training["fits"] is None:
        return f"{told} A chip needs {size(used)}; nothing is known of its memory."
    if training["refused"]:
        return f"{told} **Does not fit**: the compiler says {training['refused']!r}."
    fits = "Fits" if training["fits"] else "**Does not fit**"
    return f"{told} {fits}: {size(used)} of {size(available)} ({used / available:.0%})."


def _memory(training: dict[str, Any]) -> str:
    rows = [(name, size(held)) for name, held in training["bytes"].items() if held]
    return table(("group", "bytes"), [*rows, ("all", size(training["total_bytes"]))])


def _seconds(plan: dict[str, Any]) -> str:
    training, epoch = plan["training"], plan["epoch"]
    found = training["seconds"]
    rows = [(name, duration(found[name]), text) for name, text in ACCOUNTS.items() if found[name]]
    if not rows:
        return "No time is predicted: " + (training["refused"] or "no rate is known of this chip.")
    rate = training["examples_per_second"]
    told = f"{rate:,.0f} examples a second by the roofline."
    if epoch["chip_hours"] is not None:
        told += f" An epoch of {epoch['users']:,} users takes {epoch['chip_hours']:,.2f} chip-hours{_money(epoch)}."
    return table(("step time", "", "by"), rows) + f"\n\n{told}"


def _money(part: dict[str, Any]) -> str:
    return "" if part["price"] is None else f", which cost {part['price']:,.2f}"


def _programs(programs: list[dict[str, Any]]) -> str:
    rows = [
        (
            program["name"],
            f"{program['flops'] / 1e9:,.1f} G",
            f"{program['bytes_moved'] / 1e6:,.0f} MB",
            duration(program["computing_seconds"]),
            duration(program["sending_seconds"]),
            f"{program['compile_seconds']:.1f} s",
        )
        for program in programs
    ]
    return table(("program", "flops", "memory traffic", "computing", "sending", "compiled in"), rows)


def _messages(programs: list[dict[str, Any]]) -> str:
    rows = [
        (
            program["name"],
            sent["kind"],
            str(sent["chips"]) + (", between hosts" if sent["between_hosts"] else ""),
            f"{sent['count']:,.0f}",
            f"{sent['bytes'] / 1e6:,.2f} MB",
            duration(sent["seconds"]),
        )
        for program in programs
        for sent in program["collectives"]
    ]
    return table(("program", "message", "chips", "times", "bytes", "time"), rows) if rows else "No chip sends anything."


def _evaluation(plan: dict[str, Any]) -> str:
    found = plan["evaluation"]
    rows = [
        (
            program["name"],
            f"{program['runs']:,.0f}",
            f"{program['flops'] / 1e9:,.1f} G",
            size(sum(program["memory"].values())),
            duration(program["computing_seconds"] + program["sending_seconds"]),
        )
        for program in found["programs"]
    ]
    told = table(("program", "runs", "flops", "memory", "time of a run"), rows)
    if found["refused"]:
        return f"{told}\n\n**Does not fit**: {found['refused']}"
    needs = f"A chip needs {size(found['total_bytes'])}."
    if found["seconds"]:
        needs += (
            f" {plan['sizes']['users']:,} users take {duration(found['seconds'])} "
            f"({found['users_per_second']:,.0f} a second)."
        )
    return f"{told}\n\n{needs}"


def _extraction(found: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{part['batch']:,.0f}",
            f"{part['flops'] / part['batch'] / 1e9:,.1f} G",
            size(sum(part["memory"].values())),
            f"{part['items_per_second_and_chip']:,.0f}" if part["items_per_second_and_chip"] else "",
            f"{part['chip_hours']:,.1f}" if part["chip_hours"] else "",
            *([f"{part['price']:,.2f}"] if part["price"] is not None else []),
        )
        for name, part in found.items()
    ]
    head = ["modality", "batch", "flops an item", "memory", "items a second and chip", "hours of one chip"]
    return table([*head, *["price"] * (len(rows[0]) - len(head))], rows)


def _scaling(plan: dict[str, Any]) -> str:
    compared, rows = plan["compared"], []
    left_out = "\n\n".join(f"Not compared: {why}" for why in dict.fromkeys(plan["not_compared"].values()))
    if not compared:
        return left_out
    for key, label in (("strong", "strong scaling: the same batch"), ("weak", "weak scaling: the same users a chip")):
        if key not in compared:
            continue
        part = compared[key]
        efficiency = part["efficiency"]
        rows.append(
            (
                label,
                f"{part['batch']:,} and {plan['sizes']['batch']:,}",
                f"{part['users_a_chip']:,.0f} and {plan['sizes']['batch'] / plan['chips']:,.0f}",
                duration(part["seconds"]["roofline"]),
                *(f"{efficiency[a]:.0%}" if efficiency[a] else "" for a in ACCOUNTS),
            )
        )
    head = (
        f"from {compared['topology']} to {plan['topology']}",
        "users a batch",
        "users a chip",
        "its step",
        *(f"efficiency, {account}" for account in ACCOUNTS),
    )
    return "\n\n".join(part for part in (table(head, rows), left_out) if part)


def _advice(found: list[dict[str, Any]]) -> str:
    """What was tried, each with all that stands above it."""
    rows = [
        (
            f"`{tried['flags']}`",
            tried["why"],
            size(tried["total_bytes"]),
            "fits" if tried["fits"] else "does not fit",
        )
        for tried in found
    ]
    told = "Each line was planned with those above it."
    if not found or not found[-1]["fits"]:
        told += " None of it is enough: take fewer tokens, frames or layers, or chips with more memory."
    return table(("add", "which", "a chip then needs", ""), rows) + f"\n\n{told}"


def weaknesses(plan: dict[str, Any]) -> str:
    """What a reader must not take from a plan."""
    points = [
        "Rates are peaks: no program reaches them, and small or oddly shaped products stay far below. Take times as "
        "bounds, and their ratios as better than themselves.",
        "Gathers, sorts and scatters are counted by their bytes; they are slower than that.",
        "A message takes its bytes at the links' rate and a microsecond a hop (ten on GPUs), which nobody measured; "
        "`overlapped` and `roofline` bound what hiding messages behind computing could bring.",
        "The host is left out: reading, decoding and sending of batches, checkpoints, and the start of a program.",
        "A batch is taken to be as full as `plan` says: real ones vary.",
    ]
    if plan["compared"] and plan["negatives"] == "global":
        points.append(
            "With global negatives each example is scored against the items of the whole batch: with the same batch a "
            "chip, more chips have more work an example, which is no fault of theirs."
        )
    loops = sorted({loop for program in plan["training"]["programs"] for loop in program["uncounted_loops"]})
    if loops:
        points.append(f"Loops whose length the program does not tell count once: {', '.join(loops)}.")
    if plan["chip"]["platform"] == "cuda":
        points.append("XLA's GPU compiler tells no costs of its own; without a GPU it chooses kernels untuned.")
    return "\n".join(f"- {point}" for point in points)


def size(count: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float | None) -> str:
    """A time for people."""
    if not seconds:
        return ""
    if seconds >= 120:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
