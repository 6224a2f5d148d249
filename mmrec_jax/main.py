"""The command line: `python -m mmrec_jax.main --config=configs/crossan.py [--mode=...] [--workdir=...]`.

Modes:
  train      extracts the hidden states that are missing, trains, evaluates the best checkpoint, shows recommendations
  extract    fills the hidden-state store only
  evaluate   evaluates the best checkpoint of --workdir on the test split
  recommend  writes the top k for --users or --histories to --out
  inspect    says what a data directory, prepared data, store, checkpoint or run at --path holds
"""

from __future__ import annotations

import sys

from absl import app, flags
from ml_collections import config_flags

MODES = ("train", "extract", "evaluate", "recommend", "inspect")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the run, e.g. configs/crossan.py.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Everything the run makes. Default: runs/<config's name>.")
_USERS = flags.DEFINE_list("users", [], "recommend: ids of users in the data.")
_HISTORIES = flags.DEFINE_string(
    "histories", None, "recommend: a .json, .jsonl or .parquet file of item id lists."
)
_K = flags.DEFINE_integer("k", 10, "recommend: items a user.", lower_bound=1)
_SEEN = flags.DEFINE_bool("exclude_seen", True, "recommend: leave out what the user already had.")
_OUT = flags.DEFINE_string(
    "out", None, "recommend: file to write, .parquet or .json. Default: in the workdir."
)
_PATH = flags.DEFINE_string("path", None, "inspect: what to look at.")


def main(argv: list[str]) -> None:
    """Hands over to the function of the mode; a user's mistake ends in its message, without a traceback."""
    from absl import logging

    from mmrec_jax.errors import UserError

    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: all arguments are flags.")
    try:
        _run()
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def _run() -> None:
    from mmrec_jax import modes

    if _MODE.value == "inspect":
        modes.inspect(_PATH.value)
        return
    run = modes.open_run(_CONFIG.value, _WORKDIR.value)
    if _MODE.value == "train":
        modes.train(run)
    elif _MODE.value == "extract":
        modes.extract(run)
    elif _MODE.value == "evaluate":
        modes.evaluate(run)
    else:
        modes.recommend(
            run,
            users=_USERS.value,
            histories=_HISTORIES.value,
            k=_K.value,
            exclude_seen=_SEEN.value,
            out=_OUT.value,
        )


def run() -> None:
    """Entry point."""
    app.run(main)


if __name__ == "__main__":
    run()
