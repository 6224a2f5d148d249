"""How stored hidden states were made, and in what that differs from a config."""

from __future__ import annotations

from pathlib import Path

from mmrec_jax.backbones.audio_features import longest_of
from mmrec_jax.backbones.backbone import FRAMES, Backbone, identify
from mmrec_jax.backbones.config import ModalityConfig, resolve_layers
from mmrec_jax.backbones.registry import find_family
from mmrec_jax.errors import BackboneError, ConfigError

EXTRACTION_VERSION = 1  # grows when the same media and weights would give other states


def make_fingerprint(config: ModalityConfig, backbone: Backbone) -> dict:
    """Everything that stored states depend on but the media themselves, as JSON values."""
    frame_pooling = {"frame_pooling": config.frame_pooling} if config.kind == "video" else {}
    # Named where it is not what it was before it could be chosen.
    compute_dtype = {"compute_dtype": config.compute_dtype} if config.compute_dtype != "float32" else {}
    return {
        "kind": config.kind,
        "backbone": config.backbone,
        "revision": config.revision,
        "model_type": backbone.family.model_type,
        "weights_sha256": backbone.weights_sha256,
        "width": backbone.sizes.width,
        "depth": backbone.sizes.depth,
        "preprocessing": backbone.preprocess.fingerprint,
        "template": config.source,
        "pooling": config.pooling,
        "extraction_version": EXTRACTION_VERSION,
        **frame_pooling,
        **compute_dtype,
    }


def differences(config: ModalityConfig, stored: dict, stored_layers: tuple[int, ...]) -> list[str]:
    """What a config asks for and a stored modality does not have, one sentence each.

    Equal backbone names of the hub are believed; local directories and packages, and any backbone of another
    name, are compared by their weights' digest and preprocessing where their files are on this machine.
    """
    asked = {
        "kind": config.kind,
        "template": config.source,
        "pooling": config.pooling,
        "extraction_version": EXTRACTION_VERSION,
    }
    if config.kind == "video":
        asked["frame_pooling"] = config.frame_pooling
    asked["compute_dtype"] = config.compute_dtype
    kept = {"compute_dtype": "float32", **stored}
    found = [
        f"{key} is {kept.get(key)!r} in the store and {value!r} in the config"
        for key, value in asked.items()
        if kept.get(key) != value
    ]
    if config.kind == "text" and (tokens := stored["preprocessing"].get("max_tokens")) != config.max_tokens:
        found.append(f"max_tokens is {tokens} in the store and {config.max_tokens} in the config")
    if config.kind == stored["kind"] == "audio":
        made = stored["preprocessing"]
        cut, wanted_cut, rate = made["longest"], longest_of(made, config.max_seconds), made["rate"]
        if cut != wanted_cut:
            found.append(
                f"recordings are cut after {cut / rate:g} s in the store and would be after {wanted_cut / rate:g} s "
                f"with max_seconds={config.max_seconds:g}"
            )
    # A video encoder takes one number of frames only; an image encoder as many as are asked for.
    if config.kind == stored["kind"] == "video" and find_family(stored["model_type"], "store", "video").kind == "image":
        taken, frames = stored["preprocessing"]["frames"], config.frames or FRAMES
        if taken != frames:
            found.append(f"frames is {taken} in the store and {frames} in the config")
    try:
        wanted = resolve_layers(config.layers, stored["depth"], "layers")
        if lacking := [layer for layer in wanted if layer not in stored_layers]:
            found.append(f"layers {lacking} are not among the stored layers {list(stored_layers)}")
    except ConfigError as error:
        found.append(str(error))
    return found + _backbone_differences(config, stored)


def dtype_difference(asked: str, stored: str) -> list[str]:
    """What `extraction.dtype` asks for where a stored modality is of another type, and the remedy."""
    if asked == stored:
        return []
    return [
        f"dtype is {stored!r} in the store and {asked!r} in the config (extraction.dtype={stored!r} takes it as is)"
    ]


def _backbone_differences(config: ModalityConfig, stored: dict) -> list[str]:
    same_name = config.backbone == stored["backbone"]
    on_hub = not config.backbone.startswith("package:") and not Path(config.backbone).expanduser().is_dir()
    if same_name and on_hub:
        if config.revision and config.revision != stored["revision"]:
            return [f"revision is {stored['revision']!r} in the store and {config.revision!r} in the config"]
        return []
    try:
        here = identify(
            config.backbone, config.kind, config.max_tokens, config.revision, config.max_seconds, config.frames
        )
    except BackboneError as error:
        if same_name:
            return []
        return [
            f"backbone is {stored['backbone']!r} in the store and {config.backbone!r} in the config, whose "
            f"weights cannot be compared here ({error})"
        ]
    if here["weights_sha256"] != stored["weights_sha256"]:
        return [
            f"backbone is {stored['backbone']!r} with weights {stored['weights_sha256'][:12]} in the store and "
            f"{config.backbone!r} with weights {here['weights_sha256'][:12]} in the config"
        ]
    return [
        f"preprocessing has {key} {stored['preprocessing'].get(key)!r} in the store and {value!r} in {config.backbone}"
        for key, value in here["preprocessing"].items()
        if key not in ("max_tokens", "longest") and stored["preprocessing"].get(key) != value
    ]
