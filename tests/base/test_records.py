"""How a place is written and ordered, and what of a record is left out of JSON."""

from dataclasses import dataclass

import pytest

from analyzer.base.records import Coordinate, Unread, plain


@pytest.mark.parametrize(
    ("coordinate", "text"),
    [
        (Coordinate(1, None, 77, 31), "1,77,31"),
        (Coordinate(1, 0, 77, 31), "1,0,77,31"),
        (Coordinate(1, None, 77, 31, None, 0), "1.0,77,31"),
        (Coordinate(1, None, 77, 31, "vision"), "vision:1,77,31"),
        (Coordinate(1, None, 77, 31, "mtp", 2), "mtp:1.2,77,31"),
        (Coordinate(1, 5, 77, 31, "a.b.layers"), "a.b.layers:1,5,77,31"),
    ],
)
def test_a_coordinate_is_written(coordinate, text):
    assert str(coordinate) == text


def test_coordinates_are_ordered_by_tower_layer_mlp_expert_row_col():
    ordered = [
        Coordinate(0, None, 9, 9), Coordinate(2, None, 0, 0), Coordinate(2, None, 0, 1), Coordinate(2, None, 1, 0),
        Coordinate(2, 0, 0, 0), Coordinate(2, 10, 0, 0), Coordinate(2, None, 0, 0, None, 0),
        Coordinate(2, None, 0, 0, None, 1), Coordinate(10, None, 0, 0), Coordinate(0, None, 0, 0, "vision"),
    ]  # fmt: skip
    backwards = ordered[::-1]
    assert sorted(backwards, key=lambda each: each.sort_key) == ordered
    assert len({each.place for each in ordered}) == 8  # rows and columns are of one place


def test_what_says_nothing_is_left_out():
    assert plain(Coordinate(1, None, 2, 3)) == {"layer": 1, "expert": None, "row": 2, "col": 3}
    assert plain(Coordinate(1, 4, 2, 3, "vision", 0)) == {
        "layer": 1, "expert": 4, "row": 2, "col": 3, "tower": "vision", "mlp": 0,
    }  # fmt: skip
    unread = Unread("a.*.b", 2, (3, 4), "why")
    assert plain([unread]) == [{"names": "a.*.b", "count": 2, "shape": [3, 4], "why": "why"}]
    assert plain(Unread("a", 1, None, "why"))["shape"] is None


def test_numbers_that_json_has_not():
    @dataclass
    class Figures:
        layers: tuple[int, ...] | None
        writes: str | None
        values: tuple[float, ...]

    assert plain(Figures(None, None, (float("nan"), float("inf"), 1.5))) == {"values": [None, None, 1.5]}
    assert plain(Figures((0, 3), "latent", ())) == {"layers": [0, 3], "writes": "latent", "values": []}
