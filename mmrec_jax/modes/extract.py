"""Fills the hidden-state store of a run."""

from __future__ import annotations

from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import Run


def extract(run: Run) -> None:
    """Extracts what the store lacks and says what it holds."""
    from mmrec_jax.modes.inspect import describe_store

    if run.store is None:
        raise ConfigError(
            f"{run.config.name} has no modality whose hidden states are stored (those of `methods` are computed in the "
            "step): there is nothing to extract."
        )
    run.console.print(describe_store(run.store))
