"""The config of a run over the small shop of `tests/tiny_dataset.py`.

The argument is the folder that the shop lies in; `FOLDER,words` takes the texts only, `FOLDER,ids` a table of ids.
"""

from pathlib import Path

from mmrec_jax.config import base, modality


def get_config(argument: str):
    """Text and picture, every size as small as it can be."""
    folder, _, only = argument.partition(",")
    config = base("shop")
    config.data.source = str(Path(folder) / "data")
    if only == "ids":
        config.model.system = "sasrec"
    else:
        config.model.bottleneck = 4
        config.modalities.words = modality(
            kind="text",
            backbone=str(Path(folder) / "bert"),
            template="{title}. {about}",
            layers=(0, 2, 3),
            max_tokens=16,
        )
    if not only:
        config.modalities.picture = modality(
            kind="image", backbone=str(Path(folder) / "vit"), column="picture", layers=(0, 2), pooling="cls"
        )
    config.extraction.progress = False
    config.model.width = 8
    config.model.length = 6
    config.user.blocks = 1
    config.training.epochs = 3
    config.training.batch_size = 16
    config.training.tensorboard = False
    config.evaluation.ks = (5, 10)
    config.evaluation.bootstrap = 50
    config.baselines = ("popularity", "sasrec")
    return config
