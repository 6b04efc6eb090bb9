"""Edits as values, and what they do while a model runs against editing the weight in plain transformers."""

from contextlib import ExitStack, contextmanager
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
import torch
from editing import edited, plain_loss, plain_stream
from models import PROMPT_IDS, hooked, load_plain, save_random

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, Intervention, WeightEdit, scaling, zeroing
from analyzer.forward.interception import intercepted
from analyzer.forward.losses.plain import losses

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
        with pytest.raises(ForwardError, match="an intervention edits 0,5,19 twice: give one edit of it"):
            Intervention(twice)
    with pytest.raises(ForwardError, match="2,5,19 twice"):
        zeroing([SECOND, SECOND])
    Intervention((WeightEdit(FIRST), WeightEdit(FIRST._replace(expert=0)), WeightEdit(FIRST._replace(col=0))))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), 10**400, "x", None])
def test_a_factor_is_a_finite_number(factor):
    with pytest.raises(ForwardError, match=r"^weight 0,5,19 times .+: give a finite number$"):
        scaling({FIRST: factor})


@pytest.mark.parametrize(
    "coordinate",
    [
        (0, None, ROW, COL),
        "0,5,19",
        *(FIRST._replace(**{axis: value}) for axis in ("layer", "row", "col") for value in ("5", 5.0, True, -1, None)),
        *(FIRST._replace(expert=value) for value in ("1", 1.0, -1)),
    ],
)
def test_a_weight_is_a_coordinate_of_integers(coordinate):
    with pytest.raises(ForwardError, match=r"^.+ is no weight: give a Coordinate of integers from 0$"):
        WeightEdit(coordinate)


def test_numbers_of_numpy_are_numbers(pair):
    _, model = pair("llama")
    numbered = Coordinate(np.int64(0), None, np.int32(ROW), np.uint8(COL))
    ours, numpys = model.runner.streams([PROMPT_IDS] * 2, [scaling({FIRST: 2.0}), scaling({numbered: np.float32(2)})])
    assert ours.tobytes() == numpys.tobytes()


def test_edits_act_in_the_blocks_of_their_layers():
    both = scaling({FIRST: 2.0, SECOND: 3.0})
    assert both.before(1) == both.before(2) == both.within([0, 1]) == frozenset({WeightEdit(FIRST, 2.0)})
    assert both.before(3) == both.within([0, 2]) == frozenset(both.edits)
    assert both.within([1]) == zeroing([SECOND]).before(2) == UNTOUCHED.before(9) == frozenset()


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
    np.testing.assert_array_equal(model.weight_row(coordinate.place, ROW), row)


@dataclass(frozen=True)
class ChannelEdit:
    """A channel of what an MLP adds, or of the residual stream after a block, set to a value at some positions."""

    layer: int
    channel: int
    value: float
    positions: tuple[int, ...]
    of_stream: bool = False
    weights: tuple[Coordinate, ...] = ()

    @property
    def key(self):
        return self.layer, self.channel, self.of_stream

    def hook(self, tokens, index):
        """Return a hook that sets the channel in the row at `index()` of what a module gives; None is no row."""

        def hook(_module, _args, output):
            if index() is None:
                return output
            whole = isinstance(output, tuple)
            changed = (output[0] if whole else output).clone()
            changed.view(-1, tokens, changed.shape[-1])[index(), list(self.positions), self.channel] = self.value
            return (changed, *output[1:]) if whole else changed

        return hook


@contextmanager
def with_channels(blocks, interventions, values, rows, tokens, record=None):
    """Stands for an interception that also does the edit above: it is given what that one is given."""

    def is_channel(edit):
        return isinstance(edit, ChannelEdit)

    def in_hand(row):
        return rows().index(row) if row in rows() else None

    others = [Intervention(tuple(e for e in each.edits if not is_channel(e))) for each in interventions]
    with intercepted(blocks, others, values, rows, tokens, record), ExitStack() as stack:
        for row, intervention in enumerate(interventions):
            for edit in filter(is_channel, intervention.edits):
                block = blocks[edit.layer]
                module = block.module if edit.of_stream else block.mlps[0].whole
                index = (lambda row=row: row) if edit.of_stream else (lambda row=row: in_hand(row))
                stack.callback(module.register_forward_hook(edit.hook(tokens, index)).remove)
        yield


@pytest.mark.parametrize("row_bytes", [1, 1 << 27])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_new", "qwen2_moe"])
def test_another_kind_of_edit_needs_only_its_record_and_its_doing(pair, monkeypatch, name, row_bytes):
    """The runner and losses, as they are, run one that needs no weights, beside weights' own and alone."""
    plain, model = pair(name)
    monkeypatch.setattr("analyzer.forward.runner.intercepted", with_channels)
    monkeypatch.setattr(model.blocks.rows, "row_bytes", row_bytes)
    of_mlp, of_stream = ChannelEdit(1, 7, 30.0, (0, 2)), ChannelEdit(0, 7, -30.0, (1,), of_stream=True)
    sets = [(), (of_mlp,), (of_stream,), (of_mlp, of_stream, WeightEdit(SECOND)), (WeightEdit(SECOND),), (of_mlp,)]
    interventions = [Intervention(edits) for edits in sets]
    found = list(model.runner.streams([PROMPT_IDS] * len(sets), interventions))
    found_losses = losses(model.runner, [model.tokens.window(PROMPT_IDS)], interventions)
    for edits, stream, loss in zip(sets, found, found_losses, strict=True):
        with ExitStack() as stack:
            for edit in (each for each in edits if isinstance(each, ChannelEdit)):
                module = plain.blocks[edit.layer] if edit.of_stream else plain.blocks[edit.layer].mlp
                hook = edit.hook(len(PROMPT_IDS), lambda: 0)
                stack.callback(module.register_forward_hook(hook).remove)
            weights = [c for edit in edits for c in edit.weights]
            expected = edited(plain, weights, lambda: plain_stream(plain, PROMPT_IDS))
            expected_loss = edited(plain, weights, lambda: plain_loss(plain, PROMPT_IDS))
        np.testing.assert_allclose(stream, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert loss == pytest.approx(expected_loss, abs=1e-4)
    assert len(set(found_losses)) == len(sets) - 1  # the first edit's two rows are alike, and run once
    np.testing.assert_array_equal(found[2][0, 1, 7], -30.0)
    trace = model.runner.trace(PROMPT_IDS, interventions[3])
    np.testing.assert_allclose(trace.residual, found[3], rtol=0, atol=1e-4 * np.abs(found[3]).max())
    np.testing.assert_array_equal(trace.outputs[1][0, [0, 2], 7], 30.0)


def test_each_kind_of_edit_says_what_it_changes():
    channel = ChannelEdit(1, 7, 30.0, (0,))
    assert Intervention((channel, WeightEdit(FIRST), replace(channel, of_stream=True))).before(1) == {WeightEdit(FIRST)}
    with pytest.raises(ForwardError, match=r"an intervention edits \(1, 7, False\) twice"):
        Intervention((channel, WeightEdit(FIRST), replace(channel, value=2.0)))


def test_an_edit_that_nothing_does_is_refused(pair):
    _, model = pair("llama")
    nothing = Intervention((WeightEdit(FIRST), ChannelEdit(1, 7, 30.0, (0,))))
    for run in (model.runner.states, lambda *rows: list(model.runner.streams(*rows))):
        with pytest.raises(ForwardError, match="ChannelEdit is a kind of edit that this version cannot do"):
            run([PROMPT_IDS], [nothing])
