"""Intervals hold what they say, and are left out where there is nothing to resample."""

import math

import numpy as np
import pytest

from divot_lightning.evaluation.paired_difference import paired_difference


def test_a_constant_difference_has_no_width():
    baseline = np.random.default_rng(0).normal(size=(3, 40))
    difference = paired_difference(baseline + 0.25, baseline)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.25, 0.25, 0.25))
    assert difference.clear


def test_pairing_removes_what_items_have_in_common():
    rng = np.random.default_rng(1)
    hard = rng.normal(scale=10, size=(1, 200))
    difference = paired_difference(hard + 0.5 + rng.normal(scale=0.1, size=(1, 200)), hard)
    assert difference.pairs == "items"
    assert 0.45 < difference.low < 0.5 < difference.high < 0.55


def test_the_interval_of_items_is_that_of_the_normal_theory():
    values = np.random.default_rng(2).normal(size=(1, 400))
    difference = paired_difference(values, np.zeros_like(values))
    half = 1.96 * values.std() / math.sqrt(400)
    assert difference.low == pytest.approx(values.mean() - half, abs=0.006)
    assert difference.high == pytest.approx(values.mean() + half, abs=0.006)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(100):
        values = 0.3 + rng.normal(size=(1, 60))
        interval = paired_difference(values, np.zeros_like(values), seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 88 <= hits <= 99


def test_seeds_that_differ_widen_the_interval_of_their_items():
    rng = np.random.default_rng(4)
    noise = rng.normal(scale=0.1, size=(5, 100))
    seeds = rng.normal(size=(5, 1))
    one_seed = paired_difference(noise[:1], np.zeros((1, 100)))
    all_seeds = paired_difference(noise + seeds, np.zeros((5, 100)))
    assert all_seeds.pairs == "items and seeds"
    assert all_seeds.high - all_seeds.low > 10 * (one_seed.high - one_seed.low)


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [[1.0], [math.nan], [2.0]]])
def test_too_little_or_undefined_values_give_no_interval(values):
    difference = paired_difference(np.array(values), np.zeros((len(values), 1)))
    assert math.isnan(difference.low)
    assert not difference.clear
