"""Arms, costs and results as records."""

import math

import numpy as np
import pytest

from analyzer.experiments.lab.costs import cost_of, interval_of, recovered_by
from analyzer.experiments.lab.records import Arm, Cost
from analyzer.forward.edits import UNTOUCHED


def test_the_interval_is_students():
    low, high = interval_of(np.array([1.0, 2.0, 4.0]))  # mean 7/3, s 1.5275, t(0.975, 2) 4.3027
    assert (low, high) == (pytest.approx(-1.4612, abs=1e-3), pytest.approx(6.1279, abs=1e-3))


def test_one_window_has_no_interval_and_alike_ones_an_empty_one():
    assert interval_of(np.array([1.0])) == (None, None)
    assert interval_of(np.zeros(3)) == (0.0, 0.0)
    assert interval_of(np.full(3, 0.25)) == (0.25, 0.25)


def test_a_loss_that_is_no_number_is_infinite():
    cost = cost_of(np.array([1.0, 2.0]), np.array([1.0, math.nan]))
    assert (cost.nll, cost.delta, cost.perplexity) == (math.inf, math.inf, math.inf)


def test_what_is_recovered_is_known_where_the_effect_is():
    effect = Cost(5.0, 2.0, 1.5, 2.5)
    assert recovered_by(effect, Cost(3.5, 0.5, 0.4, 0.6)) == pytest.approx(0.75)
    assert recovered_by(Cost(3.0, 0.1, -0.1, 0.3), effect) is None
    assert recovered_by(Cost(5.0, 2.0, None, None), Cost(3.0, 0.0, None, None)) == 1
    assert recovered_by(Cost(math.inf, math.inf, math.inf, math.inf), effect) is None


def test_an_arm_has_the_edits_of_each_window():
    assert Arm("a").of(3) is UNTOUCHED
    assert Arm("a", ["x", "y"]).of(1) == "y"
