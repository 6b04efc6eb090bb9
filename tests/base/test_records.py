"""Coordinates in order and in words, and records as what JSON has."""

import json
import math
from dataclasses import dataclass

from analyzer.base.records import Coordinate, plain


@dataclass(frozen=True)
class Record:
    tower: str | None
    value: float
    places: tuple[Coordinate, ...]


def test_ties_go_by_tower_layer_expert_row_and_col():
    order = [
        Coordinate(0, None, 9, 9),
        Coordinate(0, 0, 0, 0),
        Coordinate(0, 0, 0, 1),
        Coordinate(0, 0, 1, 0),
        Coordinate(0, 1, 0, 0),
        Coordinate(1, None, 0, 0),
        Coordinate(0, None, 0, 0, "vision"),
    ]
    assert sorted(order[::-1], key=lambda coordinate: coordinate.sort_key) == order


def test_a_coordinate_in_words():
    assert str(Coordinate(1, None, 2, 3)) == "(1, 2, 3)"
    assert str(Coordinate(1, 0, 2, 3)) == "(1, 0, 2, 3)"
    assert str(Coordinate(1, None, 2, 3, "vision")) == "(vision: 1, 2, 3)"


def test_records_become_what_json_has():
    record = Record(None, math.nan, (Coordinate(1, None, 2, 3), Coordinate(1, None, 2, 3, "vision")))
    found = plain({"record": record, "list": [math.inf, 1.5, "x", None, True]})
    assert found == {
        "record": {
            "value": None,
            "places": [
                {"layer": 1, "expert": None, "row": 2, "col": 3},
                {"layer": 1, "expert": None, "row": 2, "col": 3, "tower": "vision"},
            ],
        },
        "list": [None, 1.5, "x", None, True],
    }
    json.dumps(found, allow_nan=False)
