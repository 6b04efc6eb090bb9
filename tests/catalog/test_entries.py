"""An analysis as the catalog keeps it: in order, rounded where it was measured, exact where it was read."""

import math
from dataclasses import replace

from catalogs import entry as whole
from results import scan_result

from analyzer import __version__
from analyzer.base.records import Coordinate
from analyzer.catalog.entries import make_entry
from analyzer.catalog.files import save_entry, validate
from analyzer.verify.activations.over_prompts import (
    Fit,
    Headroom,
    LayerMagnitudes,
    MassiveChannel,
    Prefix,
    Routing,
    SinkPosition,
    Sinks,
    SinkToken,
)
from analyzer.verify.records import (
    Interaction,
    JointZeroing,
    LayerMaxima,
    SuperActivation,
    SuperWeight,
    UnitEffect,
    VerifyResult,
)

EXACT = 0.012345678901234567
WEIGHT = SuperWeight(
    2, None, 3, 4, EXACT, 0.123456789, 1, "confirmed", "critical", 0.98765432, 2.3456789, 3.4567891, 2.3456999, 1881
)  # fmt: skip
RESULT = VerifyResult(
    model="me/model-1b", revision="main", commit="a" * 40, model_type="llama", prompt="p", tokens=("a", "b", "c"),
    dtype="float32", device="cpu", verdict="found", layers=(LayerMaxima(2, 1.0, 1, 2.0, 2, 3.0, 3),),
    super_activations=(SuperActivation(2, 3, 0, "a", 24081.234, 12632.789, 3),), outlier_features=(), writes=(),
    late_activations=(), asked=(), columns=(), super_weights=(WEIGHT,),
    joint=None, masking=(), profile=None, prompts=0, recurrences=(), early_stop=False,
    bytes_read=10, checkpoint_bytes=20,
)  # fmt: skip
METHOD = {key: value for key, value in whole()["method"].items() if key not in ("tool", "version")}
SCAN = scan_result([(2, 3, 4, EXACT), (0, 1, 2, -0.5)], model="me/model-1b")


def made(result=RESULT, note=None):
    return make_entry(SCAN, result, method=METHOD, note=note)


def test_what_was_measured_is_rounded_and_a_weight_is_exact():
    entry = made()
    (weight,) = entry["super_weights"]
    assert (weight["value"], weight["share"], weight["loss"], weight["loss_zeroed"]) == (EXACT, 0.12346, 2.3457, 3.4568)
    assert weight["loss_tokens"] == 1881
    (activation,) = entry["super_activations"]
    assert (activation["value"], activation["median_ratio"], activation["token"]) == (24081.0, 12633.0, "a")
    assert [outlier["value"] for outlier in entry["outliers"]] == [EXACT, -0.5]


def test_weights_are_in_order_and_the_rejected_are_left_out_unless_critical():
    weights = (
        replace(WEIGHT, layer=3),
        replace(WEIGHT, col=6, status="rejected"),
        replace(WEIGHT, col=5, status="rejected", effect="inert"),
        WEIGHT,
    )
    joint = JointZeroing(
        (Coordinate(2, None, 3, 4), Coordinate(3, None, 3, 4)), 4.5678912, 2.3456789, 2.1, 2.34567, 540
    )
    entry = made(replace(RESULT, super_weights=weights, joint=joint))
    assert [(w["layer"], w["col"]) for w in entry["super_weights"]] == [(2, 4), (2, 6), (3, 4)]
    assert entry["joint"]["loss_zeroed"] == 4.5679


def test_what_destroys_a_model_has_no_finite_loss(tmp_path):
    both = (Coordinate(2, None, 3, 4), Coordinate(3, None, 3, 4))
    infinite = JointZeroing(both, math.inf, 2.3456789, math.inf, math.inf, 1881)
    entry = made(replace(RESULT, joint=infinite, super_weights=(replace(WEIGHT, loss_zeroed=math.inf),)))
    assert (entry["joint"]["loss_zeroed"], entry["joint"]["delta_high"]) == (None, None)
    save_entry(tmp_path, "mine", entry)
    assert validate(tmp_path) == (1, 1, [])


def test_it_says_what_it_is_of_and_how_it_was_made(tmp_path):
    entry = made(note="Mine.")
    assert [entry[key] for key in ("model", "commit", "note", "verdict")] == ["me/model-1b", "a" * 40, "Mine.", "found"]
    assert [entry[key] for key in ("num_layers", "hidden_size", "intermediate_size")] == [4, 16, 32]
    assert entry["method"] == {"tool": "superweight-analyzer", "version": __version__, **METHOD}
    save_entry(tmp_path, "model", entry)
    assert validate(tmp_path) == (1, 1, [])


def test_what_more_was_asked_is_kept_and_else_left_out(tmp_path):
    assert not {"units", "interactions"} & made().keys()
    row = UnitEffect(
        "row", 2, None, 3, None, "critical", 2.3, 3.4, 1881, 1.1, 1.0, 1.23456789, 4, 2.4, 0.9, 0.6, False
    )  # fmt: skip
    pair = (Coordinate(2, None, 3, 4), Coordinate(3, None, 3, 4))
    both = Interaction(pair, 2.0, (1.1, 0.5), 0.4, 0.3, 0.5, 1881)
    weight = replace(WEIGHT, delta_half=0.123456789, delta_half_low=0.1, delta_half_high=0.2)
    entry = made(replace(RESULT, units=(row,), interactions=(both,), super_weights=(weight,)))
    assert entry["units"][0]["delta_high"] == 1.2346
    assert (entry["units"][0]["row"], entry["units"][0]["col"]) == (3, None)
    assert entry["interactions"][0]["delta_alone"] == [1.1, 0.5]
    assert entry["super_weights"][0]["delta_half"] == 0.12346
    save_entry(tmp_path, "mine", entry)
    assert validate(tmp_path) == (1, 1, [])


def test_what_is_told_over_all_prompts_is_kept(tmp_path):
    fit = Fit(65504.0, 24081.234, 2, "residual", None)
    result = replace(
        RESULT,
        headroom=Headroom(12, (LayerMagnitudes(2, 24081.234, None, 1.0, 2.0),), (2,), fit, fit),
        massive_channels=(MassiveChannel(3, 24081.234, 12, 11, 0, (1, 2), (300.0, 24081.234)),),
        sinks=Sinks(12, (SinkPosition(0, 12, 12),), (SinkToken(5, "\n", 3, 4, 0, 3),)),
        prefix=Prefix((5, 1), ("\n", "<s>"), 1),
        routing=(Routing(2, 3, 41, 120, 0.123456789),),
    )
    entry = made(result)
    assert entry["headroom"]["layers"] == [
        {"layer": 2, "residual": 24081.0, "mlp_input": None, "down_input": 1.0, "mlp_output": 2.0}
    ]
    assert entry["headroom"]["float16"]["largest"] == 24081.0
    assert entry["massive_channels"][0]["magnitudes"] == [300.0, 24081.0]
    assert entry["sinks"]["tokens"][0]["token"] == "\n"
    assert entry["prefix"]["ids"] == [5, 1]
    assert entry["routing"] == [{"layer": 2, "expert": 3, "chosen": 41, "tokens": 120, "mean_weight": 0.12346}]
    save_entry(tmp_path, "model", entry)
    assert validate(tmp_path) == (1, 1, [])
