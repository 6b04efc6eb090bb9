"""What a comparison of outliers and layers looks like: one screen, from which nothing that matters is left out."""

from dataclasses import replace

from results import scan_result

from analyzer.diff.comparison import compare
from analyzer.diff.records import LayerChange
from analyzer.diff.reports.report import render_diff
from analyzer.diff.sides import side_of_scan

CHANGED = LayerChange(None, 0, "changed", None, 5, 5, 1.0, 0.1, None, 0, 0)


def shown_of(layers):
    side = side_of_scan(scan_result([(0, 1, 2, 0.5)]))
    return render_diff(compare(side, side, layers=layers))


def test_layers_that_gained_what_is_not_finite_are_never_passed_over():
    layers = [replace(CHANGED, layer=n, note=f"{n} of 99 experts differ") for n in range(99)]
    for layer in (60, 70, 80, 90, 95):
        layers[layer] = replace(layers[layer], relative_change=1e-9, new_nonfinite=3)
    layers[98] = replace(layers[98], relative_change=0.0, old_nonfinite=2)
    shown = shown_of(layers)
    rows = {line.split()[0]: line for line in shown.splitlines() if line.endswith("-    -")}
    assert {"60", "70", "80", "90", "95", "98"} < set(rows)
    assert ("1e-09" in rows["60"], "not finite" in rows["98"]) == (True, True)
    assert (
        "NaN or infinite, and left out of how far weights moved: 2 weights of the old and 15 of the new one, in layers "
        "60, 70, 80, 90 and 2 more."
    ) in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 100
    assert "NaN" not in shown_of([CHANGED])
