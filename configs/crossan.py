"""CROSSAN on the embedded MovieLens sample: overviews (MiniLM) and posters (DINOv2-small), cached states in int8.

    python -m mmrec_jax.main --config=configs/crossan.py

3 to 4 minutes on two CPU cores, the ID-only SASRec it is compared with included. Seen on the test split: HR@10
of 11.3% to 13.1%, NDCG@10 of 5.5% to 6.6% (five seeds).

Arguments: `configs/crossan.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, modality, unknown_argument


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("crossan")
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
    config.model.length = 50
    config.model.window = "chunks"
    config.model.standardise = True
    config.fusion.expert = "identity"
    config.training.batch_size = 16
    config.scoring.similarity = "cosine"
    config.training.epochs = 25
    config.training.schedule = "cosine"
    config.training.final_fraction = 0.05
    config.training.patience = 0
    config.baselines = ("popularity", "sasrec")
    if argument == "smoke":
        config.name = "crossan_smoke"
        config.training.epochs = 2
        config.model.bottleneck = 8
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/crossan.py", argument, "smoke")
    return config
