"""A weight without effect but at some positions, against plain transformers in which what it writes is taken away."""

import numpy as np
import pytest
import torch
from editing import plain_stream
from models import PROMPT_IDS

from analyzer.base.records import Coordinate
from analyzer.forward.edits import Intervention, PlacedEdit, WeightEdit

ROW, COL = 5, 19


def positioned(plain, coordinate, kept, compute):
    """Compute something while a weight of the plain model is zero, but for what it writes at the positions `kept`."""
    view, module = plain.downs[coordinate.layer, coordinate.expert], down_of(plain, coordinate.layer)

    def hook(_module, args, output):
        gone = output.clone()
        shape = output.shape
        flat, entered = gone.reshape(-1, shape[-1]), args[0].reshape(-1, args[0].shape[-1])
        away = torch.tensor([n % len(PROMPT_IDS) not in kept for n in range(len(flat))])
        flat[away, coordinate.row] -= view[coordinate.row, coordinate.col] * entered[away, coordinate.col]
        return flat.reshape(shape)

    handle = module.register_forward_hook(hook)
    found = compute()
    handle.remove()
    return found


def down_of(plain, layer):
    views = plain.downs
    return next(
        module
        for module in plain.blocks[layer].modules()
        if getattr(module, "weight", None) is not None and module.weight.data_ptr() == views[layer, None].data_ptr()
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_new", "phi", "gemma2"])
@pytest.mark.parametrize(("at", "elsewhere"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_weight_without_effect_but_at_some_positions(pair, name, at, elsewhere):
    plain, model = pair(name)
    c, positions = Coordinate(1, None, ROW, COL), frozenset({0, 3})
    edit = PlacedEdit(c, positions, at, elsewhere)
    kept = positions if at else frozenset(range(len(PROMPT_IDS))) - positions
    untouched, changed = model.runner.streams([PROMPT_IDS] * 2, [Intervention(), Intervention((edit,))])
    expected = positioned(plain, c, kept, lambda: plain_stream(plain, PROMPT_IDS))
    scale = np.abs(untouched).max()
    np.testing.assert_allclose(changed, expected, rtol=0, atol=1e-4 * scale)
    assert np.abs(changed - untouched).max() > 1e-2 * scale


def test_at_every_position_it_is_the_untouched_model_and_at_none_zeroed(pair):
    _, model = pair("mixtral")
    c = Coordinate(1, 2, ROW, COL)
    rows = [PlacedEdit(c, frozenset(range(8))), PlacedEdit(c, frozenset()), WeightEdit(c)]
    untouched, every, none, zeroed = model.runner.streams(
        [PROMPT_IDS] * 4, [Intervention(), *(Intervention((edit,)) for edit in rows)]
    )
    np.testing.assert_array_equal(every, untouched)
    np.testing.assert_array_equal(none, zeroed)
