"""GRU4Rec (arXiv 1511.06939) over a table of item ids on the embedded MovieLens sample.

    python -m mmrec_jax.main --config=configs/gru4rec.py

One recurrent layer in place of self-attention; all else is that of `configs/sasrec.py`.

Some two minutes on two CPU cores. Seen on the test split (three seeds): HR@10 of 11.9%, NDCG@10 of 6.8%.

Arguments: `configs/gru4rec.py:smoke` runs two epochs of a shrunken model, to see that everything works.
"""

from mmrec_jax.config import base, unknown_argument


def get_config(argument: str = ""):
    """The config; `argument` is "" or "smoke"."""
    config = base("gru4rec")
    config.data.source = "sample:movielens_small"
    config.model.system = "gru4rec"
    config.user.kind = "gru"
    config.user.blocks = 1
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
        config.name = "gru4rec_smoke"
        config.training.epochs = 2
        config.model.length = 10
    elif argument:
        raise unknown_argument("configs/gru4rec.py", argument, "smoke")
    return config
