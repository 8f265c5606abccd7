"""Many comparisons of a table hold together."""

import math

import numpy as np

from divot_lightning.evaluation.statistics.multiple_comparisons import LEVEL, holm


def test_holm_refuses_what_its_steps_refuse():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = rng.random(6) ** 4
        steps = sorted(range(6), key=lambda at: p_values[at])
        rejected = set()
        for rank, at in enumerate(steps):  # Holm 1979: stop at the first p above level / (m - rank)
            if p_values[at] >= LEVEL / (6 - rank):
                break
            rejected.add(at)
        assert {at for at, p in enumerate(holm(p_values)) if p < LEVEL} == rejected


def test_chance_alone_is_called_clear_in_one_table_of_twenty_at_most():
    rng = np.random.default_rng(1)
    found = [min(holm(rng.random(16))) < LEVEL for _ in range(2000)]
    assert 0.03 < np.mean(found) < 0.065


def test_what_is_not_tested_does_not_count():
    assert holm([0.04, math.nan])[0] == 0.04
    assert holm([]) == []
