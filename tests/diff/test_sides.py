"""Saved results as they are read, and what the catalog knows of a side."""

import json

import pytest
from results import scan_result

from analyzer.base.errors import ResultError
from analyzer.base.records import Coordinate, plain
from analyzer.catalog.lookup import KnownCoordinate
from analyzer.diff.comparison import compare
from analyzer.diff.sides import known_weights, parse_side, side_of_scan

BEFORE = [(0, 1, 2, 5.0), (1, 3, 4, -4.0), (1, 5, 6, 3.0), (2, 7, 8, 2.0)]


def test_a_saved_scan_is_read_as_it_was():
    scan = scan_result(BEFORE, revision="v1")
    saved = parse_side(json.dumps(plain(scan)), "saved.json")
    assert compare(saved, side_of_scan(scan)).identical
    assert side_of_scan(scan).name == "m@v1"


def test_the_catalogs_rows_without_a_column_are_no_weights():
    def known(row, col, standing, effect=None):
        return KnownCoordinate("m", None, 1, None, row, col, None, standing, effect, ("s",), None)

    told = [known(1, 2, "verified", "critical"), known(1, 2, "reported"), known(5, None, "reported"),
            known(3, 4, "disputed")]  # fmt: skip
    assert (
        known_weights(told, [])
        == known_weights(told, [("", 1, -1, -1)])
        == {
            Coordinate(1, None, 1, 2): "verified, critical",
            Coordinate(1, None, 3, 4): "disputed",
        }
    )
    # Of several towers, the language is meant; of one, that.
    for towers, meant in ((["language", "vision"], "language"), (["text"], "text"), (["decoder", "encoder"], None)):
        known = known_weights(told, [(tower, 1, -1) for tower in towers])
        assert {coordinate.tower for coordinate in known} == {meant}


def test_a_saved_scan_says_which_layers_it_is_of():
    tensors = [{"layer": 1, "expert": None}, {"layer": 2, "expert": 3, "tower": "vision"}]
    side = parse_side(json.dumps({"outliers": [], "tensors": tensors}), "saved.json")
    assert side.scanned == {("", 1, -1, -1), ("vision", 2, -1, 3)}


def test_experts_are_told_apart():
    records = [{"rank": r, "layer": 0, "expert": r, "row": 1, "col": 1, "value": 1.0} for r in (1, 2)]
    side = parse_side(json.dumps({"outliers": records}), "saved.json")
    assert list(side.outliers) == [Coordinate(0, 1, 1, 1), Coordinate(0, 2, 1, 1)]


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
        '{"outliers": [{"layer": 0, "expert": null, "row": 1, "col": 1, "rank": "1", "value": 1}]}',
        '{"outliers": [{"layer": 0, "expert": null, "row": 1, "col": 1, "rank": 1, "value": 1' + "0" * 400 + "}]}",
        '{"outliers": [{"layer": 0, "expert": null, "row": 1, "col": 1, "rank": 1, "value": NaN}]}',
        '{"outliers": [{"layer": 0, "expert": null, "row": 2147483648, "col": 1, "rank": 1, "value": 1}]}',
        '{"outliers": ['
        + ", ".join(2 * ['{"layer": 0, "expert": null, "row": 1, "col": 1, "rank": 1, "value": 1}'])
        + "]}",
        '{"outliers": [], "tensors": [{"layer": "0", "expert": null}]}',
        '{"outliers": [], "old_commit": null}',
        '{"super_weights": [{"layer": 0, "expert": null, "row": 1, "col": 1, "value": 1, "status": "confirmed", '
        '"effect": null, "loss": [], "loss_zeroed": null}]}',
        '{"super_weights": [{"layer": 0, "expert": null, "row": 1, "col": 1, "value": 1, "status": [], "effect": null, '
        '"loss": null, "loss_zeroed": null}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_result_is_refused_in_one_line(text):
    with pytest.raises(ResultError) as caught:
        parse_side(text, "evil\x1b[2J.json")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def records(count):
    return [{"layer": 0, "expert": None, "row": row, "col": 1, "rank": row + 1, "value": 0.5} for row in range(count)]


def test_a_result_of_more_than_a_scan_keeps_is_refused_before_it_is_compared():
    assert len(parse_side(json.dumps({"outliers": records(100_000)}), "x.json").outliers) == 100_000
    with pytest.raises(ResultError, match=r"100,001 records in a list, a scan keeps at most 100,000"):
        parse_side(json.dumps({"outliers": records(100_001)}), "x.json")


@pytest.mark.parametrize("part", ["{},", "[],", "1,", "[[],"])
def test_a_result_of_too_many_parts_is_not_even_read(monkeypatch, part):
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it is read"))
    with pytest.raises(ResultError, match=r"x\.json has more than 10,000,000 parts, too many to be a saved result"):
        parse_side(f"[{part * 10_000_001}1]", "x.json")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"outliers": [{}]}', "there is no 'layer'"),
        ('{"outliers": [[]]}', "a part of it has not the form that is expected"),
        ("[1]", "a part of it has not the form that is expected"),
    ],
)
def test_a_broken_result_is_said_in_words(text, why):
    with pytest.raises(ResultError, match=f"x.json is not a result saved with --json \\({why}"):
        parse_side(text, "x.json")
