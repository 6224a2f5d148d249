"""What a further modality brings, as a company would introduce it: one after another, each beside those before.

    python -m mmrec_jax.main --mode=compare --config=configs/staged.py --seeds=0,1,2,3,4
    python -m mmrec_jax.main --mode=compare --config=configs/staged.py:movielens --seeds=0,1,2,3,4 \\
        --config.settings="('data.source=DIR',)"

The first adds posters to overviews on the embedded sample. The second begins with titles, adds overviews and then
posters, for CROSSAN and two other fusions of its towers, from the directory of `configs/movielens.py`; IISAN, which
takes two modalities, has each pair.

A stage begins with the parameters of the stage before, but for those of IISAN. `continued` trains as often on the first
modality alone, and is the baseline: what a modality brings is its stage beside the same of `continued`, since both are
trained as long. With `--baseline=` each stage is compared with the one before; finished runs are only read for that.

Arguments: `movielens`, `smoke` (two epochs of shrunken models, to see that everything works), or both as
`movielens,smoke`.
"""

from mmrec_jax.comparison import comparison, run
from mmrec_jax.config import unknown_argument


def get_config(argument: str = ""):
    """The comparison; `argument` is "", "movielens", "smoke" or "movielens,smoke"."""
    if argument not in ("", "smoke", "movielens", "movielens,smoke"):
        raise unknown_argument("configs/staged.py", argument, "movielens", "smoke", "movielens,smoke")
    size = ":smoke" if argument.endswith("smoke") else ""
    config = comparison("_".join(filter(None, ["staged", *argument.split(",")])))
    config.plan = "staged"
    config.baseline = "continued"
    if argument.startswith("movielens"):
        _movielens(config, f"movielens.py{size}")
    else:
        config.stages = (("overview",), ("overview", "poster"))
        config.runs.crossan = run(f"crossan.py{size}")
        config.runs.continued = run(f"crossan.py{size}", stages=(("overview",), ("overview",)))
    return config


def _movielens(config, file: str) -> None:
    config.stages = (("title",), ("title", "overview"), ("title", "overview", "poster"))
    config.runs.crossan = run(file)
    without_experts = "fusion.expert=mlp"  # the default, since these read none
    config.runs.concat = run(file, "fusion.kind=concat", without_experts)
    config.runs.sum = run(file, "fusion.kind=sum", without_experts)
    pairs = (("title", "overview"), ("title", "poster"), ("overview", "poster"))
    iisan = ("model.system=iisan", "fusion.kind=concat", without_experts)
    config.runs.iisan = run(file, *iisan, stages=pairs, warm_start=False)
    config.runs.continued = run(file, stages=(("title",),) * 3)
