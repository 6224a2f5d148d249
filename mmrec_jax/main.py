"""The command line: `python -m mmrec_jax.main --config=configs/crossan.py [--mode=...] [--workdir=...]`.

Modes:
  train      extracts the hidden states that are missing, trains, evaluates the best checkpoint beside the baselines,
             shows recommendations; the same command again goes on where it was stopped
  extract    fills the hidden-state store only
  evaluate   evaluates the best checkpoints of --workdir on the test split
  recommend  writes the top k for --users or --histories to --out
  inspect    says what a data directory, prepared data, store, checkpoint or workdir at --path holds
  compare    trains several methods with several seeds, each in a process of its own, and writes one table of accuracy
             and cost: --config=configs/compare.py, or --configs=A.py,B.py --seeds=0,1,2
  plan       tells without devices or data what training, evaluation and extraction need of --topology (v5e:16x16,
             h100:1x8x8, cpu:8), whether it fits, and how fast it will be
  stream     cuts the log into windows, trains on each and tests on the next: --config=configs/xsmoe.py; the same
             command again goes on where it was stopped; with --watch, the windows are files that arrive in a directory,
             and the best model so far is in service; --rollback puts an earlier one there
  ab         compares the finished runs in --a and --b user by user

Several processes are one run where --coordinator, --processes and --process say so, or the launcher does in their
environment (TPU pods, SLURM, Open MPI, Kubernetes): docs/launching.md. Exit codes: 0 done, 2 a mistake in the config,
data or flags or a full disk, 69 another process was lost, 75 ended by SIGTERM with everything saved, 130 by Ctrl-C;
after 69, 75 and 130 the same command goes on.

Any value of the config can be set: --config.training.epochs=5. A finished --workdir knows its config: the modes
other than train and compare need no --config then.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from absl import flags
from absl import logging as absl_logging

from mmrec_jax.config_files import config_path, define_config, parse_flags
from mmrec_jax.errors import ConfigError, HostError, Preempted, UserError
from mmrec_jax.files import check_local

MODES = ("train", "extract", "evaluate", "recommend", "inspect", "compare", "plan", "ab", "stream")
ONLY = {
    "compare": ("configs", "seeds", "baseline", "jobs"),
    "ab": ("a", "b"),
    "plan": ("topology",),
    "stream": ("watch", "rollback"),
}
"""Flags that would be passed over in silence by other modes, such as seeds that are not trained with."""
LOCAL = ("workdir", "watch", "a", "b", "histories", "out")
"""Flags that name files of this machine."""
MISTAKE, INTERRUPTED = 2, 130  # exit codes
LOST, PREEMPTED = 69, 75  # EX_UNAVAILABLE and EX_TEMPFAIL of sysexits.h
DISTRIBUTED = ("train", "extract", "evaluate")
"""Modes that several processes work on together."""
_APART = threading.Event()  # set while JAX's own way out would wait for processes that may be gone


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line, not parsed yet."""
    values = flags.FlagValues()

    def own(define, *args, **kwargs):
        define(*args, flag_values=values, **kwargs)

    define_config(values, argv)
    own(flags.DEFINE_enum, "mode", None, MODES, "What to do. Default: what the config is for, such as train.")
    own(
        flags.DEFINE_string,
        "workdir",
        None,
        "Takes everything the run makes. Default: runs/NAME, NAME being config.name; of mode ab: runs/ab.",
    )
    own(flags.DEFINE_list, "users", [], "recommend: ids of users in the data.")
    own(flags.DEFINE_string, "histories", None, "recommend: a .json, .jsonl or .parquet file of lists of item ids.")
    own(flags.DEFINE_integer, "k", 10, "recommend: items a list.", lower_bound=1)
    own(flags.DEFINE_bool, "exclude_seen", True, "recommend: leave out what the user already had.")
    own(flags.DEFINE_string, "out", None, "recommend: a .parquet, .json or .jsonl file. Default: in the workdir.")
    own(flags.DEFINE_string, "path", None, "inspect: what to look at. Default: the workdir.")
    own(flags.DEFINE_list, "configs", [], "compare: config files, FILE or FILE:ARGUMENT, in place of --config.")
    own(flags.DEFINE_list, "seeds", [], "compare: seeds. Default: those of the comparison's config, else 0.")
    own(flags.DEFINE_string, "baseline", None, "compare: method that the others are compared with. Default: the first.")
    own(flags.DEFINE_integer, "jobs", None, "compare: runs at a time. Default: one, which times them rightly.")
    own(flags.DEFINE_string, "watch", None, "stream: directory in which windows arrive.")
    own(flags.DEFINE_string, "rollback", None, "stream: number of the version to put in service, or `previous`.")
    own(flags.DEFINE_string, "topology", None, "plan: chips to plan for, CHIP:SHAPE, such as v5e:16x16.")
    own(flags.DEFINE_string, "a", None, "ab: workdir of a finished run.")
    own(flags.DEFINE_string, "b", None, "ab: workdir of the run that it is compared with.")
    own(flags.DEFINE_string, "coordinator", None, "HOST:PORT of process 0; heartbeats take the port after it.")
    own(flags.DEFINE_integer, "processes", None, "How many processes make this run; 1 asks no launcher.")
    own(flags.DEFINE_integer, "process", None, "Which of them this one is, from 0.")
    return values


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line, its first word being the program.

    Raises:
        ConfigError: an unknown flag, config file, key or argument, or a value of the wrong type.
    """
    values = define_flags(argv)
    parse_flags(values, argv)
    return values


def command(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code, which is 0 where nothing was said on standard error."""
    flags.FLAGS.mark_as_parsed()  # absl's own, which its logging waits for
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
            print(_help())
            return 0
        _run(parse(argv), argv)
    except HostError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return LOST
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it was.", file=sys.stderr)
        return INTERRUPTED
    except Preempted as stopped:
        print(f"Told to end (SIGTERM): ended {stopped}. The same command goes on from there.", file=sys.stderr)
        return PREEMPTED
    except Exception as error:
        from mmrec_jax.training.checkpoints import out_of_space

        if not out_of_space(error):
            raise
        print(f"The disk is full: {error}. Free some space and start the same command again.", file=sys.stderr)
        return MISTAKE
    return 0


