"""Blocks of any size under tiles of any place: every number is scaled once, by the scale of its block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.numbers.blocks import blocks


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(0, 50),
    st.integers(1, 12),
    st.integers(1, 60),
)
def test_every_number_gets_the_scale_of_its_block(lines, width, line, place, down, along):
    values = np.ones((lines, width), np.float32)
    count = (-(-(line + lines) // down), -(-(place + width) // along))
    scales = np.arange(1, 1 + count[0] * count[1], dtype=np.float32).reshape(count)
    for part, downward, sideways in blocks(values, line, place, (down, along)):
        part *= scales[downward, sideways, None]
    rows, cols = np.arange(line, line + lines) // down, np.arange(place, place + width) // along
    np.testing.assert_array_equal(values, scales[np.ix_(rows, cols)])


def test_whole_blocks_of_all_lines_are_one_view():
    values = np.ones((4, 96), np.float32)
    [(part, down, along)] = blocks(values, 8, 64, (1, 32))
    assert part.shape == (4, 3, 32)
    assert np.shares_memory(part, values)
    assert (down, along) == (slice(8, 12), slice(2, 5))


@pytest.mark.parametrize(("place", "width", "views"), [(40, 88, 2), (40, 100, 3), (33, 20, 1), (32, 20, 1)])
def test_parts_of_blocks_are_views_of_their_own(place, width, views):
    assert len(list(blocks(np.ones((4, width), np.float32), 0, place, (1, 32)))) == views
