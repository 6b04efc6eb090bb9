"""Paired differences and their intervals, against figures from tables and against chance itself."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from analyzer.verify.costs.intervals import BLOCK_TOKENS, error_of_each, estimate, student


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(0.99, 10, 2.7638), (0.995, 7, 3.4995), (0.999, 7, 4.7853), (0.999, 20, 3.5518), (0.99, 120, 2.3578)],
)
def test_quantiles_are_those_of_the_tables(probability, freedom, quantile):
    assert student(probability, freedom) == pytest.approx(quantile, rel=0.01)


def test_the_mean_is_over_tokens_and_the_interval_over_blocks_of_them():
    generator = np.random.default_rng(0)
    before = [generator.normal(3, 1, count).astype(np.float32) for count in (64, 40)]
    after = [each + generator.normal(0.1, 0.2, len(each)).astype(np.float32) for each in before]
    found = estimate(before, after, 0.01, 416)
    differences = [new.astype(float) - old for old, new in zip(before, after, strict=True)]
    assert (found.tokens, found.loss) == (104, pytest.approx(np.concatenate(before).mean(), rel=1e-6))
    assert found.loss_zeroed == pytest.approx(np.concatenate(after).mean(), rel=1e-6)
    assert found.delta == pytest.approx(np.concatenate(differences).mean(), rel=1e-5)
    means = np.concatenate([each.reshape(-1, BLOCK_TOKENS).mean(axis=1) for each in differences])
    half = student(0.99, 12) * means.std(ddof=1) / math.sqrt(13)
    assert (found.low, found.high) == (pytest.approx(found.delta - half), pytest.approx(found.delta + half))
    here = half * math.sqrt(0.75)  # three quarters of the text were not looked at
    assert (found.least, found.most) == (pytest.approx(found.delta - here), pytest.approx(found.delta + here))


def test_the_interval_misses_the_mean_as_often_as_it_says():
    """Of tokens beside each other that are alike, as those of a text are."""
    generator, beyond = np.random.default_rng(1), 0
    for _ in range(2000):
        noise = np.repeat(generator.normal(0, 1, 32), 4) + generator.normal(0, 1, 128)
        found = estimate([np.zeros(128, np.float32)], [(0.5 + noise).astype(np.float32)], 0.05, 10**6)
        beyond += found.high < 0.5
    assert 0.03 < beyond / 2000 < 0.07


def test_the_interval_for_the_whole_of_a_text_misses_it_as_often_as_it_says():
    generator, beyond = np.random.default_rng(2), 0
    for _ in range(2000):
        text = (0.5 + np.repeat(generator.normal(0, 1, 128), 4) + generator.normal(0, 1, 512)).astype(np.float32)
        found = estimate([np.zeros(384, np.float32)], [text[:384]], 0.05, 512)
        beyond += found.most < text.mean()
    assert 0.03 < beyond / 2000 < 0.07


@pytest.mark.parametrize(("looks", "constant"), [(1, 1.645), (2, 1.875), (3, 1.992), (5, 2.122)])
def test_what_each_look_may_err_is_that_of_pococks_tables(looks, constant):
    """For looks of one size at a text without end (Jennison and Turnbull, table 2.1, for two sides of 0.05 each)."""
    each = error_of_each(range(1000, 1000 * looks + 1, 1000), 10**9, 0.05)
    assert NormalDist().inv_cdf(1 - each) == pytest.approx(constant, abs=0.01)


def test_several_looks_together_miss_as_often_as_is_said():
    """At a text that costs just enough on the whole, whose looks end before it does."""
    sizes, generator, missed = (192, 352, 512), np.random.default_rng(3), 0
    each = error_of_each(sizes, 640, 0.05)
    for _ in range(2000):
        text = (np.repeat(generator.normal(0, 1, 80), 8) + generator.normal(0, 1, 640)).astype(np.float32)
        text -= text.mean()
        looks = [estimate([np.zeros(size, np.float32)], [text[:size]], each, 640) for size in sizes]
        missed += any(look.most < 0 for look in looks)
    assert 0.03 < missed / 2000 < 0.07


def test_without_a_look_before_the_last_all_of_the_error_is_left():
    assert error_of_each([], 100, 0.05) == 0.05


def test_a_loss_that_is_no_number_is_infinite():
    found = estimate([np.ones(16, np.float32)], [np.array([np.nan] + [1.0] * 15, np.float32)], 0.01, 16)
    assert (found.loss, found.loss_zeroed, found.delta, found.low, found.most) == (1, *[math.inf] * 4)


def test_of_too_few_tokens_nothing_is_known():
    found = estimate([np.ones(5, np.float32)], [np.full(5, 2, np.float32)], 0.01, 9)
    assert (found.delta, found.low, found.high) == (1, -math.inf, math.inf)