def _run(values: flags.FlagValues, argv: Sequence[str]) -> None:
    from mmrec_jax import modes
    from mmrec_jax.parallel.config import ParallelConfig
    from mmrec_jax.parallel.preemption import REQUEST
    from mmrec_jax.parallel.start import check_mode, find_group, joined

    chosen = values.mode or (values.config or {}).get("mode", "train")
    for mode, names in ONLY.items():
        if given := [name for name in names if mode != chosen and values[name].present]:
            raise ConfigError(f"--{given[0]} is read by --mode={mode} only, and the mode is {chosen}.")
    for name in LOCAL:
        check_local(f"--{name}", values[name].value)
    group = find_group(os.environ, values.coordinator, values.processes, values.process)
    check_mode(group, chosen, DISTRIBUTED)
    if values.processes == 1:
        os.environ["JAX_NUM_PROCESSES"] = "1"  # for the processes of a comparison
    patience = values.config.parallel if "parallel" in (values.config or {}) else ParallelConfig
    if chosen == "compare":
        modes.compare(
            values.config,
            config_path(argv),
            workdir=values.workdir,
            configs=values.configs,
            seeds=values.seeds,
            baseline=values.baseline,
            jobs=values.jobs,
        )
        return
    if chosen == "ab":
        if values["config"].present:
            raise ConfigError("--config is not read by --mode=ab: both runs are evaluated as the first one's own says.")
        modes.ab(values.a, values.b, values.workdir)
        return
    if chosen == "inspect":
        modes.inspect(values.path or values.workdir, values.config)
        return
    if chosen == "plan":
        modes.plan(values.config, values.topology, values.workdir, " ".join(["python -m mmrec_jax.main", *argv[1:]]))
        return
    if values.rollback is not None:
        if values.watch:
            raise ConfigError("--rollback is a command of its own: call it without --watch.")
        modes.roll_back(values.workdir, values.rollback)
        return
    with REQUEST.heard(), joined(group, patience.timeout_seconds, argv, _APART, patience.stuck_seconds):
        _run_mode(values, chosen)


def _run_mode(values: flags.FlagValues, chosen: str) -> None:
    """The modes that work on one run."""
    from mmrec_jax import modes

    run = modes.open_run(values.config, values.workdir, trains=chosen in ("train", "extract", "stream"))
    if values.watch:
        modes.watch(run, values.watch)
    elif chosen == "recommend":
        modes.recommend(
            run,
            users=values.users,
            histories=values.histories,
            k=values.k,
            exclude_seen=values.exclude_seen,
            out=values.out,
        )
    else:
        getattr(modes, chosen)(run)


def _help() -> str:
    known = define_flags(["mmrec_jax"])
    lines = [
        f"  --{'[no]' if flag.boolean else ''}{name}: {flag.help}"
        + (f" Default: {flag.default}." if flag.default and not flag.boolean else "")
        for name, flag in ((name, known[name]) for name in sorted(known))
    ]
    return f"{__doc__}\nFlags:\n" + "\n".join(lines)


def run() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # titles may hold what the terminal cannot show
    try:
        code = command(sys.argv)
    except Exception:
        if not _APART.is_set():
            raise
        traceback.print_exc()
        code = 1
    if _APART.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
