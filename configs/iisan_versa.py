"""IISAN-Versa (arXiv 2411.02992) on the embedded MovieLens sample: two backbones of unequal depth.

    python -m mmrec_jax.main --config=configs/iisan_versa.py

As many states of the one as of the other, at equal distances (group layer-dropping). The sample's store has these; for
other encoders `mmrec_jax.backbones.config.evenly_spaced(depth, count)` makes the lists, (0, 5, 20, .., 80) of 80
blocks. Backbones may differ in width too, and lists in length. User encoder, objective and training are those of
`configs/crossan.py`.

Some three minutes on two CPU cores. Seen on the test split (three seeds): HR@10 of 11.8%, NDCG@10 of 5.6%.

Arguments: `configs/iisan_versa.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, modality, unknown_argument


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("iisan_versa")
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
    config.model.system = "iisan_versa"
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
        config.name = "iisan_versa_smoke"
        config.training.epochs = 2
        config.model.bottleneck = 8
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/iisan_versa.py", argument, "smoke")
    return config
