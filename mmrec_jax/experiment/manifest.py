"""What a checkpoint says that it is of."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmrec_jax.config import SECTIONS, RunConfig, to_json, unread

if TYPE_CHECKING:
    from mmrec_jax.live import LiveBackbones
    from mmrec_jax.store.store import HiddenStateStore


def description(
    config: RunConfig, data: str, store: HiddenStateStore | None, live: LiveBackbones | None = None
) -> dict[str, Any]:
    """What a checkpoint is of, kept in its manifest; all but `info` must agree when it is used again.

    Args:
        config: of the run.
        data: fingerprint of what it is trained on.
        store: of the hidden states.
        live: backbones that are run in the step.
    """
    from mmrec_jax.adapters.config import HARMLESS

    modalities: dict[str, Any] = {}
    for name, embedded in live.backbones.items() if live else ():
        modalities[name] = {
            "width": embedded.shape[0],
            "layers": list(embedded.head.layers),
            "pooling": embedded.head.pooling,
            "weights_sha256": embedded.backbone.weights_sha256,
            "method": {key: value for key, value in asdict(embedded.method).items() if key not in HARMLESS},
        }
    if store is not None:
        for name, part in config.cached.items():
            info = store.modalities[name]
            modalities[name] = {
                "width": info.width,
                "layers": list(part.layers),
                "pooling": info.pooling,
                "weights_sha256": info.fingerprint.get("weights_sha256", ""),
            }
    as_json = to_json(config)
    parts = ("model", "fusion", "user", "scoring", "objective")
    return {
        "system": config.model.system,
        "modalities": modalities,
        "data": data,
        **{part: as_json[part] for part in parts},
        "info": {
            "config": as_json,
            "defaults": {part: asdict(SECTIONS[part]()) for part in parts},
            "unread": unread(as_json),
        },
    }
