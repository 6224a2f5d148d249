"""Pooled hidden states of whole catalogues: extraction, the store on disk, and the table in memory."""

from mmrec_jax.store.extract import ModalityReport, extract
from mmrec_jax.store.store import HiddenStateStore, ModalityInfo
from mmrec_jax.store.table import StateTable

__all__ = ["HiddenStateStore", "ModalityInfo", "ModalityReport", "StateTable", "extract"]
