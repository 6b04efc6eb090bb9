"""Whole rows, columns and experts times a factor, against plain transformers in which all their weights are edited."""

import re

import numpy as np
import pytest
import torch
from editing import plain_stream
from models import MIXTURES, PROMPT_IDS

from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.base.records import Unit
from analyzer.forward.edits import UNTOUCHED, Intervention, UnitEdit, WeightEdit, zeroing

DENSE = ("llama", "gpt2", "falcon_new", "phi", "gemma2", "opt", "bert")
UNITS = [
    *((name, None, kind) for name in DENSE for kind in ("row", "column")),
    *((name, "chosen", kind) for name in MIXTURES for kind in ("row", "column", "expert")),
]
ROW, COL = 5, 19


def chosen(model):
    """Return the place of an expert that has some of the prompt's tokens."""
    trace = model.trace(PROMPT_IDS)
    layer = max(trace.layers, key=lambda layer: sum(e.expert is not None for e in trace.entries[layer]))
    entries = [e for e in trace.entries[layer] if e.expert is not None and np.abs(e.inputs).max() > 0]
    return max(entries, key=lambda entry: (len(entry.positions), np.abs(entry.inputs).max())).place


def unit_in(model, expert, kind):
    place = ("", 1, -1, -1) if expert is None else chosen(model)
    return Unit(place, ROW if kind == "row" else None, COL if kind == "column" else None)


def edited(plain, unit, factor, compute):
    """Compute something while the weights of a unit are multiplied in the plain model, of an expert its bias too."""
    at = unit.first
    view = plain.downs[at.layer, at.expert]
    whole = slice(None)
    part = view[whole if unit.row is None else unit.row, whole if unit.col is None else unit.col]
    biases = [p[at.expert] for n, p in plain.blocks[at.layer].named_parameters() if n.endswith("down_proj_bias")]
    parts = [part, *(biases if unit.kind == "expert" else [])]
    kept = [each.clone() for each in parts]
    with torch.no_grad():
        for each in parts:
            each *= factor
        found = compute()
        for each, old in zip(parts, kept, strict=True):
            each.copy_(old)
    return found


@pytest.mark.parametrize("factor", [0.0, -1.5])
@pytest.mark.parametrize(("name", "expert", "kind"), UNITS)
def test_a_unit_times_a_factor_is_all_of_its_weights_times_it(pair, name, expert, kind, factor):
    plain, model = pair(name)
    unit = unit_in(model, expert, kind)
    rows = [UNTOUCHED, Intervention((UnitEdit(unit, factor),))]
    untouched, changed = model.runner.streams([PROMPT_IDS] * 2, rows)
    expected = edited(plain, unit, factor, lambda: plain_stream(plain, PROMPT_IDS))
    scale = np.abs(untouched).max()
    np.testing.assert_allclose(changed, expected, rtol=0, atol=1e-4 * scale)
    assert np.abs(changed - untouched).max() > 1e-3 * scale


@pytest.mark.parametrize("row_bytes", [1, 1 << 27], ids=["one by one", "together"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_rows_of_a_batch_have_units_of_their_own(pair, monkeypatch, name, row_bytes):
    plain, model = pair(name)
    monkeypatch.setattr(model.runner.blocks.rows, "row_bytes", row_bytes)
    expert = "chosen" if name == "mixtral" else None
    row, column = (unit_in(model, expert, kind) for kind in ("row", "column"))
    edits = [zeroing([row]), zeroing([]), zeroing([column]), zeroing([row, column])]
    found = list(model.runner.streams([PROMPT_IDS] * 4, edits))
    run = lambda: plain_stream(plain, PROMPT_IDS)  # noqa: E731
    both = edited(plain, row, 0, lambda: edited(plain, column, 0, run))
    for changed, expected in zip(
        found, [edited(plain, row, 0, run), run(), edited(plain, column, 0, run), both], strict=True
    ):
        np.testing.assert_allclose(changed, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_weight_of_a_unit_that_is_edited_is_not_edited_again(pair):
    _, model = pair("llama")
    unit = Unit(("", 1, -1, -1), row=ROW)
    both = Intervention((UnitEdit(unit), WeightEdit(unit.first)))
    with pytest.raises(ForwardError, match="edits 1,5,0 and the row 1,5,any that it is in: give one edit of it"):
        list(model.runner.streams([PROMPT_IDS], [both]))
    beside = Intervention((UnitEdit(unit), WeightEdit(unit.first._replace(row=ROW + 1))))
    assert list(model.runner.streams([PROMPT_IDS], [beside]))


def test_a_unit_that_the_model_does_not_have_is_refused(pair):
    _, model = pair("llama")
    for unit, shown in ((Unit(("", 1, -1, -1), row=999), "1,999,0"), (Unit(("", 1, -1, 3)), "1,3,0,0")):
        with pytest.raises(ArchitectureError, match=f"has no weight {shown}"):
            list(model.runner.streams([PROMPT_IDS], [zeroing([unit])]))


@pytest.mark.parametrize(
    "unit", [Unit(("", 1, -1, -1)), Unit(("", 1, -1, 2), 3, 4), Unit(("", 1, -1, 2), True), "1,2,any"]
)
def test_what_is_no_unit_is_told(unit):
    with pytest.raises(ForwardError, match="is no row, column or expert"):
        UnitEdit(unit)


@pytest.mark.parametrize("text", ["1,507,any", "1,any,83", "2,7,any,0", "vision:3.1,2,40,any"])
def test_a_row_or_column_is_written_as_it_is_read(text):
    unit = Unit.parse(f" {text} ")
    assert str(unit) == text
    assert unit.kind == ("row" if text.endswith("any") else "column")


@pytest.mark.parametrize("text", ["5,68", "decoder:5,68", "5.1,68"])
def test_an_expert_is_written_as_it_is_read(text):
    unit = Unit.parse_expert(text)
    assert (str(unit), unit.kind, unit.first.layer, unit.first.expert) == (text, "expert", 5, 68)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,any,any", "any,1,2", "1,any", "x,1,any", "1,2,any,", "1,-2,any"])
def test_what_is_no_row_and_no_column_is_no_unit(text):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is no row and no column$"):
        Unit.parse(text)


@pytest.mark.parametrize("text", ["", "5", "1,2,3", "5,any"])
def test_what_is_no_expert_is_no_unit(text):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is no expert$"):
        Unit.parse_expert(text)
