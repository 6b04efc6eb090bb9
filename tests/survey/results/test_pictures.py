"""What a survey's pictures say of few points and of many: there are numbers on each axis."""

import pytest
from surveys import outlier, verified, weight

from analyzer.survey.results.findings import weights_of
from analyzer.survey.results.pictures import draw_effects, draw_shares
from analyzer.survey.results.prediction import predict


@pytest.mark.parametrize("largest", [3, 9, 40, 2000, 10**6])
def test_every_axis_has_numbers(largest):
    """A scale of powers of ten between two of them would have none."""
    judged = [weight(0, 0, n, value, static_rank=value) for n, value in enumerate((2, largest))]
    ranked = [outlier(value, 0, 0, n, value) for n, value in enumerate((2, largest))]
    weights = weights_of("o/m", verified(judged, magnitude=ranked, gain=ranked), "magnitude")
    panels = [*draw_effects(weights, predict(weights)).axes, *draw_shares(weights).axes]
    assert len(panels) == 7
    for axes in panels:
        low, high = axes.get_xlim()
        axes.figure.canvas.draw()
        shown = [float(t.get_text().replace(",", "").replace("\N{MINUS SIGN}", "-")) for t in axes.get_xticklabels()]
        assert sum(low <= number <= high for number in shown) >= 2
    assert all(axes.get_xscale() == ("log" if largest >= 20 else "linear") for axes in panels[:3])
