"""CROSSAN on MovieLens small from its own directory, with three modalities of a film: title, overview, poster.

    python -m mmrec_jax.main --config=configs/movielens.py --config.data.source=DIR

`DIR` holds `ratings_5core_multimodal.csv`, `items.csv` (with title, genres, overview) and `posters/MOVIEID.jpg`: what
the sample of `configs/crossan.py` is made of, which knows titles as a part of overviews only. Where no hub can be
reached, a backbone is a local directory: --config.modalities.poster.backbone=DIR, and so on. All else is as in
`configs/crossan.py`.

Arguments: `configs/movielens.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, modality, unknown_argument

TEXT = {
    "kind": "text",
    "backbone": "sentence-transformers/all-MiniLM-L6-v2",
    "layers": (0, 2, 4, 6),
    "pooling": "mean",
}


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("movielens")
    config.data.source = "data/movielens-small"
    config.data.interactions_file = "ratings_5core_multimodal.csv"
    config.modalities.title = modality(template="{title}. {genres}", **TEXT)
    config.modalities.overview = modality(template="{overview}", **TEXT)
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
        config.name = "movielens_smoke"
        config.training.epochs = 2
        config.model.bottleneck = 8
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/movielens.py", argument, "smoke")
    return config
