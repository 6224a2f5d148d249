"""How sure means over users and seeds are: the parts of their variance, limits and p-values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mmrec_jax.evaluation.noise import Noise, half_width, noise, p_value, sample

TRIALS, HIT, TRAINING = 200, 0.12, 0.06


def runs(
    rng: np.random.Generator,
    users: int,
    seeds: int,
    tastes: np.ndarray | float = 1,
    effect: float = 1,
    trials: int = TRIALS,
) -> list[np.ndarray]:
    """Hits of trainings whose rates differ by 6%, "user trial" each; the trials stand in the place of the metrics."""
    rates = HIT * effect * (1 + TRAINING * rng.normal(size=(seeds, 1, trials))).astype(np.float32)
    return [(rng.random((users, trials), np.float32) < rate * tastes).astype(np.float32) for rate in rates]


def chance(trials: int) -> float:
    """A share of false findings that is 5%, and two deviations of as many trials."""
    return 0.05 + 2 * (0.05 * 0.95 / trials) ** 0.5


def found(first: list, second: list) -> dict[bool, np.ndarray]:
    """Whether they are paired -> p-value of the difference in each trial."""
    one, other, both = sample(first), sample(second), sample(a - b for a, b in zip(first, second, strict=True))
    return {
        False: p_value(one.mean - other.mean, noise(one, other)),
        True: p_value(both.mean, noise(both)),
    }


@pytest.mark.parametrize(("users", "trials"), [(600, 2000), (20_000, 200)])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_models_differ_no_more_often_than_p_says(users, trials, seeds):
    rng = np.random.default_rng(users + seeds)
    first, second = (runs(rng, users, seeds, trials=trials) for _ in range(2))
    for paired, p in found(first, second).items():
        # Where seeds are resampled it is 34% of 20,000 users and two paired seeds, 22% with three.
        assert (p < 0.05).mean() <= chance(trials), paired


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_models_of_other_users_tastes_differ_no_more_often(seeds):
    rng = np.random.default_rng(seeds)
    tastes = 4 * (rng.random((2, 600, 2000)) < 0.25)
    first, second = (runs(rng, 600, seeds, own, trials=2000) for own in tastes)
    for paired, p in found(first, second).items():
        assert (p < 0.05).mean() <= chance(2000), paired


@pytest.mark.parametrize(("seeds", "effect"), [(2, 3), (3, 1.5), (5, 1.25)])
def test_a_clear_difference_is_found(seeds, effect):
    rng = np.random.default_rng(seeds)
    first, second = runs(rng, 20_000, seeds, effect=effect), runs(rng, 20_000, seeds)
    for paired, p in found(first, second).items():
        assert (p < 0.05).mean() > 0.7, paired


def test_a_difference_by_the_users_is_found_as_well_as_without_the_seeds_where_training_adds_little():
    rng = np.random.default_rng(0)
    tastes = rng.random((600, TRIALS))
    first, second = ([(tastes < rate).astype(float) for rate in rates] for rates in ((0.17, 0.172), (0.12, 0.121)))
    powers = {paired: (p < 0.05).mean() for paired, p in found(first, second).items()}
    assert min(powers.values()) > 0.95


def test_both_parts_together_are_the_variance_of_the_mean():
    rng = np.random.default_rng(1)
    likes = rng.random((300, 1, TRIALS)) < 0.5
    estimates, means = [], []
    for _ in range(20):
        likes = rng.permuted(likes, axis=2)
        each = sample(runs(rng, 300, 3, 2 * likes[:, 0]))
        parts = noise(each)
        estimates.append(parts.users + parts.training)
        means.append(each.mean)
    # Of 4,000 means: 2.2%, and 1.5% for the estimates' own deviation; four times that.
    assert np.mean(estimates) == pytest.approx(np.var(means), rel=0.11)


def test_where_only_training_varies_it_is_students_and_welchs_test():
    first, second = np.array([[0.3, 0.5, 0.2], [0.1, 0.25, 0]])[:, :, None, None] * np.ones((40, 1))
    p = found(list(first), list(second))
    # Without the rounding of means over 40 users.
    assert p[True].item() == pytest.approx(stats.ttest_rel(first[:, 0, 0], second[:, 0, 0]).pvalue, rel=1e-9)
    welch = stats.ttest_ind(first[:, 0, 0], second[:, 0, 0], equal_var=False)
    assert p[False].item() == pytest.approx(welch.pvalue, rel=1e-9)


def test_where_training_changes_nothing_it_is_the_paired_test_of_the_users():
    first, second = np.random.default_rng(2).random((2, 50, 1))
    for p in found([first] * 3, [second] * 3).values():
        assert p.item() == pytest.approx(stats.ttest_rel(first[:, 0], second[:, 0]).pvalue, rel=1e-9)


def test_seeds_that_agree_by_chance_leave_the_noise_of_the_users():
    first, second = np.zeros((2, 40, 1))
    first[:10], second[5:15] = 1, 1  # as many hits, of other users
    each = sample([first, second])
    assert each.between == 0
    alone = stats.t(39).ppf(0.975) * stats.sem((first + second) / 2)
    assert half_width(noise(each), 0.05) == pytest.approx(alone)


def test_a_model_of_one_seed_is_taken_to_vary_as_the_other():
    rng = np.random.default_rng(3)
    several, single = (sample([run + shift for shift in rng.normal(0, 0.1, seeds)])
                       for seeds, run in ((4, rng.random((2000, 1))), (1, rng.random((2000, 1)))))  # fmt: skip
    parts = noise(single, several)
    assert parts.training.item() == pytest.approx(several.between.item() * (1 + 1 / 4))
    assert parts.of_training.item() == 3


def test_p_is_below_what_an_interval_leaves_out_where_it_excludes_0():
    rng = np.random.default_rng(4)
    parts = Noise(*rng.random((3, 500)), 599, rng.integers(1, 9, 500).astype(float))
    mean = 6 * rng.normal(size=500)
    for outside in (0.3, 0.05, 0.01):
        np.testing.assert_array_equal(p_value(mean, parts) < outside, np.abs(mean) > half_width(parts, outside))


def test_no_difference_has_p_1_and_one_without_any_noise_the_smallest():
    nothing = Noise(np.zeros(2), np.zeros(2), np.zeros(2), 9, np.ones(2))
    np.testing.assert_allclose(p_value(np.array([0, 0.1]), nothing), [1, 1e-12])
