"""What becomes of the products of a mixture's experts, on arrays that are made up."""

import numpy as np
import pytest

from analyzer.forward.trace import factors_of

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
