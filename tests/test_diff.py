"""What changed between two results, on results whose differences are known."""

import json

import pytest

from analyzer.diff import compare, parse_side, side_of_scan
from analyzer.errors import ResultError
from analyzer.records import Coordinate, LayerChanges, Outlier, ScanResult, plain


def scan_result(weights, *, model="m", hidden=16, revision=None):
    """Return a scan with these (layer, row, col, value), ranked in their order."""
    outliers = tuple(
        Outlier(rank, None, layer, None, row, col, value, abs(value), 3.0, "t")
        for rank, (layer, row, col, value) in enumerate(weights, start=1)
    )
    return ScanResult(model, revision, None, "llama", 4, hidden, 32, "magnitude", 1, 1, 0.1, (), outliers)


BEFORE = [(0, 1, 2, 5.0), (1, 3, 4, -4.0), (1, 5, 6, 3.0), (2, 7, 8, 2.0)]
AFTER = [(1, 3, 4, -4.5), (0, 1, 2, 5.0), (2, 7, 8, 2.0), (3, 9, 10, 1.5)]


def changes(result):
    return [(c.kind, c.layer, c.row, c.col, c.old, c.new) for c in result.outliers]


def test_outliers_that_appear_vanish_change_and_move():
    result = compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(AFTER)))
    assert changes(result) == [
        ("appeared", 3, 9, 10, None, {"rank": 4, "value": 1.5}),
        ("vanished", 1, 5, 6, {"rank": 3, "value": 3.0}, None),
        ("changed", 1, 3, 4, {"rank": 2, "value": -4.0}, {"rank": 1, "value": -4.5}),
        ("moved", 0, 1, 2, {"rank": 1, "value": 5.0}, {"rank": 2, "value": 5.0}),
        ("moved", 2, 7, 8, {"rank": 4, "value": 2.0}, {"rank": 3, "value": 2.0}),
    ]
    assert not result.identical


def test_the_value_of_what_has_no_rank_is_looked_up_where_the_model_is_there():
    values = {Coordinate(1, None, 5, 6): 0.5, Coordinate(3, None, 9, 10): -0.25}
    sides = [side_of_scan(scan_result(weights), lambda cs: {c: values[c] for c in cs}) for weights in (BEFORE, AFTER)]
    appeared, vanished = compare(*sides).outliers[:2]
    assert (appeared.old, appeared.new) == ({"rank": None, "value": -0.25}, {"rank": 4, "value": 1.5})
    assert (vanished.old, vanished.new) == ({"rank": 3, "value": 3.0}, {"rank": None, "value": 0.5})
    assert compare(*sides).layers == compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(AFTER))).layers


def test_counts_by_layer():
    result = compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(AFTER)))
    assert result.layers == (
        LayerChanges(0, 0, 0, 0, 1, 0),
        LayerChanges(1, 0, 1, 1, 0, 0),
        LayerChanges(2, 0, 0, 0, 1, 0),
        LayerChanges(3, 1, 0, 0, 0, 0),
    )


def test_a_result_equals_itself():
    side = side_of_scan(scan_result(BEFORE))
    result = compare(side, side)
    assert result.identical
    assert result.outliers == ()
    assert [layer.unchanged for layer in result.layers] == [1, 2, 1]


def test_a_saved_scan_is_read_as_it_was():
    scan = scan_result(BEFORE, revision="v1")
    saved = parse_side(json.dumps(plain(scan)), "saved.json")
    assert compare(saved, side_of_scan(scan)).identical
    assert side_of_scan(scan).name == "m@v1"


def saved_verification(weights):
    keys = ("layer", "row", "col", "value", "status", "effect", "loss_zeroed")
    records = [{"expert": None, "loss": 1.0, **dict(zip(keys, weight, strict=True))} for weight in weights]
    return parse_side(json.dumps({"super_weights": records}), "saved.json")


def test_super_weights_by_value_status_and_effect_but_not_by_loss():
    before = [
        (0, 1, 1, 2.0, "confirmed", "critical", 3.0),
        (0, 2, 2, 2.0, "confirmed", "inert", 1.0),
        (1, 3, 3, 2.0, "confirmed", "inert", 1.0),
        (1, 4, 4, 2.0, "rejected", None, None),
    ]
    after = [
        (0, 1, 1, 2.0, "confirmed", "critical", 3.1),
        (0, 2, 2, 2.0, "coincident", "inert", 1.0),
        (1, 5, 5, 2.0, "rejected", None, None),
    ]
    result = compare(saved_verification(before), saved_verification(after))
    assert [(c.kind, c.row) for c in result.super_weights] == [("vanished", 3), ("changed", 2)]
    assert result.outliers == ()


def test_experts_are_told_apart():
    records = [{"rank": r, "layer": 0, "expert": r, "row": 1, "col": 1, "value": 1.0} for r in (1, 2)]
    side = parse_side(json.dumps({"outliers": records}), "saved.json")
    assert list(side.outliers) == [Coordinate(0, 1, 1, 1), Coordinate(0, 2, 1, 1)]


def test_models_of_other_sizes_are_not_compared():
    with pytest.raises(ResultError, match="cannot be compared: layers 4 and 4, rows 16 and 8"):
        compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(BEFORE, hidden=8)))


def test_a_scan_and_a_verification_have_nothing_in_common():
    with pytest.raises(ResultError, match="nothing in common"):
        compare(side_of_scan(scan_result(BEFORE)), saved_verification([]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "1",
        "{}",
        '{"outliers": 3}',
        '{"outliers": [{}]}',
        '{"outliers": [[]]}',
        '{"outliers": [{"layer": "0", "expert": null, "row": 1, "col": 1, "rank": 1, "value": 1}]}',
        '{"outliers": [{"layer": 0, "expert": null, "row": -1, "col": 1, "rank": 1, "value": 1}]}',
        '{"outliers": [{"layer": 0, "expert": null, "row": 1, "col": 1, "rank": 1, "value": "x"}]}',
        '{"super_weights": [{"layer": 0}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_result_is_refused_in_one_line(text):
    with pytest.raises(ResultError) as caught:
        parse_side(text, "evil\x1b[2J.json")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
