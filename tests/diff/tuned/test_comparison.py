"""Two answers for the same weights: which super activation is a weight's, what counts as a difference, and the text."""

import re

import pytest

from analyzer.base.errors import ResultError
from analyzer.base.records import Coordinate
from analyzer.diff.reports.tuned import render_tuned
from analyzer.diff.tuned.comparison import compare_answers


def asked(layer, row, **changes):
    weight = {
        "layer": layer, "expert": None, "row": row, "col": 3, "value": 2.0, "share": 0.5, "status": "confirmed",
        "reason": None, "effect": "critical", "loss": 2.0, "delta": 1.0, "delta_low": 0.75, "delta_high": 1.25,
    }  # fmt: skip
    return {**weight, **changes}


def activation(layer, last, channel, value):
    return {"layer": layer, "last_layer": last, "channel": channel, "value": value}


def answer(*weights, activations=(), **changes):
    fixed = {"model": "me/m", "revision": None, "commit": None, "prompt": "p", "notes": ["what ran is a part"]}
    return {**fixed, "asked": list(weights), "super_activations": list(activations), **changes}


def compared(old, new):
    known = {Coordinate(w["layer"], w["expert"], w["row"], w["col"]): "reported" for w in old["asked"]}
    return compare_answers(old, new, known, notes=["From somewhere."])


def test_the_activation_of_a_weight_is_the_largest_on_its_channel_at_its_layer():
    activations = [activation(1, 8, 7, 700.0), activation(11, 29, 7, -24000.0), activation(11, 29, 9, 9e9)]
    weights = [asked(layer, 7) for layer in (0, 1, 9, 11, 30)]
    result = compared(answer(*weights, activations=activations), answer(*weights, activations=activations[:1]))
    # The one at layer 9 takes away what lasted until 8, the one at 30 what lasted until the end.
    assert [w.old.activation for w in result.weights] == [None, 700.0, 700.0, -24000.0, -24000.0]
    assert [w.new.activation_layer for w in result.weights] == [None, 1, 1, None, None]
    assert result.identical
    streams = compared(answer(*weights, activations=activations, streams=4), answer(*weights))
    assert {w.old.activation for w in streams.weights} == {None}


@pytest.mark.parametrize(("field", "value"), [("value", 2.5), ("status", "coincident"), ("effect", "inert")])
def test_a_difference_is_one_of_value_status_or_effect(field, value):
    assert compared(answer(asked(1, 7)), answer(asked(1, 7, delta=0.9, share=0.4))).identical
    assert not compared(answer(asked(1, 7)), answer(asked(1, 7, **{field: value}))).identical


def test_answers_for_other_weights_are_refused():
    with pytest.raises(ResultError, match="me/m and me/m were asked for different weights"):
        compared(answer(asked(1, 7)), answer())


def test_both_are_side_by_side_in_one_screen():
    old = [asked(layer, 7, delta=float(layer), delta_high=layer + 0.5) for layer in range(30)]
    new = [{**weight, "value": 1.0, "effect": "inert", "delta": 0.0, "delta_high": 0.001} for weight in old]
    both = answer(*old, activations=[activation(0, 29, 7, 700.0)]), answer(*new, model="me/" + "n" * 90)
    shown = render_tuned(compared(*both))
    assert "Of 30 known weights in the tuned model: 30 of another value, 30 of another effect." in shown
    lines = [line.split() for line in shown.splitlines() if re.search(r" (base|tuned) +[+-]", line)]
    assert lines[0] == ["29", "7", "3", "base", "+2", "+700", "confirmed", "critical", "+29.000", "±0.500"]
    assert lines[1] == ["tuned", "+1", "-", "confirmed", "inert", "+0.000", "±0.001"]
    assert "… and 18 weights more (--json and --csv)" in shown
    assert (len(shown.splitlines()) < 45, max(map(len, shown.splitlines())) <= 100) == (True, True)
    assert "the loss is 2.000 (perplexity 7.389) of the base" in shown
    encoder = compared(answer(asked(1, 7, loss=None, delta=None)), answer(asked(1, 7, loss=None, delta=None)))
    assert "Untouched" not in render_tuned(encoder)
