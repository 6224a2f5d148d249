"""IISAN (arXiv 2404.02059) on the embedded MovieLens sample: overviews (MiniLM) and posters (DINOv2-small).

    python -m mmrec_jax.main --config=configs/iisan.py

Two intra-modal towers and an inter-modal one on cached states. User encoder, objective and training are those of
`configs/crossan.py`. The paper's ablations: --config.model.towers=intra (or inter), --config.model.gate=add,
--config.model.remove_first, and any list of layers.

Some three minutes on two CPU cores. Seen on the test split (three seeds): HR@10 of 12.0%, NDCG@10 of 6.1%. The
papers read hidden states as they are: --config.model.standardise=False, with one seed 8.5% and 3.8%.

Arguments: `configs/iisan.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, modality, unknown_argument


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("iisan")
    config.data.source = "sample:movielens_small"
    config.modalities.overview = modality(
        kind="text",
        backbone="sentence-transformers/all-MiniLM-L6-v2",
        template="{title}. {genres}. {overview}",
        layers=(0, 2, 4, 6),
        pooling="mean",
    )
    config.modalities.poster = modality(
        kind="image",
        backbone="facebook/dinov2-small",
        path_template="posters/{item}.jpg",
        layers=(0, 4, 8, 12),
        pooling="cls",
    )
    config.model.system = "iisan"
    config.fusion.kind = "concat"
    config.model.length = 50
    config.model.window = "chunks"
    config.model.standardise = True
    config.training.batch_size = 16
    config.scoring.similarity = "cosine"
    config.training.epochs = 25
    config.training.schedule = "cosine"
    config.training.final_fraction = 0.05
    config.training.patience = 0
    config.baselines = ("popularity",)
    if argument == "smoke":
        config.name = "iisan_smoke"
        config.training.epochs = 2
        config.model.bottleneck = 8
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/iisan.py", argument, "smoke")
    return config
