"""What a comparison of all tensors looks like: one screen, and nothing rounded to what it is not."""

import csv
import re

from analyzer.diff.reports.table import tensors_csv
from analyzer.diff.reports.tensors import render_tensors
from analyzer.diff.tensors.records import TensorChange, TensorDiff


def tensor(name, state="changed", shape=(8, 20), **changes):
    figures = {"relative_change": 0.5, "cosine": 0.25, "unchanged": 0.75, "nonfinite": 0} if state == "changed" else {}
    return TensorChange(name, (name,), state, shape, shape, "BF16", "BF16", **{**figures, **changes})


def comparison(*tensors, expect=()):
    unexpected = tuple(each.name for each in tensors if each.differs and not each.named_by(expect))
    return TensorDiff("me/old", "me/new", "a" * 40, None, tuple(expect), tensors, unexpected, (), 1000, 0)


def rows_of(text):
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if re.match(r" *(\d+|-)  ", line)]


def test_a_line_for_each_layer_with_its_most_changed_matrix():
    shown = render_tensors(
        comparison(
            tensor("model.layers.0.mlp.weight", relative_change=0.001, unchanged=1 - 1e-9),
            tensor("model.layers.0.bias", shape=(8,), relative_change=12.0),
            tensor("model.layers.0.norm.weight", "same"),
            tensor("model.layers.1.mlp.weight", "same"),
            tensor("model.layers.2.mlp.weight", relative_change=None, cosine=None, unchanged=1e-9),
            tensor("lm_head.weight", relative_change=1e-7, unchanged=0.0),
        )
    )
    assert "Of 6 tensors 4 differ: 4 changed." in shown
    assert rows_of(shown) == [
        ["-", "1 of 1", "lm_head.weight", "1e-07", "0.25000", "0%"],
        ["0", "2 of 3", "mlp.weight", "0.10%", "0.25000", ">99.99%"],
        ["2", "1 of 1", "mlp.weight", "-", "-", "<0.01%"],
    ]


def test_of_many_layers_the_most_changed_and_never_more_than_a_screen():
    many = [tensor(f"model.layers.{n}.mlp.weight", relative_change=n / 100) for n in range(1, 200)]
    other = [tensor(f"model.layers.{n}.extra.weight", "added") for n in range(200)]
    shown = render_tensors(comparison(*many, *other, tensor("x\x1b.weight", "removed")))
    assert [row[0] for row in rows_of(shown)] == [str(n) for n in range(176, 200)]
    assert "… and 175 layers more (--json and --csv)" in shown
    assert "Only in the new one: model.layers.*.extra.weight x 200." in shown
    assert "Only in the old one: x\\x1b.weight." in shown
    assert len(shown.splitlines()) < 45
    assert max(map(len, shown.splitlines())) <= 100


def test_what_is_expected_is_said_and_in_the_table():
    result = comparison(tensor("a.weight"), tensor("b.weight", "added"), tensor("c.weight", "same"), expect=["a.*"])
    assert "Not expected (--expect): b.weight." in render_tensors(result)
    rows = {row["name"]: row for row in csv.DictReader(tensors_csv(result).splitlines())}
    assert [rows[f"{name}.weight"]["expected"] for name in "abc"] == ["True", "False", ""]
    assert (rows["a.weight"]["old_shape"], rows["a.weight"]["relative_change"]) == ("8x20", "0.5")
    expected = comparison(tensor("a.weight"), expect=["*"])
    assert "All of that is expected (--expect): 1 difference." in render_tensors(expected)
    same = comparison(tensor("c.weight", "same"))
    assert "No differences: 1 tensor in both, of the same values." in render_tensors(same)


def test_values_that_are_not_finite_are_said_beside_figures_that_leave_them_out():
    said = "NaN or infinite on a side, and left out of how far a tensor moved and its cosine:"
    whole = [tensor("model.layers.0.mlp.weight", relative_change=0.0, cosine=1.0), tensor("x.weight", "same")]
    assert rows_of(render_tensors(comparison(*whole))) == [["0", "1 of 1", "mlp.weight", "0%", "1.00000", "75.00%"]]
    assert said not in render_tensors(comparison(*whole))
    broken = [tensor(f"model.layers.{n}.mlp.weight", relative_change=0.0, nonfinite=n) for n in range(1, 3)]
    shown = " ".join(render_tensors(comparison(*broken)).split())
    assert f"{said} 3 values of model.layers.*.mlp.weight x 2." in shown
    many = [tensor(f"model.layers.{n}.mlp.weight", relative_change=0.1) for n in range(200)]
    broken = [tensor(f"model.layers.7.{name}.bias", shape=(8,), relative_change=0.0, nonfinite=1) for name in "ab"]
    row = next(row for row in rows_of(render_tensors(comparison(*many, *broken))) if row[0] == "7")
    assert row == ["7", "3 of 3", "a.bias", "not finite", "0.25000", "75.00%"]
