"""XSMoE on the stream of the embedded MovieLens sample: ten windows of overviews (MiniLM) and posters (DINOv2-small).

    python -m mmrec_jax.main --config=configs/xsmoe.py

Each window is trained on, and the next one tests; between them experts are pruned and added (papers.md section 4).

The sample's users come once and rate some fifty films within the hour: a window of 8,816 events has 55 to 146 users, of
whom a quarter were there before, and its last 15% in time is the work of 4 to 27 of them. So, unlike the paper's code,
each user's last events validate, all events are targets and histories reach back to earlier windows. `:paper` is the
paper's protocol except for two things: utilisation is measured on training batches alone
(`stream.utilisation="paper"` counts the items of evaluations too, as the paper's code does), and a training ends with
the parameters of its best epoch, where that code ends with the last ones.

Arguments, joined by commas:
    smoke                       three windows of the best ratings, one epoch of a shrunken model, to see that it works
    paper                       the paper's protocol, see above: last event of each user, its own window as history
    without_expansion           one expert a rung, pruned never since it is the last
    without_pruning             experts are added only
    experts                     a fixed number of experts (four), trained on
    text, image                 one modality
    finetune                    linear heads on the last states in place of the ladders, trained on window by window
    retrain_all, retrain_window anew on all windows so far, or on the last one
    frozen                      trained on the first window only
    replay                      trained on, with a fifth as many rows of older windows
"""

from mmrec_jax.config import base, modality, unknown_argument

LEARNERS = ("retrain_all", "retrain_window", "frozen", "replay")
ABLATIONS = ("without_expansion", "without_pruning", "experts", "text", "image", "finetune")
KNOWN = ("smoke", "paper", *ABLATIONS, *LEARNERS)


def get_config(argument: str = ""):
    """The config; `argument` joins some of `KNOWN` by commas."""
    chosen = argument.split(",") if argument else []
    for name in chosen:
        if name not in KNOWN:
            raise unknown_argument("configs/xsmoe.py", name, *KNOWN)
    config = base("_".join(["xsmoe", *chosen]))
    config.mode = "stream"
    config.data.source = "sample:movielens_small"
    config.data.user_core = 0  # the windows have cores of their own
    if "image" not in chosen:
        config.modalities.overview = modality(
            kind="text",
            backbone="sentence-transformers/all-MiniLM-L6-v2",
            template="{title}. {genres}. {overview}",
            layers=(0, 4, 6),
            pooling="mean",
        )
    if "text" not in chosen:
        config.modalities.poster = modality(
            kind="image",
            backbone="facebook/dinov2-small",
            path_template="posters/{item}.jpg",
            layers=(0, 8, 12),
            pooling="cls",
        )
    config.model.system = "linear" if "finetune" in chosen else "xsmoe"
    config.fusion.kind = "concat" if "finetune" in chosen else "add"
    config.model.standardise = True
    config.model.width = 64
    config.model.length = 50
    config.model.window = "chunks"
    config.scoring.similarity = "cosine"
    config.training.batch_size = 16
    config.training.epochs = 15
    config.training.schedule = "exponential"
    config.training.final_fraction = 0.1
    config.training.patience = 3
    config.evaluation.ks = (10, 20)
    config.show_users = 0
    config.stream.validation = "user"
    config.stream.valid_candidates = "seen"
    config.stream.context = "all"
    config.stream.targets = "all"
    config.stream.valid_targets = "all"
    if "experts" in chosen:
        config.model.experts = 4
    if {"experts", "without_expansion"} & set(chosen):
        config.stream.expand = False
        config.stream.prune = False
        if "finetune" not in chosen:
            config.model.capacity = config.model.experts  # slots that would stay empty cost time
    if "without_pruning" in chosen:
        config.stream.prune = False
    for name in LEARNERS:
        if name in chosen:
            config.stream.learner = name
    if "paper" in chosen:
        config.stream.context = "window"
        config.stream.validation = "slice"
        config.stream.valid_candidates = "slice"
        config.stream.targets = "last"
        config.stream.valid_targets = "last"
        config.model.window = "last"
        config.model.length = 10
        config.model.width = 128
        config.scoring.similarity = "dot"
        config.model.standardise = False
        config.training.batch_size = 256
        config.training.epochs = 100
        config.training.eval_from = 6
        config.training.patience = 5
    if "smoke" in chosen:
        config.data.min_rating = 5.0
        config.stream.windows = 3
        config.training.epochs = 1
        config.model.width = 16
        config.model.length = 10
        if "finetune" not in chosen:
            config.model.bottleneck = 8
    return config
