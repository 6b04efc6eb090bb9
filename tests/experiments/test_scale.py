"""Figure 6 on a planted model: every factor against stock transformers with scaled weights."""

import numpy as np
import pytest
from models import PLANTED
from plainly import losses, times, windows

from analyzer.base.records import Coordinate
from analyzer.experiments import scale

FACTORS = (0.0, 0.5, 1.0, 1.7, -1.0)


@pytest.fixture
def document(run):
    return run(scale.EXPERIMENT, factors=FACTORS).as_json()


def curve(document, of):
    return {arm["factor"]: arm for arm in document["arms"] if arm.get("of") == of}


def test_every_factor_is_that_of_a_scaled_weight(planted, document):
    folder, plain = planted
    batch = windows(folder, 12)
    before = losses(plain, batch)
    arms = curve(document, str(PLANTED))
    assert set(arms) == {0.0, 0.5, 1.7, -1.0}
    assert curve(document, "original")[1.0] == document["arms"][0]
    for factor, arm in arms.items():
        with times(plain, {PLANTED: factor}):
            after = losses(plain, batch)
        assert arm["nll"] == pytest.approx(after.mean(), abs=1e-4)
        assert arm["delta"] == pytest.approx((after - before).mean(), abs=1e-4)


def test_the_control_is_the_nearest_in_magnitude_of_other_rows(planted, document):
    folder, plain = planted
    matrix = plain.model.layers[PLANTED.layer].mlp.down_proj.weight.detach().abs().clone()
    matrix[PLANTED.row] = -9
    row, col = np.unravel_index(int((matrix - 2).abs().argmin()), matrix.shape)
    control = Coordinate(PLANTED.layer, None, int(row), int(col))
    assert document["controls"] == [{"layer": 1, "expert": None, "row": control.row, "col": control.col}]
    arms = curve(document, "controls jointly")
    with times(plain, {control: -1.0}):
        after = losses(plain, windows(folder, 12))
    assert arms[-1.0]["nll"] == pytest.approx(after.mean(), abs=1e-4)
    assert all(arm["control"] for arm in arms.values())


def test_the_best_factor_is_chosen_on_one_half_and_reported_on_the_other(planted, document):
    folder, plain = planted
    batch = windows(folder, 12)
    found = {}
    for factor in FACTORS:
        with times(plain, {PLANTED: factor}):
            found[factor] = losses(plain, batch)
    best = min(found, key=lambda factor: found[factor][:4].mean())
    told = next(each for each in document["best"] if each["of"] == str(PLANTED))
    assert told["factor"] == best
    assert told["delta"] == pytest.approx((found[best] - found[1.0])[4:].mean(), abs=1e-4)
    assert (told["chosen_on"], told["reported_on"]) == (4, 4)


def test_several_weights_are_scaled_jointly_too(planted, run):
    folder, plain = planted
    other = Coordinate(3, None, 5, 19)
    document = run(scale.EXPERIMENT, weights=(PLANTED, other), factors=(3.0,)).as_json()
    with times(plain, {PLANTED: 3.0, other: 3.0}):
        after = losses(plain, windows(folder, 12))
    assert curve(document, "all jointly")[3.0]["nll"] == pytest.approx(after.mean(), abs=1e-4)


def test_of_one_window_no_best_factor_is_told(run):
    result = run(scale.EXPERIMENT, factors=(0.0,), settings={"windows": 1})
    assert result.as_json()["best"] == []
    assert result.as_json()["arms"][1]["delta_low"] is None
    assert "--windows" in result.outcome.findings[0]


@pytest.mark.parametrize("text", ["1,x", "", "nan", "1,,2"])
def test_what_is_no_factor_is_refused(text):
    with pytest.raises(ValueError, match=r"float|finite"):
        scale.parse_factors(text)


@pytest.mark.parametrize(
    ("factor", "low", "high", "holds"),
    [(1.5, -0.3, -0.1, True), (1.5, -0.3, 0.1, None), (2.0, 0.1, 0.3, False), (0.5, -0.3, -0.1, False)],
)
def test_the_claim_is_of_a_factor_above_1_that_another_half_confirms(factor, low, high, holds):
    found = {"of": "x", "factor": factor, "delta": (low + high) / 2, "delta_low": low, "delta_high": high}
    best = [found | {"better": high < 0}]
    assert scale._claim(best, scale.FACTORS).holds is holds
    assert scale._claim(best, (0.0, 0.5)).holds is None
    assert scale._claim([], scale.FACTORS).holds is None
