"""Makes multiway/beit3.safetensors beside it from torchscale's BEiT3; run it to renew the file.

    pip install -e ".[parity]" && pip install --no-deps torchscale fairscale
    python -m tests.backbones.golden.make_golden_beit3

It holds `weights/...` (a checkpoint with the official names), inputs, `PASS/LAYER` (the last one after the final
normalisation) for the passes image, text and joint, and the unit vectors of retrieval.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.backbones.torchscale_beit3 import TINY, checkpoint, embedding, make, outputs

if __name__ == "__main__":
    model = make(TINY)
    saved = checkpoint(model)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 28, 28, 3)).astype(np.float32)
    mask = np.arange(9) < np.array([9, 5, 1])[:, None]
    ids = np.where(mask, rng.integers(2, 60, (3, 9)), 1).astype(np.int32)
    passes = {
        "image": outputs(model, pixels),
        "text": outputs(model, None, ids, mask),
        "joint": outputs(model, pixels, ids, mask),
    }
    tensors = {f"weights/{name}": tensor.numpy() for name, tensor in saved.items()}
    tensors |= {"inputs/pixels": pixels, "inputs/ids": ids, "inputs/mask": mask}
    tensors |= {f"{name}/{layer}": state for name, states in passes.items() for layer, state in enumerate(states)}
    tensors["image/embedding"] = embedding(passes["image"][-1], saved["vision_head.weight"])
    tensors["text/embedding"] = embedding(passes["text"][-1], saved["language_head.weight"])
    save_file(
        {name: np.array(tensor, order="C") for name, tensor in tensors.items()},
        Path(__file__).resolve().parent / "multiway" / "beit3.safetensors",
        {"config": json.dumps(TINY)},
    )
