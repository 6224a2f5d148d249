"""The picture of a comparison."""

from __future__ import annotations

import numpy as np

from mmrec_jax.comparison.cost import Cost
from mmrec_jax.comparison.outcomes import Outcome
from mmrec_jax.comparison.plan import Variant
from mmrec_jax.comparison.plot import plot
from mmrec_jax.config import base, resolve
from mmrec_jax.evaluation.seeds import SeedMean


def test_a_mean_outside_of_its_interval_is_drawn(tmp_path):
    config, cost = base("shop"), Cost(1.0, 2.0, 2, 10, 2**20)
    config.model.system = "sasrec"
    mean = 0.1
    spans = {"above": (np.nextafter(mean, 1), 0.2), "below": (0.05, np.nextafter(mean, 0))}
    rows = [
        Outcome(Variant(name, name, 0, resolve(config)), (0,), {"NDCG@10": SeedMean(mean, *span, (mean,))}, cost, {})
        for name, span in spans.items()
    ]
    plot(tmp_path / "plot.png", rows, "NDCG@10")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
