"""Systems: compositions named after papers, one on each page."""

from mmrec_jax.systems.registry import (
    IDS,
    STATES,
    SYSTEMS,
    CatalogueShape,
    StateShape,
    System,
    build,
    reads,
    system,
)

__all__ = ["IDS", "STATES", "SYSTEMS", "CatalogueShape", "StateShape", "System", "build", "reads", "system"]
