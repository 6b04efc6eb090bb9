"""Names and numbers as the renderers show them."""

import pytest

from analyzer.base.records import Coordinate
from analyzer.base.text import big, byte_size, cell, coordinate_cells, count_of, model_title, percent, place_name, table


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (35_500_000, "35.5 MB"),
        (2_000_000_000, "2 GB"),
        (5 * 10**15, "5e+03 TB"),
    ],
)
def test_sizes(count, text):
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(24081.2, "+24,081"), (-99.96, "-100"), (-12.345, "-12.3"), (0.0, "+0"), (3e9, "+3e+09"), (1e-7, "+1e-07")],
)
def test_large_numbers_are_whole(value, text):
    assert big(value) == text


def test_counts_parts_and_cells():
    assert (count_of(1, "file"), count_of(1234, "file")) == ("1 file", "1,234 files")
    assert (percent(0.733), percent(None)) == ("73%", "-")
    assert (cell(None), cell(-0.27343751), cell("evil\x1b"), cell(3)) == ("-", "-0.27344", "evil\\x1b", "3")


def test_a_model_is_named_at_its_commit():
    assert model_title("me/m", "v1", "0123456789abcdef" * 2) == "me/m@v1 (0123456789ab)"
    assert model_title("me/m", None, "sha256:" + "ab" * 32) == "me/m (sha256:abababababab)"
    assert model_title("evil\n", None, None) == "evil\\n"


def test_places_have_towers_and_experts_where_there_are_any():
    one, other = Coordinate(1, None, 2, 3), Coordinate(4, 5, 6, 7, "vision")
    assert place_name(one) == "layer 1, row 2, col 3"
    assert place_name(other) == "vision layer 4, expert 5, row 6, col 7"
    assert coordinate_cells([one]) == (["layer", "row", "col"], [[1, 2, 3]])
    assert coordinate_cells([one, other]) == (
        ["tower", "layer", "expert", "row", "col"],
        [["-", 1, "-", 2, 3], ["vision", 4, "5", 6, 7]],
    )


def test_tables_have_words_to_the_left_and_numbers_to_the_right():
    assert table(["status", "row"], [["confirmed", 7], ["x", 1234]]).splitlines() == [
        "status      row",
        "---------  ----",
        "confirmed     7",
        "x          1234",
    ]


def test_a_wide_table_is_drawn_close_together():
    header, row = ["x" * 30] * 3, ["1"] * 3
    wide = table([*header, "x" * 4], [[*row, "1"]]).splitlines()[0]
    assert (len(wide), wide) == (100, "  ".join([*header, "x" * 4]))
    close = table([*header, "x" * 5], [[*row, "1"]]).splitlines()
    assert close[0] == " ".join([*header, "x" * 5])
    assert close[1] == " ".join("-" * len(name) for name in [*header, "x" * 5])
