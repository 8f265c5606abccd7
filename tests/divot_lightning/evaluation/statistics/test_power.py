import numpy as np
import pytest
from scipy.stats import ttest_1samp

from divot_lightning.evaluation.statistics.power import POWER, power, smallest_difference


@pytest.mark.parametrize(("difference", "seeds"), [(0.0, 3), (0.5, 5), (1.5, 3), (-1.0, 8), (0.6, 20)])
def test_power_is_the_fraction_of_simulated_tests_that_see_the_difference(difference, seeds):
    samples = np.random.default_rng(0).normal(difference, 1.0, (20_000, seeds))
    seen = (ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
    assert power(difference, 1.0, seeds) == pytest.approx(seen, abs=0.012)


# G*Power 3.1: t tests, difference between two dependent means, two-tailed, alpha 0.05, power 0.80.
@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6)])
def test_the_number_of_seeds_is_that_of_published_tables(effect, seeds):
    assert power(effect, 1.0, seeds) >= POWER > power(effect, 1.0, seeds - 1)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 20, 100])
def test_the_smallest_difference_has_the_wanted_power_and_grows_with_the_deviation(seeds):
    difference = smallest_difference(0.2, seeds)
    assert power(difference, 0.2, seeds) == pytest.approx(POWER, abs=1e-6)
    assert smallest_difference(0.4, seeds) == pytest.approx(2 * difference)


def test_power_is_a_number_however_far_the_difference():
    values = [power(effect, 1.0, seeds) for effect in np.linspace(0, 60, 121) for seeds in (2, 3, 10, 1000)]
    assert np.isfinite(values).all()
    assert min(values) >= 0.05 - 1e-9
    assert max(values) <= 1.0
