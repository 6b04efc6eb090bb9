"""What becomes of a mixture's products, and of a token that an expert is handed twice, on arrays that are made up."""

import numpy as np
import pytest

from analyzer.forward.trace import Entry, Trace, factors_of

RANDOM = np.random.default_rng(0)
ROUTED, SHARED = RANDOM.normal(size=(2, 8, 64)).astype(np.float32)
ROUTED[0, 5] = 3000.0  # a super activation
BIAS = RANDOM.normal(size=64).astype(np.float32)


@pytest.mark.parametrize("factors", [(2.5, 1.0), (1.0, 1.0), (0.1, 3.0)])
def test_a_mixture_that_multiplies_its_experts_is_seen_to(factors):
    output = factors[0] * ROUTED + factors[1] * SHARED + BIAS
    assert factors_of(output, [ROUTED, SHARED]) == pytest.approx(list(factors), rel=1e-5)


def test_sums_as_they_are_get_a_factor_of_one_exactly_also_where_they_are_rounded():
    output = (ROUTED + SHARED).astype(np.float16).astype(np.float32)
    assert factors_of(output, [ROUTED, SHARED]) == [1.0, 1.0]


@pytest.mark.parametrize("beside", [RANDOM.normal(size=(8, 64)), ROUTED * RANDOM.normal(size=(8, 1))])
def test_what_is_no_such_sum_gets_none(beside):
    output = (2 * SHARED + beside).astype(np.float32)
    assert factors_of(output, [ROUTED, SHARED]) == [1.0, 1.0]


def test_a_writer_that_gives_nothing_gets_one():
    assert factors_of(2 * SHARED, [np.zeros_like(SHARED), SHARED]) == pytest.approx([1.0, 2.0])


def test_an_expert_that_is_handed_a_token_twice_reads_the_sum():
    routed, inputs = np.array([0.5, 3.0, 2.0], np.float32), RANDOM.normal(size=(3, 4)).astype(np.float32)
    place = ("", 0, -1, 1)
    outputs = {0: np.ones((1, 8, 64), np.float32)}
    entries = {0: (Entry(place, np.array([5, 2, 5]), inputs, routed),)}
    trace = Trace((0,), SHARED, ROUTED[None], entries, outputs, outputs)
    ((_, entered, whole),) = trace.at(0, 5)
    np.testing.assert_allclose(entered, 0.5 * inputs[0] + 2 * inputs[2], rtol=1e-6)
    assert (whole == 1).all()
    assert list(trace.at(0, 3)) == []
