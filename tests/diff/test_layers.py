"""Where two versions differ: overlap and rank correlation against the definition, layers put together."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.base.records import Coordinate
from analyzer.diff.layers import overlap


def coordinates(numbers):
    return [Coordinate(0, None, number, 0) for number in numbers]


def spearman(old, new):
    """Return 1 - 6 sum d^2 / n (n^2 - 1), d being the differences of rank among the shared."""
    shared = [n for n in old if n in new]
    others = [n for n in new if n in old]
    n = len(shared)
    squares = sum((shared.index(each) - others.index(each)) ** 2 for each in shared)
    return 1 - 6 * squares / (n * (n * n - 1))


@given(st.integers(0, 10_000), st.integers(3, 20))
def test_overlap_and_spearman(seed, length):
    generator = random.Random(seed)
    old, new = generator.sample(range(25), length), generator.sample(range(25), length)
    shared, correlation = overlap(coordinates(old), coordinates(new))
    assert shared == len(set(old) & set(new))
    if shared < 3:
        assert correlation is None
    else:
        assert correlation == pytest.approx(spearman(old, new))


def test_the_same_ranking_and_its_reverse():
    ranked = coordinates(range(6))
    assert overlap(ranked, ranked) == (6, pytest.approx(1.0))
    assert overlap(ranked, ranked[::-1]) == (6, pytest.approx(-1.0))
    assert overlap(ranked, []) == (0, None)
