"""What a second modality brings, as a company would introduce it: overviews first, then posters beside them.

    python -m mmrec_jax.main --mode=compare --config=configs/staged.py --seeds=0,1,2,3,4

The second stage begins with the parameters of the first. `continued` trains a second time on the overviews alone: what
posters bring is the second stage of `crossan` beside that of `continued`, since both are trained as long.

Arguments: `configs/staged.py:smoke` runs two epochs of shrunken models, to see that everything works.
"""

from mmrec_jax.comparison import comparison, run
from mmrec_jax.config import unknown_argument


def get_config(argument: str = ""):
    """The comparison; `argument` is "" or "smoke"."""
    if argument not in ("", "smoke"):
        raise unknown_argument("configs/staged.py", argument, "smoke")
    file = "crossan.py:smoke" if argument else "crossan.py"
    config = comparison(f"staged{'_smoke' if argument else ''}")
    config.plan = "staged"
    config.stages = (("overview",), ("overview", "poster"))
    config.runs.crossan = run(file)
    config.runs.continued = run(file, stages=(("overview",), ("overview",)))
    return config
