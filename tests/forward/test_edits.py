"""Edits as values, and what they do while a model runs against editing the weight in plain transformers."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from editing import edited, plain_loss, plain_stream
from models import PROMPT_IDS, hooked, load_plain, save_random

from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, Intervention, WeightEdit, scaling, zeroing
from analyzer.forward.losses import losses

# Every down projection of these models has a weight at (5, 19) that matters.
ROW, COL = 5, 19
FIRST, SECOND, EXPERT = Coordinate(0, None, ROW, COL), Coordinate(2, None, ROW, COL), Coordinate(0, 1, ROW, COL)
FACTORS = (2.0, 0.5, -1.0)
# A weight of an MLP, stored either way round, of one of several experts, and of a shared one.
CASES = [("llama", FIRST), ("gpt2", FIRST), ("falcon_new", FIRST), ("qwen2_moe", SECOND), ("gpt_oss", EXPERT)]


def test_an_intervention_is_a_value():
    edit = WeightEdit(FIRST, 2.0)
    with pytest.raises(FrozenInstanceError):
        edit.factor = 3.0
    assert Intervention((edit,)) == scaling({FIRST: 2.0})
    assert zeroing([FIRST, SECOND]) == scaling({FIRST: 0.0, SECOND: 0.0})
    assert zeroing([]) == Intervention() == UNTOUCHED
    assert len({scaling({FIRST: 2.0}), scaling({FIRST: 2.0}), scaling({FIRST: 0.5}), zeroing([FIRST])}) == 3


def test_a_weight_may_not_be_edited_twice():
    for twice in (
        (WeightEdit(FIRST), WeightEdit(FIRST)),
        (WeightEdit(FIRST), WeightEdit(SECOND), WeightEdit(FIRST, 2)),
    ):
        with pytest.raises(ValueError, match="an intervention edits a weight twice"):
            Intervention(twice)
    with pytest.raises(ValueError, match="twice"):
        zeroing([SECOND, SECOND])
    Intervention((WeightEdit(FIRST), WeightEdit(FIRST._replace(expert=0)), WeightEdit(FIRST._replace(col=0))))


def test_edits_begin_to_act_at_their_layers():
    both = scaling({FIRST: 2.0, SECOND: 3.0})
    assert both.until(0) == both.until(1) == frozenset({WeightEdit(FIRST, 2.0)})
    assert both.until(2) == frozenset(both.edits)
    assert zeroing([SECOND]).until(1) == UNTOUCHED.until(9) == frozenset()


@pytest.mark.parametrize(("name", "coordinate"), CASES)
def test_scaling_equals_editing_the_weight(pair, name, coordinate):
    """The residual stream of each factor in one batch, and the loss."""
    plain, model = pair(name)
    interventions = [scaling({coordinate: factor}) for factor in FACTORS]
    found = list(model.runner.streams([PROMPT_IDS] * len(FACTORS), interventions))
    found_losses = losses(model.runner, [model.tokens.window(PROMPT_IDS)], interventions)
    scale = np.abs(plain_stream(plain, PROMPT_IDS)).max()
    for factor, stream, loss in zip(FACTORS, found, found_losses, strict=True):
        expected = edited(plain, {coordinate: factor}, lambda: plain_stream(plain, PROMPT_IDS))
        np.testing.assert_allclose(stream, expected, rtol=0, atol=1e-4 * scale)
        assert loss == pytest.approx(
            edited(plain, {coordinate: factor}, lambda: plain_loss(plain, PROMPT_IDS)), abs=1e-4
        )
    assert len({stream.tobytes() for stream in found}) == len(FACTORS)


def test_edits_with_factors_of_their_own_act_together(pair):
    plain, model = pair("llama")
    factors = {FIRST: -1.0, FIRST._replace(row=0, col=0): 100.0, SECOND: 0.5, Coordinate(1, None, ROW, COL): 0.0}
    (found,) = model.runner.streams([PROMPT_IDS], [scaling(factors)])
    expected = edited(plain, factors, lambda: plain_stream(plain, PROMPT_IDS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    (trace,) = [model.runner.trace(PROMPT_IDS, scaling(factors))]
    np.testing.assert_array_equal(trace.residual, found)


def test_a_factor_of_one_changes_nothing(pair):
    _, model = pair("gpt2")
    untouched, same = model.runner.streams([PROMPT_IDS] * 2, [UNTOUCHED, scaling({FIRST: 1.0, SECOND: 1.0})])
    assert untouched.tobytes() == same.tobytes()


@pytest.mark.parametrize(("name", "coordinate"), CASES)
def test_the_same_run_gives_the_same_bytes(pair, name, coordinate):
    _, model = pair(name)
    interventions = [UNTOUCHED, zeroing([coordinate]), scaling({coordinate: 2.0})]
    windows = [model.tokens.window(PROMPT_IDS), model.tokens.window([5, 6, 7])]
    once, again = (
        (
            [stream.tobytes() for stream in model.runner.streams([PROMPT_IDS] * 3, interventions)],
            losses(model.runner, windows, interventions),
        )
        for _ in range(2)
    )
    assert once == again


@pytest.mark.parametrize(("name", "coordinate"), CASES)
def test_an_edit_is_of_the_weight_as_the_model_has_it(tmp_path, name, coordinate):
    """Where weights are changed as they are loaded, zeroing one takes away what was loaded, not what is stored."""
    plain = load_plain(name, save_random(name, tmp_path))
    model = hooked(tmp_path, change=lambda _, tensor: tensor / 2 if tensor.ndim > 1 else tensor)
    with torch.no_grad():
        for parameter in plain.blocks.parameters():
            parameter.copy_(parameter / 2 if parameter.ndim > 1 else parameter)
    (found,) = model.runner.streams([PROMPT_IDS], [zeroing([coordinate])])
    expected = edited(plain, [coordinate], lambda: plain_stream(plain, PROMPT_IDS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    row = plain.downs[coordinate.layer, coordinate.expert][ROW].detach()
    np.testing.assert_array_equal(model.weight_row(coordinate.layer, coordinate.expert, ROW), row)
