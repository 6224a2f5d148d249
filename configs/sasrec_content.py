"""SASRec on ids and content, on the embedded MovieLens sample: an item's vector is the sum of both.

    python -m mmrec_jax.main --config=configs/sasrec_content.py

Content is a linear map of each backbone's last state, as in `configs/frozen.py`; `model.add_ids` works with any other
system that reads content too, and --config.user.kind=gru makes it GRU4Rec on ids and content.

Some two minutes on two CPU cores. Seen on the test split (three seeds): HR@10 of 11.3%, NDCG@10 of 5.7%.

Arguments: `configs/sasrec_content.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, modality, unknown_argument


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("sasrec_content")
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
    config.model.system = "linear"
    config.model.add_ids = True
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
        config.name = "sasrec_content_smoke"
        config.training.epochs = 2
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/sasrec_content.py", argument, "smoke")
    return config
