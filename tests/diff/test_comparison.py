"""What changed between two results, on results whose differences are known."""

import json
import math
from dataclasses import replace

import pytest
from results import scan_result

from analyzer.base.errors import ResultError
from analyzer.base.records import Coordinate
from analyzer.diff.comparison import compare
from analyzer.diff.records import LargestChange, LayerChange
from analyzer.diff.sides import parse_side, side_of_scan

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


def test_by_layer_as_far_as_the_ranked_tell():
    result = compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(AFTER)))
    nothing = LayerChange(None, 0, "ranked", None, 1, 1, None, None, None)
    assert result.outliers_among == "all"
    assert result.layers == (
        nothing,
        replace(nothing, layer=1, ranked=2, shared=1, largest_change=LargestChange(None, 3, 4, -4.0, -4.5)),
        replace(nothing, layer=2),
        replace(nothing, layer=3, shared=0),
    )


def test_a_result_equals_itself():
    side = side_of_scan(scan_result(BEFORE))
    result = compare(side, side)
    assert result.identical
    assert (result.outliers, result.outliers_unchanged) == ((), 4)
    assert [layer.shared for layer in result.layers] == [1, 2, 1]


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
    assert result.super_weights_from == "verified"
    assert [(c.kind, c.row) for c in result.super_weights] == [("vanished", 3), ("changed", 2), ("unchanged", 1)]
    assert (result.outliers, result.outliers_among, result.layers) == ((), None, ())
    assert not result.identical
    assert compare(saved_verification(before), saved_verification(before)).identical


def known_side(weights, known, look_up=None, **options):
    return replace(side_of_scan(scan_result(weights, **options), look_up), known=known)


def test_what_the_catalog_knows_is_looked_up_on_both_sides():
    here, there, gone = Coordinate(0, None, 1, 2), Coordinate(2, None, 7, 8), Coordinate(3, None, 0, 0)
    nan = Coordinate(1, None, 0, 0)
    values = [{here: 5.0, there: 2.0, nan: math.nan}, {here: 5.5, there: 2.0, gone: 1.0, nan: math.nan}]
    sides = [
        known_side(BEFORE, known, lambda cs, at=at: {c: at[c] for c in cs if c in at})
        for at, known in zip(
            values, ({here: "verified, critical", nan: "known"}, {there: "reported", gone: "reported"}), strict=True
        )
    ]
    result = compare(*sides)
    assert result.super_weights_from == "known"
    first, *others = result.super_weights
    assert (first.coordinate, first.kind) == (nan, "unchanged")
    assert [(c.coordinate, c.known, c.kind, c.old, c.new) for c in others] == [
        (there, "reported", "unchanged", {"value": 2.0}, {"value": 2.0}),
        (gone, "reported", "appeared", None, {"value": 1.0}),
        (here, "verified, critical", "changed", {"value": 5.0}, {"value": 5.5}),
    ]


def test_a_saved_scan_cannot_tell_of_a_known_weight_that_it_did_not_rank():
    ranked, unranked, nowhere = Coordinate(0, None, 1, 2), Coordinate(1, None, 0, 0), Coordinate(2, None, 0, 0)
    known = {ranked: "reported", unranked: "reported", nowhere: "reported"}
    model = known_side(BEFORE, {}, lambda cs: {c: 5.0 for c in cs if c != nowhere})
    result = compare(model, known_side(BEFORE, known))
    assert [(c.coordinate, c.kind, c.new) for c in result.super_weights] == [
        (ranked, "unchanged", {"value": 5.0}),
        (unranked, "unknown", None),
        (nowhere, "unknown", None),
    ]
    assert result.identical  # of what could be compared


