"""Choosing among strategies: by hand, and on made-up ones whose true scores are known."""

import numpy as np
import pytest
from test_verdicts import at_most_the_level, calibration  # noqa: F401 - a fixture

from tune.comparison.jackknife import Estimate, estimates
from tune.comparison.selection import choose, optimism


def strategies(values, half, n=400):
    """Strategies with these scores whose differences' intervals reach about `half` to each side."""
    rng = np.random.default_rng(0)
    deviation = half / 1.966 / np.sqrt(2) * np.sqrt(n)
    each = deviation * rng.standard_normal((len(values), n))
    each -= each.mean(1, keepdims=True)
    return [
        Estimate(v, c, ((0.0, 4.0),), n, n, 5, False) for v, c in zip(values, each, strict=True)
    ]


def test_the_cheapest_that_is_as_good_is_chosen():
    found = choose(strategies([0.70, 0.80, 0.801, 0.802], 0.008), costs=[1, 2, 3, 4])
    assert found.chosen == 1  # not 0, which is worse
    assert found.p[0] > 0.5
    assert found.loss[0] == pytest.approx(0.11, abs=0.01)


def test_none_is_chosen_where_none_can_be_shown_and_the_nearest_is_given():
    found = choose(strategies([0.70, 0.80, 0.801, 0.81], 0.1), costs=[1, 2, 3, 4])
    assert found.chosen is None
    assert found.nearest == 3
    assert found.loss[3] > 0.02  # with a margin of this it would be chosen
    same = strategies([0.70, 0.80, 0.801, 0.81], 0.1)
    assert choose(same, [1, 2, 3, 4], margin=found.loss[3] + 1e-6).chosen == 3


def test_as_good_as_a_reference_needs_less_than_as_good_as_all():
    others = strategies([0.800, 0.803, 0.80, 0.80, 0.79], 0.0185)
    assert choose(others, costs=[1, 2, 3, 4, 5], correction="none").chosen == 1
    found = choose(others, costs=[1, 2, 3, 4, 5], reference=3, correction="none")
    assert found.chosen == 0
    worse = strategies([0.60, 0.7, 0.8], 0.01)
    found = choose(worse, costs=[1, 2, 3], reference=2)
    assert (found.chosen, found.nearest) == (2, 1)  # the reference, and what comes nearest to it
    assert found.loss[1] == pytest.approx(0.111, abs=0.005)


def test_of_equal_costs_the_better_is_chosen():
    assert choose(strategies([0.8, 0.81], 0.005), costs=[1, 1]).chosen == 1


def test_one_strategy_is_no_choice():
    with pytest.raises(ValueError, match="two strategies or more are needed"):
        choose(strategies([0.8], 0.1), costs=[1])
    assert optimism(strategies([0.8], 0.1)) == 0


def test_a_cheapest_strategy_that_is_worse_is_advised_no_more_often_than_stated(calibration):  # noqa: F811
    reps = 100
    found = calibration.choices(46, reps=reps)
    assert at_most_the_level(found["worse_advised"], reps)
    clear = calibration.choices(2000, seeds=20, reps=2, k=2)
    assert clear["worse_advised"] == 0
    assert clear["some_advised"] == 1


def test_optimism_of_the_highest(calibration):  # noqa: F811
    for spread, seed in ((0.0, 46), (0.05, 46)):
        found = calibration.highest(seed, spread, reps=60)
        assert found["too_high"] > 0.02
        assert abs(found["too_high_corrected"]) < 0.3 * found["too_high"] + 0.01


def test_there_is_no_optimism_where_one_is_far_ahead(rng):
    labels = rng.integers(0, 3, 300)
    right = [0.3, 0.3, 0.95]
    predictions = [np.where(rng.random((5, 300)) < r, labels, (labels + 1) % 3) for r in right]
    each = [estimates("classes", labels, p)["accuracy"] for p in predictions]
    assert abs(optimism(each)) < 0.002
