"""The command line: `python -m mmrec_jax.main --config=configs/crossan.py [--mode=...] [--workdir=...]`.

Modes:
  train      extracts the hidden states that are missing, trains, evaluates the best checkpoint beside the baselines,
             shows recommendations; the same command again goes on where it was stopped
  extract    fills the hidden-state store only
  evaluate   evaluates the best checkpoints of --workdir on the test split
  recommend  writes the top k for --users or --histories to --out
  inspect    says what a data directory, prepared data, store, checkpoint or workdir at --path holds

Any value of the config can be set: --config.training.epochs=5. A finished --workdir knows its config: the modes
other than train need no --config then.
"""

from __future__ import annotations

import io
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from mmrec_jax.errors import ConfigError, UserError

MODES = ("train", "extract", "evaluate", "recommend", "inspect")
MISTAKE, INTERRUPTED = 2, 130  # exit codes


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line, not parsed yet."""
    values = flags.FlagValues()

    def own(define, *args, **kwargs):
        define(*args, flag_values=values, **kwargs)

    own(config_flags.DEFINE_config_file, "config", None, "Config file, e.g. configs/crossan.py.", sys_argv=list(argv))
    own(flags.DEFINE_enum, "mode", "train", MODES, "What to do.")
    own(
        flags.DEFINE_string,
        "workdir",
        None,
        "Takes everything the run makes. Default: runs/NAME, NAME being config.name.",
    )
    own(flags.DEFINE_list, "users", [], "recommend: ids of users in the data.")
    own(flags.DEFINE_string, "histories", None, "recommend: a .json, .jsonl or .parquet file of lists of item ids.")
    own(flags.DEFINE_integer, "k", 10, "recommend: items a list.", lower_bound=1)
    own(flags.DEFINE_bool, "exclude_seen", True, "recommend: leave out what the user already had.")
    own(flags.DEFINE_string, "out", None, "recommend: a .parquet, .json or .jsonl file. Default: in the workdir.")
    own(flags.DEFINE_string, "path", None, "inspect: what to look at. Default: the workdir.")
    return values


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line, its first word being the program.

    Raises:
        ConfigError: an unknown flag, config file, key or argument, or a value of the wrong type.
    """
    values, path = define_flags(argv), _config_path(argv)
    if path and not Path(path).is_file():
        raise ConfigError(f"--config={path}: there is no such file.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # how ml_collections loads files
            rest = values(list(argv))
        if values["config"].present and not isinstance(values.config, ConfigDict):
            raise ConfigError(f"--config={path}: get_config() must return a ConfigDict.")
    except UserError:
        raise
    except Exception as error:  # the config file is a program: it may raise anything
        raise ConfigError(_flag_error(error, argv)) from error
    if len(rest) > 1:
        raise ConfigError(f"Unexpected argument {rest[1]!r}: all arguments are flags, written --name=value.")
    return values


def command(argv: Sequence[str]) -> int:
    """Runs a command line; returns 0, 2 after a mistake of the user's (with its message), 130 after Ctrl-C."""
    flags.FLAGS.mark_as_parsed()  # absl's own, which its logging waits for
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
            print(_help())
            return 0
        _run(parse(argv))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it was.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _run(values: flags.FlagValues) -> None:
    from mmrec_jax import modes

    if values.mode == "inspect":
        modes.inspect(values.path or values.workdir, values.config)
        return
    run = modes.open_run(values.config, values.workdir, trains=values.mode in ("train", "extract"))
    if values.mode == "recommend":
        modes.recommend(
            run,
            users=values.users,
            histories=values.histories,
            k=values.k,
            exclude_seen=values.exclude_seen,
            out=values.out,
        )
    else:
        getattr(modes, values.mode)(run)


def _help() -> str:
    known = define_flags(["mmrec_jax"])
    lines = [
        f"  --{'[no]' if flag.boolean else ''}{name}: {flag.help}"
        + (f" Default: {flag.default}." if flag.default and not flag.boolean else "")
        for name, flag in ((name, known[name]) for name in sorted(known))
    ]
    return f"{__doc__}\nFlags:\n" + "\n".join(lines)


def _config_path(argv: Sequence[str]) -> str:
    """The config file that a command line names, without the file's argument."""
    named = re.search(r"(?:^|\n)--?config[=\n]([^:\n]*)", "\n".join(argv))
    return named[1] if named else ""


def _flag_error(error: Exception, argv: Sequence[str]) -> str:
    """What a person needs to know of an error of the flags, or of the config file that they name."""
    text, path = str(error).strip(), _config_path(argv)
    if isinstance(error, KeyError | AttributeError):  # ml_collections' texts are shown by Python as literals
        text = text.strip("\"'").replace("\\n", " ").replace("\\'", "'").replace("'\n", "' ")
    if "Error whilst parsing config file" in text:  # ml_collections puts the whole traceback into the message
        if "get_config() takes 0 positional" in text:
            return f"--config={path}: this config file takes no argument after a colon."
        lines = re.findall(rf'File ".*{re.escape(path)}", line (\d+)', text)
        where = f"{path} line {lines[-1]}" if lines else path
        return f"{where}: {text.splitlines()[-1]}"
    if isinstance(error, SyntaxError):
        return f"{path} line {error.lineno}: {error.msg}"
    if frames := [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path or "\0")
    ]:
        return f"{path} line {frames[-1].lineno}: {type(error).__name__}: {text}"
    if isinstance(error, KeyError | AttributeError):  # an override of a key that the config does not have
        key, _, hint = text.replace("'", "").partition(" ")
        flag = next((arg.split("=")[0] for arg in argv if key in arg.split("=")[0].split(".")[1:]), f"--config: {key}")
        return f"{flag}: the config has no key {key!r}. {hint}".strip()
    return text


def run() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # titles may hold what the terminal cannot show
    sys.exit(command(sys.argv))


if __name__ == "__main__":
    run()
