"""Methods on equal terms on the embedded MovieLens sample: what accuracy each reaches, and at what cost.

    python -m mmrec_jax.main --mode=compare --config=configs/compare.py --seeds=0,1,2

Each method is a config file; `crossan_text` reads the overviews only. Everything is compared with `crossan`. The tables
and the plot are in `runs/compare`; started again, it goes on where it was.

Arguments: `configs/compare.py:smoke` runs two epochs of shrunken models, to see that everything works.
"""

from mmrec_jax.comparison import comparison, run
from mmrec_jax.config import unknown_argument


def get_config(argument: str = ""):
    """The comparison; `argument` is "" or "smoke"."""
    if argument not in ("", "smoke"):
        raise unknown_argument("configs/compare.py", argument, "smoke")
    size = f":{argument}" if argument else ""
    config = comparison(f"compare{'_smoke' if argument else ''}")
    config.runs.crossan = run(f"crossan.py{size}")
    config.runs.crossan_text = run(f"crossan.py{size}", modalities=("overview",))
    config.runs.iisan = run(f"iisan.py{size}")
    config.runs.iisan_versa = run(f"iisan_versa.py{size}")
    config.runs.frozen = run(f"frozen.py{size}")
    config.runs.sasrec_content = run(f"sasrec_content.py{size}")
    config.runs.sasrec = run(f"sasrec.py{size}")
    config.runs.gru4rec = run(f"gru4rec.py{size}")
    config.baseline = "crossan"
    return config
