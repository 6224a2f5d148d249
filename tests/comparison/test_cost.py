"""TPME: time, parameters and memory in one figure."""

from __future__ import annotations

import numpy as np

from mmrec_jax.comparison.cost import Cost, mean_cost, tpme


def cost(seconds: float, parameters: float, memory: float) -> Cost:
    return Cost(seconds, 10 * seconds, 10, parameters, memory)


def test_tpme_is_that_of_the_papers_table():
    # papers.md 1.0 (g): full fine-tuning, adapters, LoRA, BitFit, IISAN uncached and cached; s, million, GB -> percent.
    paper = {
        (443, 195, 46.76): 100,
        (354, 5, 37.82): 71.5,
        (378, 0.8, 39.07): 75.1,
        (403, 0.4, 36.97): 75.6,
        (179, 4, 8.32): 22.3,
        (22, 4, 3.11): 0.19,
    }
    # The table has three digits of the inputs and of the result.
    np.testing.assert_allclose(
        100 * np.array(tpme([cost(*values) for values in paper])), list(paper.values()), atol=0.1
    )


def test_what_is_equal_for_all_counts_nothing():
    assert tpme([cost(2, 5, 7)]) == [0]
    assert tpme([cost(2, 5, 7), cost(2, 5, 7)]) == [0, 0]
    np.testing.assert_allclose(tpme([cost(2, 5, 7), cost(4, 5, 7), cost(3, 5, 7)]), [0, 0.45, 0.225])
    assert tpme([]) == []


def test_the_cost_of_a_method_is_the_mean_over_its_seeds():
    trainings = [
        {
            "seconds_per_epoch": 1.0,
            "seconds": 9,
            "epochs": 3,
            "parameters": 8,
            "peak_memory_bytes": 100,
            "best_step": 1,
        },
        {
            "seconds_per_epoch": 2.0,
            "seconds": 11,
            "epochs": 4,
            "parameters": 8,
            "peak_memory_bytes": 300,
            "best_step": 2,
        },
    ]
    assert mean_cost(trainings) == Cost(1.5, 10, 3.5, 8, 200)
