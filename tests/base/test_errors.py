"""Text of files that nobody vouches for, as one line that a terminal does not obey."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.base.errors import shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Größe", "Größe"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202ecod.exe", "\\u202ecod.exe"),
        ("\udcff", "\\udcff"),
        (OSError(2, "gone"), "[Errno 2] gone"),
        ("x" * 201, "x" * 199 + "…"),
        ("x" * 200, "x" * 200),
    ],
)
def test_what_is_shown(text, line):
    assert shown(text) == line


@given(st.text(st.characters(codec=None)), st.integers(1, 50))
def test_anything_is_one_line_of_bounded_length(text, limit):
    line = shown(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
