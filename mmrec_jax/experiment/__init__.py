"""From a config to the parts of a run: prepared data, state table, task, training stream."""

from mmrec_jax.experiment.live import live_catalogue, load_live
from mmrec_jax.experiment.manifest import description
from mmrec_jax.experiment.sources import (
    has_source,
    prepare_data,
    prepared_directory,
    source_directory,
    source_fingerprint,
)
from mmrec_jax.experiment.states import check_store, ensure_states, load_table, open_store, present_rows, store_location
from mmrec_jax.experiment.stream import training_stream
from mmrec_jax.experiment.task import build_task, compute_dtype, frozen_inputs, id_baseline

__all__ = [
    "build_task",
    "check_store",
    "compute_dtype",
    "description",
    "ensure_states",
    "frozen_inputs",
    "has_source",
    "id_baseline",
    "live_catalogue",
    "load_live",
    "load_table",
    "open_store",
    "prepare_data",
    "prepared_directory",
    "present_rows",
    "source_directory",
    "source_fingerprint",
    "store_location",
    "training_stream",
]