def test_the_super_weights_of_one_verified_side_are_looked_up_on_the_other():
    weights = [(0, 1, 1, 2.0, "confirmed", "critical", 3.0), (0, 2, 2, 7.0, "coincident", "inert", 1.0)]
    saved = replace(saved_verification(weights), outliers=side_of_scan(scan_result(BEFORE)).outliers)
    result = compare(saved, known_side(BEFORE, {}, lambda cs: dict.fromkeys(cs, -1.0)))
    assert result.super_weights_from == "known"
    assert [(c.row, c.known, c.old, c.new) for c in result.super_weights] == [
        (1, "verified, critical", {"value": 2.0}, {"value": -1.0})
    ]


def test_what_a_reader_should_know_first():
    one, other = (saved_verification([(0, 1, 1, 2.0, "confirmed", "critical", 3.0)]) for _ in "ab")
    result = compare(replace(one, prompt="A", model_type="llama"), replace(other, prompt="B", model_type="qwen2"))
    assert ["llama and qwen2" in result.notes[0], "different prompts" in result.notes[1]] == [True, True]
    assert compare(replace(one, prompt="A"), replace(other, prompt="A")).notes == ()


def test_what_is_verified_goes_before_what_the_catalog_says():
    place = Coordinate(0, None, 1, 1)
    saved = saved_verification([(0, 1, 1, 2.0, "confirmed", "inert", 1.0)])
    for known in ({place: "reported"}, {}):
        model = known_side(BEFORE, {place: "reported"}, lambda cs: dict.fromkeys(cs, 2.0))
        for sides in ((replace(saved, known=known), model), (model, replace(saved, known=known))):
            assert [change.known for change in compare(*sides).super_weights] == ["verified, inert"]


def test_a_ranking_is_compared_as_far_as_the_shorter_one_goes():
    five, four = (side_of_scan(scan_result(weights)) for weights in ([*BEFORE, (3, 1, 1, 1.0)], BEFORE))
    for sides in ((five, four), (four, five)):
        result = compare(*sides)
        assert (result.outliers, result.outliers_unchanged, result.identical) == ((), 4, True)
        assert result.notes == ("Only the top 4 are compared: one of them ranks no more.",)


def test_scans_of_other_layers_are_compared_in_those_of_both():
    def scanned(weights, layers):
        return replace(side_of_scan(scan_result(weights)), scanned=frozenset(("", layer, -1, -1) for layer in layers))

    some = [weight for weight in BEFORE if weight[0] in (1, 2)]
    result = compare(scanned(BEFORE, range(4)), scanned(some, (1, 2)))
    assert result.identical
    assert result.outliers_unchanged == 3
    assert "what is compared, and ranked, are 2 down projections" in result.notes[0]


def test_a_verification_alone_is_compared_with_a_model():
    saved = saved_verification([(0, 1, 1, 2.0, "confirmed", "critical", 3.0)])
    model = replace(known_side([], {}, lambda cs: dict.fromkeys(cs, 2.5)), outliers=None)
    result = compare(saved, model)
    assert (result.outliers_among, result.layers) == (None, ())
    assert [(c.kind, c.new) for c in result.super_weights] == [("changed", {"value": 2.5})]


def test_ranks_by_different_scores_are_not_compared():
    magnitude = side_of_scan(scan_result(BEFORE))
    with pytest.raises(ResultError, match="m is ranked by magnitude, m by gain: scan both with the same --score"):
        compare(magnitude, replace(magnitude, score="gain"))


def test_models_of_other_sizes_are_not_compared():
    with pytest.raises(ResultError, match="cannot be compared: layers 4 and 4, rows 16 and 8"):
        compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(BEFORE, hidden=8)))


def test_another_number_of_layers_can_be_compared():
    result = compare(side_of_scan(scan_result(BEFORE)), side_of_scan(scan_result(AFTER, layers=5)))
    assert [change.kind for change in result.outliers[:2]] == ["appeared", "vanished"]


def test_a_scan_and_a_verification_have_nothing_in_common():
    with pytest.raises(ResultError, match="nothing in common"):
        compare(side_of_scan(scan_result(BEFORE)), saved_verification([]))
