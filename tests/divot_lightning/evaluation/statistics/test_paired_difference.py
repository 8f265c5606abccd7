"""Intervals cover the truth as often as they claim, by simulation, and there is none if nothing varies."""

import math

import numpy as np
import pytest
from scipy import stats

from divot_lightning.evaluation.statistics.paired_difference import grouped_difference, paired_difference

TRIALS = 400
LOWEST, HIGHEST = 0.93, 0.99
"""Coverage of the 95% interval that a simulation of 400 tables may show: its own standard error is 0.011. Both ends are
well apart from what a bootstrap over seeds gives (0.3 to 0.9)."""


def coverage(draw, truth=0.0):
    """Return how often the interval holds the true difference; `draw` samples the values of both arms."""
    hits = 0
    for _ in range(TRIALS):
        found = paired_difference(*draw())
        hits += found.low <= truth <= found.high
    return hits / TRIALS


def right_or_wrong(rng, seeds, *, seed_sd, shared_sd=0.0, own_sd=0.0, items=256):
    """Sample items that are right or wrong: arms differ by seeds (independently), and by items in either way."""
    hard = rng.normal(0, shared_sd, (1, items))
    own = rng.normal(0, own_sd, (1, items))
    means = [0.6 + rng.normal(0, seed_sd, (seeds, 1)) + hard + sign * own for sign in (1, -1)]
    return [(rng.random((seeds, items)) < mean).astype(float) for mean in means]


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("paired", [False, True], ids=["seeds_apart", "seeds_in_common"])
def test_scores_without_items_are_covered(seeds, paired):
    rng = np.random.default_rng(seeds)

    def draw():
        common = rng.normal(0, 5, (seeds, 1)) * paired
        return [common + rng.normal(100, 8, (seeds, 1)) for _ in range(2)]

    assert LOWEST <= coverage(draw) <= HIGHEST


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize(
    "spread",
    [
        {"seed_sd": 0.15},  # 256 items, both arms with a seed deviation of 0.15: the GMM head's in the toy world
        {"seed_sd": 0.03, "shared_sd": 0.2, "own_sd": 0.2},  # seeds differ little, items differ between the arms
        {"seed_sd": 0.05, "shared_sd": 0.2, "own_sd": 0.05},
        {"seed_sd": 0.0},  # nothing but chance
    ],
    ids=["seeds", "items", "both", "chance"],
)
def test_scores_with_items_are_covered(seeds, spread):
    rng = np.random.default_rng(100 + seeds)
    assert LOWEST <= coverage(lambda: right_or_wrong(rng, seeds, **spread)) <= HIGHEST


@pytest.mark.parametrize("items", [12, 60, 256])
def test_one_seed_is_covered_over_items(items):
    rng = np.random.default_rng(items)
    assert LOWEST <= coverage(lambda: [0.3 + rng.normal(size=(1, items)), np.zeros((1, items))], 0.3) <= HIGHEST


@pytest.mark.parametrize("right", [0.0, 0.004, 0.02])
def test_items_that_are_almost_all_alike_are_covered(right):
    rng = np.random.default_rng(7)

    def draw():
        return [(rng.random((1, 256)) < right).astype(float) for _ in range(2)]

    assert coverage(draw) >= LOWEST


def test_seeds_without_items_have_the_interval_and_p_value_of_the_t_test():
    values = np.random.default_rng(0).normal(0.4, 1.0, (4, 1))
    found = paired_difference(values, np.zeros((4, 1)))
    reference = stats.ttest_1samp(values[:, 0], 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert found.p == pytest.approx(reference.pvalue)
    assert found.pairs == "seeds"


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (8, 2.3646)])
def test_the_quantile_is_that_of_the_printed_table_of_the_t_distribution(seeds, quantile):
    values = np.arange(seeds, dtype=float)[:, None]
    found = paired_difference(values, np.zeros((seeds, 1)))
    assert found.high - found.mean == pytest.approx(quantile * values.std(ddof=1) / math.sqrt(seeds), rel=2e-5)


def test_the_p_value_is_where_the_interval_reaches_zero():
    rng = np.random.default_rng(5)
    values = right_or_wrong(rng, 4, seed_sd=0.05, own_sd=0.2)
    found = paired_difference(*values)
    edge = paired_difference(values[0] - found.low, values[1])  # its interval ends at zero
    assert edge.low == pytest.approx(0.0, abs=1e-12)
    assert edge.p == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_not_tested(seeds):
    rng = np.random.default_rng(1)
    found = paired_difference(rng.normal(5, 1, (seeds, 50)), np.zeros((seeds, 50)))
    assert math.isnan(found.p)
    assert math.isfinite(found.low)


def test_pairing_removes_what_items_have_in_common():
    rng = np.random.default_rng(1)
    hard = rng.normal(scale=10, size=(1, 200))
    difference = paired_difference(hard + 0.5 + rng.normal(scale=0.1, size=(1, 200)), hard)
    assert difference.pairs == "items"
    assert 0.45 < difference.low < 0.5 < difference.high < 0.55


def test_all_wrong_is_no_certainty():
    found = paired_difference(np.zeros((3, 256)), np.zeros((3, 256)))
    assert found.mean == 0.0
    # Of 256 items without a hit a true fraction up to 0.0143 is left with 97.5% (exact binomial).
    assert 0.005 < found.high < 0.0143
    assert found.low == -found.high
    assert math.isnan(found.p)


def test_seeds_that_share_a_measurement_count_as_one():
    rng = np.random.default_rng(3)
    once = rng.normal(0.3, 1.0, (1, 60))
    repeated = paired_difference(np.repeat(once, 3, axis=0), np.zeros((3, 60)))
    assert repeated == paired_difference(once, np.zeros((1, 60)))
    assert repeated.pairs == "items"


@pytest.mark.parametrize(
    "values", [[[1.0]], [[1.0], [math.nan], [2.0]], [[0.25] * 9] * 3, [[2.0], [2.0], [2.0]]], ids=str
)
def test_too_little_or_undefined_values_give_no_interval(values):
    variant = np.array(values)
    difference = paired_difference(variant, np.zeros_like(variant))
    assert math.isnan(difference.low)
    assert math.isnan(difference.p)


def test_the_mean_of_groups_is_welch_s():
    rng = np.random.default_rng(6)
    first, second = rng.normal(1.0, 3.0, 9), rng.normal(0.0, 0.5, 40)
    found = grouped_difference([(first, np.zeros(9)), (np.zeros(40), second)])
    reference = stats.ttest_ind(first, second, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert found.mean == pytest.approx((first.mean() - second.mean()) / 2)
    assert (found.low, found.high) == pytest.approx((interval.low / 2, interval.high / 2))


def test_a_group_of_one_item_has_no_interval():
    found = grouped_difference([(np.ones(5), np.zeros(5)), (np.ones(1), np.zeros(1))])
    assert found.mean == 1.0
    assert math.isnan(found.low)
