"""A service that lives through 200 windows: memory, disk, capacity and time of a window must not grow.

    python bench/stream_long.py [--windows=200] [--workdir=DIR] [--system=xsmoe]

Each window has 60 users and 120 items; a tenth of the items and a third of the users are new in it and as many do not
come again, so that 200 windows bring some 2,500 items and 4,000 users. Their hidden states are random numbers, written
to a real store; everything else is the service as `--mode=stream --watch` runs it: files, journal, tests, promotion by
bootstrap, pruning, expansion (with two slots for experts), versions, drift, cleaning. It forgets what did not come for
six windows. Printed every 20 windows: seconds a window, resident memory, disk below the workdir, rows of the item
table, items known, experts, programs compiled; and at the end whether they stayed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags

WIDTH, USERS, ITEMS, VISITS = 16, 60, 120, 8
NEW_ITEMS, NEW_USERS = 12, 20
FLAGS = flags.FlagValues()
flags.DEFINE_integer("windows", 200, "How many windows.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Takes the run. Default: a temporary folder.", flag_values=FLAGS)
flags.DEFINE_string("system", "xsmoe", "The system.", flag_values=FLAGS)


def settings(system: str):
    """A config whose model trains in a moment."""
    from mmrec_jax.config import base, modality, resolve

    config = base("stream_long")
    config.modalities.title = modality(kind="text", backbone="none", template="{title}", layers=(0, 1, 2))
    config.modalities.poster = modality(kind="image", backbone="none", column="poster", layers=(0, 1, 2))
    config.update_from_flattened_dict(
        {
            "model.system": system,
            "model.width": 16,
            "model.length": 8,
            "model.bottleneck": 4,
            "model.window": "chunks",
            "user.blocks": 1,
            "training.epochs": 2,
            "training.batch_size": 32,
            "training.patience": 0,
            "training.progress": False,
            "evaluation.ks": (10, 20),
            "evaluation.bootstrap": 200,
            "stream.user_core": 0,
            "stream.validation": "user",
            "stream.valid_candidates": "seen",
            "stream.forgetting": 2,
            "stream.item_capacity": 512,
            "service.poll_seconds": 0.01,
            "service.settle_seconds": 0,
            "service.idle_seconds": 1e-6,
            "service.on_bad_window": "skip",
            "service.forget_after": 6,
            "service.keep_versions": 3,
        }
    )
    if system == "xsmoe":
        config.model.capacity = 3
        config.fusion.kind = "add"
    return resolve(config)


def write_window(folder: Path, number: int) -> None:
    """A window in which users walk along the items of the time."""
    rng = np.random.default_rng(number)
    users = np.concatenate([np.arange(USERS - NEW_USERS) + 7 * number, 10**6 + number * 100 + np.arange(NEW_USERS)])
    first = rng.integers(0, ITEMS, len(users))
    items = NEW_ITEMS * number + (first[:, None] + np.cumsum(rng.integers(1, 3, (len(users), VISITS)), axis=1)) % ITEMS
    frame = pl.DataFrame(
        {
            "user": np.repeat([f"u{user}" for user in users], VISITS),
            "item": [f"i{item}" for item in items.ravel()],
            "timestamp": number * 10_000 + np.argsort(np.argsort(rng.random(items.size))),
        }
    ).with_columns(title=pl.col("item"), poster=pl.col("item"))
    unfinished = folder / f".{number:04d}.csv"
    frame.write_csv(unfinished)
    unfinished.rename(folder / f"{number:04d}.csv")


def intake_of(config, store: str):
    """An intake that writes random states in place of running a backbone."""
    from mmrec_jax.store.store import ABSENT, PRESENT, HiddenStateStore, ModalityInfo
    from mmrec_jax.streaming.intake import Intake

    class Random(Intake):
        def _encoded(self, frame, media_root):
            ids = frame["item"].to_list()
            made = HiddenStateStore.create(self.store, ids)
            rows, numbers = made.rows(ids), np.array([int(item[1:]) for item in ids])
            for place, (name, part) in enumerate(self.modalities.items()):
                info = ModalityInfo(WIDTH, part.layers, part.pooling, "float32", {"depth": 2, "weights_sha256": "none"})
                made.add_modality(name, info)
                states = np.stack([np.random.default_rng([place, n]).normal(size=(3, WIDTH)) for n in numbers])
                status = np.where((numbers % 9 == 0) & (place > 0), ABSENT, PRESENT).astype(np.uint8)
                made.write(name, rows, states, status)
            return np.ones(len(ids), bool)

    return Random(config.data, config.cached, config.extraction, store, skip=True)


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main(argv: list[str]) -> None:
    """Runs the service and prints."""
    FLAGS(argv)
    from mmrec_jax import experiment
    from mmrec_jax.modes.run import Run, terminal
    from mmrec_jax.modes.stream import stream_description
    from mmrec_jax.modes.versions import publish
    from mmrec_jax.modes.workdir import keep_config
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.streaming import stores
    from mmrec_jax.streaming.learner import Learner
    from mmrec_jax.streaming.service import Service

    workdir = Path(FLAGS.workdir or tempfile.mkdtemp())
    shutil.rmtree(workdir, ignore_errors=True)
    folder = workdir.parent / f"{workdir.name}_arrivals"
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(FLAGS.system)
    keep_config(config, workdir)
    run, store = Run(config, workdir, terminal()), str(stores.begin(workdir))
    wanted = {name: part.layers for name, part in config.cached.items()}

    def learner(fingerprint: str, capacity: int) -> Learner:
        made = HiddenStateStore.open(store)
        description = stream_description(config, experiment.description(config, fingerprint, made))
        return Learner(
            config, workdir, lambda ids: HiddenStateStore.open(store).table(wanted, ids), capacity, description
        )

    marks: list[dict] = []
    started = [time.perf_counter()]

    def note(reports) -> None:
        for path in folder.glob("*.csv"):
            path.unlink()
        number = len(reports)
        if number < FLAGS.windows:
            write_window(folder, number + 1)
        seconds, started[0] = time.perf_counter() - started[0], time.perf_counter()
        learned = service.living.learner
        marks.append(
            {
                "window": number,
                "seconds": seconds,
                "memory": resident_bytes() / 2**20,
                "disk": disk_bytes(workdir) / 2**20,
                "store": disk_bytes(workdir / "stores") / 2**20,
                "rows": learned.capacity,
                "items": learned.memory.num_items,
                "users": learned.memory.num_users,
                "experts": sum(map(len, reports[-1]["experts"].values())),
                "compiled": sum(report.get("recompilations", 0) for report in reports[-20:]),
                "versions": len(service.versions.numbers()),
            }
        )
        if number in (1, 2, 10) or number % 20 == 0:
            last = marks[-20:]
            shown = {**marks[-1], "seconds": float(np.median([mark["seconds"] for mark in last]))}
            print(
                "  ".join(
                    f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in shown.items()
                ),
                flush=True,
            )

    def put_in_service(version, params, reason, documents, after):
        return publish(config, workdir, version, params, reason, documents, after)

    service = Service(
        config, workdir, folder, intake_of(config, store), learner, put_in_service, note, lambda line: None
    )
    write_window(folder, 1)
    begin = time.perf_counter()
    reports = service.run()
    print(f"{len(reports)} windows in {time.perf_counter() - begin:.0f} s; {run.workdir}")
    half = len(marks) // 2
    early, late = marks[half // 2 : half], marks[-(half - half // 2) :]
    print(f"medians of windows {half // 2 + 1} to {half}, and of the last {len(late)}:")
    for key in ("seconds", "memory", "disk", "store"):
        was, now = (float(np.median([mark[key] for mark in part])) for part in (early, late))
        print(f"{key}: {was:.2f}, {now:.2f} ({now / was:.2f} times)")


if __name__ == "__main__":
    main(sys.argv)
