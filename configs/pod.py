"""CROSSAN over a catalogue of ten million items, for a pod: four base-size backbones' cached states in int8.

    python -m mmrec_jax.main --config=configs/pod.py --mode=plan --topology=v5e:16x16

A batch is 8,192 users. What it needs, and how fast it will be, on TPU slices and GPU clusters: docs/scaling.md.

Arguments: `configs/pod.py:lora` runs the four backbones in the step instead, with LoRA inside; no states are cached.
"""

from mmrec_jax.config import base, method, modality, unknown_argument

LAYERS = (0, 4, 8, 12)
LOTS = {"title": (0, 0), "image": (32, 6), "video": (4, 1), "audio": (16, 2)}
"""Items of a chip at once, and attention heads at once, where backbones are run in the step: scores of 30 to 40 MB."""


def get_config(argument: str = ""):
    """The config; `argument` is "" or "lora"."""
    config = base("pod")
    config.data.source = "runs/pod/catalogue"
    config.modalities.title = modality(
        kind="text", backbone="google-bert/bert-base-uncased", template="{title}", layers=LAYERS, max_tokens=64
    )
    config.modalities.image = modality(
        kind="image", backbone="google/vit-base-patch16-224", column="image", layers=LAYERS, pooling="cls"
    )
    config.modalities.video = modality(kind="video", backbone="MCG-NJU/videomae-base", column="video", layers=LAYERS)
    config.modalities.audio = modality(
        kind="audio", backbone="facebook/wav2vec2-base", column="audio", layers=LAYERS, max_seconds=10.0
    )
    config.extraction.dtype = "int8"
    config.model.length = 10
    config.training.batch_size = 8192
    config.parallel.encode = "own"
    # 16 parts of the store, whatever the slice: on more chips several have the same rows, and share their items.
    config.parallel.data, config.parallel.model = 16, -1
    config.parallel.rules = (("batch", "data+model"), ("rows", "data"))
    config.parallel.messages = "bfloat16"
    config.plan.catalogue = 10_000_000
    config.plan.users = 20_000_000
    config.plan.tokens = 24
    if argument == "lora":
        config.name = "pod_lora"
        # No states lie anywhere, so that nothing is gained where each chip encodes its own.
        config.parallel.encode, config.parallel.rules = "equal", ()
        config.parallel.data, config.parallel.model = -1, 1
        for name, (chunk, heads) in LOTS.items():
            config.modalities[name].compute_dtype = "bfloat16"
            config.methods[name] = method(kind="lora", remat=True, scan=True, chunk=chunk, heads=heads)
    elif argument:
        raise unknown_argument("configs/pod.py", argument, "lora")
    return config
