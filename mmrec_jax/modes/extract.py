"""Fills the hidden-state store of a run."""

from __future__ import annotations

from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import Run


def extract(run: Run) -> None:
    """Extracts what the store lacks, or holds of other content, and says what it holds."""
    from mmrec_jax import experiment
    from mmrec_jax.modes.inspect import describe_store

    if not run.config.cached:
        raise ConfigError(
            f"{run.config.name} has no modality whose hidden states are stored (those of `methods` are computed in the "
            "step): there is nothing to extract."
        )
    store = experiment.ensure_states(run.config, run.data.catalogue, run.workdir, run.shards)
    run.console.print(describe_store(store))
