"""Where a run's raw and prepared data are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmrec_jax.config import RunConfig
from mmrec_jax.errors import UserError

if TYPE_CHECKING:
    from mmrec_jax.data.prepared import PreparedData


def source_directory(config: RunConfig) -> Path:
    """Where the raw data lies; samples come with the package."""
    from mmrec_jax.data.layouts import locate

    return locate(config.data).directory


def has_source(config: RunConfig) -> bool:
    """Whether the raw data is there."""
    from mmrec_jax.data.layouts import locate

    try:
        locate(config.data)
    except UserError:
        return False
    return True


def source_fingerprint(config: RunConfig) -> str | None:
    """Fingerprint of the data that the source gives as it is now; None where the raw data is not there."""
    from mmrec_jax.data import fingerprint
    from mmrec_jax.data.layouts import locate

    try:
        files = locate(config.data).files
    except UserError:
        return None
    return fingerprint.digest(fingerprint.contents(config.data, files))


def prepared_directory(config: RunConfig, workdir: Path) -> Path:
    """Where prepared data is kept, in a folder for each fingerprint: as configured, else in the workdir."""
    return Path(config.prepared) if config.prepared else workdir / "data"


def prepare_data(config: RunConfig, workdir: Path) -> PreparedData:
    """The checked, filtered and split data, made on the first call and opened later."""
    from mmrec_jax.data import open_prepared, prepare
    from mmrec_jax.data.layouts import STREAMED

    if config.data.source == STREAMED:
        return open_prepared(prepared_directory(config, workdir).resolve())  # a link that is moved now and then
    return prepare(config.data, prepared_directory(config, workdir))
