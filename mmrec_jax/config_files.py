"""Config files with values from a command line: how they are loaded, and what a person is told where that fails."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mmrec_jax.errors import ConfigError, UserError


def define_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds the flag `--config`, and those of the keys of the file that `argv` names."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/crossan.py.", flag_values=values, sys_argv=list(argv)
    )


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Reads a command line, its first word being the program, into flags.

    Raises:
        ConfigError: an unknown flag, config file, key or argument, or a value of the wrong type.
    """
    path = config_path(argv)
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


def load_config(path: str, settings: Sequence[str] = ()) -> ConfigDict:
    """The config of `FILE[:ARGUMENT]`, with settings as on a command line.

    Args:
        path: of the file.
        settings: `KEY=VALUE` texts, such as "training.epochs=5".

    Raises:
        ConfigError: as `parse_flags`.
    """
    for setting in settings:
        if not re.match(r"[\w.\[\]]+=", setting):
            raise ConfigError(f"{setting!r} is no setting: write KEY=VALUE, such as training.epochs=5.")
    argv = ["", f"--config={path}", *(f"--config.{setting}" for setting in settings)]
    values = flags.FlagValues()
    define_config(values, argv)
    parse_flags(values, argv)
    return values.config


def config_path(argv: Sequence[str]) -> str:
    """The config file that a command line names, without the file's argument."""
    named = re.search(r"(?:^|\n)--?config[=\n]([^:\n]*)", "\n".join(argv))
    return named[1] if named else ""


def _flag_error(error: Exception, argv: Sequence[str]) -> str:
    """What a person needs to know of an error of the flags, or of the config file that they name."""
    text, path = str(error).strip(), config_path(argv)
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
