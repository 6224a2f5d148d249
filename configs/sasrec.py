"""SASRec over a table of item ids on the embedded MovieLens sample: what CROSSAN is compared with.

    python -m mmrec_jax.main --config=configs/sasrec.py

The item vectors are trained from scratch; no medium of an item is read. User encoder, objective and training are
those of `configs/crossan.py`.

A minute on two CPU cores. Seen on the test split (three seeds): HR@10 of 10.6%, NDCG@10 of 5.8%.

Arguments: `configs/sasrec.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, unknown_argument


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("sasrec")
    config.data.source = "sample:movielens_small"
    config.model.system = "sasrec"
    config.model.length = 50
    config.model.window = "chunks"
    config.training.batch_size = 16
    config.scoring.similarity = "cosine"
    config.training.epochs = 25
    config.training.schedule = "cosine"
    config.training.final_fraction = 0.05
    config.training.patience = 0
    config.baselines = ("popularity",)
    if argument == "smoke":
        config.name = "sasrec_smoke"
        config.training.epochs = 2
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/sasrec.py", argument, "smoke")
    return config
