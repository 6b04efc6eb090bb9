"""What zeroing costs, and who decides that it is critical: on a real model, each loss computed again by editing it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cued import (
    CAUSE,
    IDLE,
    SECOND,
    WINDOWS,
    edited_loss,
    measure,
    measuring_of,
    nearest_by_brute_force,
    statics_of,
    weight,
)
from models import (
    HIDDEN,
    INTERMEDIATE,
    TEXT_IDS,
    WORDS,
    cue,
    found_at,
    hooked,
    random_llama,
    save,
    verify_folder,
)

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.verify.costs.effects import (
    NEAREST_CONTROLS,
    RANDOM_CONTROLS,
    _random_weights,
    measure_asked,
    measure_columns,
    measure_joint,
)


def test_what_costs_much_more_than_its_controls_is_critical(cued):
    model, _ = cued
    found, joint, _ = measure(cued, [weight(CAUSE), weight(SECOND, "rejected"), weight(IDLE, "coincident")])
    loss = edited_loss(model, [])
    for coordinate in (CAUSE, SECOND):
        measured = found[coordinate]
        assert measured.effect == "critical"
        assert measured.loss == pytest.approx(loss, rel=1e-5)
        assert measured.loss_zeroed == pytest.approx(edited_loss(model, [coordinate]), rel=1e-5)
        assert measured.loss_zeroed > 1.02 * loss
        assert measured.loss_tokens == sum(len(ids) - 1 for ids in WINDOWS)
    assert [found[c].status for c in (CAUSE, SECOND, IDLE)] == ["confirmed", "rejected", "coincident"]
    assert joint == pytest.approx(found[CAUSE].loss_zeroed, rel=1e-6)  # of one weight


def test_both_kinds_of_controls_are_run_and_shown(cued):
    model, _ = cued
    found, _, zeroed = measure(cued, [weight(CAUSE)])
    controls = zeroed[-1]
    near = nearest_by_brute_force(model, CAUSE, NEAREST_CONTROLS)
    assert [(c,) for c in near] == controls[:NEAREST_CONTROLS]
    random = [c for (c,) in controls[NEAREST_CONTROLS:]]
    assert len(random) == RANDOM_CONTROLS
    assert all(c.layer == CAUSE.layer and c.row != CAUSE.row for c in random)
    assert all(0 <= c.row < HIDDEN and 0 <= c.col < INTERMEDIATE for c in random)
    measured, part = found[CAUSE], [WINDOWS[0][:65]]  # what settles it; the last token is judged too
    for kind, shown in ((near, measured.control_loss_nearest), (random, measured.control_loss_random)):
        worst = max(edited_loss(model, [c], part) for c in kind) - edited_loss(model, [], part)
        assert shown - measured.loss == pytest.approx(worst, abs=1e-6)
    assert measured.control_loss_max == max(measured.control_loss_nearest, measured.control_loss_random)
    assert measure(cued, [weight(CAUSE)])[2] == zeroed  # the same ones again


def test_a_random_control_is_in_another_row(cued):
    """Also for a weight in the very row that would be drawn first."""
    drawn = int(np.random.default_rng([0, 1, 0]).integers(HIDDEN, size=1000)[0])
    coordinate = Coordinate(1, None, drawn, 3)
    statics = statics_of(None)
    random = _random_weights(statics, coordinate)
    assert len(random) > 900
    assert drawn not in {c.row for c in random}
    assert _random_weights(statics, CAUSE)[0].row == drawn


def test_what_costs_no_more_than_its_controls_is_inert(cued):
    """The other cue as its control: both cost about the same."""
    found, _, _ = measure(cued, [weight(CAUSE)], nearest=lambda *_: [SECOND])
    measured = found[CAUSE]
    assert measured.effect == "inert"
    assert measured.loss_zeroed > 1.02 * measured.loss
    assert measured.control_loss_nearest == measured.control_loss_max > 1.02 * measured.loss


def test_without_any_control_nothing_is_critical(cued, monkeypatch):
    monkeypatch.setattr("analyzer.verify.costs.effects.RANDOM_CONTROLS", 0)
    found, _, _ = measure(cued, [weight(CAUSE)], nearest=lambda *_: [])
    assert (found[CAUSE].effect, found[CAUSE].control_loss_max) == ("inert", None)


def test_what_costs_nothing_is_inert_and_not_run_further(cued):
    model, _ = cued
    found, _, zeroed = measure(cued, [weight(CAUSE), weight(IDLE)])
    measured = found[IDLE]
    assert (measured.effect, measured.loss_tokens) == ("inert", len(WINDOWS[1]) - 1)
    assert measured.loss == pytest.approx(edited_loss(model, [], WINDOWS[1:]), rel=1e-5)
    assert measured.loss_zeroed == pytest.approx(measured.loss, rel=1e-6)
    assert measured.delta_low <= measured.delta <= measured.delta_high < 0.01 * measured.loss
    assert (measured.control_loss_max, measured.control_loss_nearest, measured.control_loss_random) == (None,) * 3
    untouched, first, whole, controls = zeroed
    assert (untouched, first) == ([()] * 2, [(CAUSE,), (IDLE,)])
    assert whole == [(CAUSE,)] * 2  # of the whole text, to be compared with the untouched model
    assert (IDLE,) not in controls


def test_the_interval_is_that_of_the_paired_differences(cued):
    found, _, _ = measure(cued, [weight(CAUSE)])
    measured = found[CAUSE]
    assert measured.delta == pytest.approx(measured.loss_zeroed - measured.loss, abs=1e-9)
    assert 0 < measured.delta_low < measured.delta < measured.delta_high


def test_what_matters_only_for_words_that_the_first_window_lacks_is_seen(cued):
    """At a part of the text it costs nothing at all, and no interval knows of what was not there."""
    without = [i for i in TEXT_IDS * 4 if i != WORDS.index("banana") + 1][:192]
    found, _, _ = measure(cued, [weight(CAUSE), weight(IDLE)], windows=[without, TEXT_IDS * 3])
    assert (found[CAUSE].effect, found[IDLE].effect) == ("critical", "inert")
    assert found[IDLE].loss_tokens == len(TEXT_IDS) * 3 - 1


def test_no_found_weight_is_a_control_of_another(cued):
    wanted = []

    def nearest(coordinate, count):
        wanted.append(count)
        return [SECOND._replace(layer=1), IDLE._replace(layer=1), Coordinate(1, None, 50, 50)]

    found = [weight(c) for c in (CAUSE, SECOND._replace(layer=1), IDLE._replace(layer=1))]
    _, _, zeroed = measure(cued, found, nearest=nearest)
    assert (Coordinate(1, None, 50, 50),) in zeroed[-1]
    assert not {(w.coordinate,) for w in found} & set(zeroed[-1])
    assert wanted == [NEAREST_CONTROLS + len(found)]


def test_confirmed_weights_are_zeroed_together(cued):
    model, _ = cued
    found, joint, _ = measure(cued, [weight(CAUSE), weight(SECOND), weight(IDLE, "rejected")])
    assert joint == pytest.approx(edited_loss(model, [CAUSE, SECOND]), rel=1e-5)
    assert joint > max(found[c].loss_zeroed for c in (CAUSE, SECOND)) + 0.01


def test_weights_that_cost_nothing_together_are_zeroed_over_the_whole_text_too(cued):
    model, analyzed = cued
    group = (IDLE, IDLE._replace(layer=1))
    joint = measure_joint(measuring_of(analyzed), group)
    assert joint.tokens == sum(len(ids) - 1 for ids in WINDOWS)
    assert joint.loss_zeroed == pytest.approx(edited_loss(model, group), rel=1e-5)


def test_a_column_is_looked_at_as_a_whole(cued):
    model, analyzed = cued
    measuring = measuring_of(analyzed)
    group = (CAUSE, CAUSE._replace(row=8))
    (cost,) = measure_columns(measuring, [group])
    assert cost.tokens == len(WINDOWS[1]) - 1
    part = WINDOWS[1:]
    assert cost.delta == pytest.approx(edited_loss(model, group, part) - edited_loss(model, [], part), abs=1e-5)
    assert cost.low < cost.delta < cost.high


def test_harmless_alone_and_fatal_together_is_seen(tmp_path):
    """Two weights that each write the same cue, large enough for both: without one of them little changes."""
    model = cue(random_llama(), 1, 7, 3, "banana", value=0.3)
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.gate_proj.weight[6], mlp.up_proj.weight[6] = mlp.gate_proj.weight[3], mlp.up_proj.weight[3]
        mlp.down_proj.weight[7, 6] = 0.3
    pair = [CAUSE, CAUSE._replace(col=6)]
    found, joint, _ = measure((model, hooked(save(model, tmp_path))), [weight(c) for c in pair])
    assert {w.effect for w in found.values()} == {"inert"}
    loss = found[CAUSE].loss
    assert all(w.loss_zeroed - w.loss < 0.01 * loss for w in found.values())
    assert joint > 1.02 * loss
    assert joint == pytest.approx(edited_loss(model, pair), rel=1e-5)


@pytest.mark.parametrize("tokens", [20, 148])
def test_a_single_window_is_enough(cued, tokens):
    found, _, _ = measure(cued, [weight(CAUSE)], windows=[TEXT_IDS[:20] * 8][:1] if tokens > 20 else [TEXT_IDS[:20]])
    assert found[CAUSE].effect == "critical"


def test_a_loss_that_is_no_number_is_an_error_not_inert(cued, tmp_path):
    model = random_llama()
    model.lm_head.weight.data[12] = float("nan")
    with pytest.raises(ForwardError, match="its loss on the evaluation text is not finite"):
        measure((model, hooked(save(model, tmp_path))), [weight(CAUSE)])


def test_a_zeroing_that_overflows_is_critical(cued):
    """A loss that is no number without the weight is the worst of losses, not none."""
    _, analyzed = cued
    found, _, _ = measure((cued[0], Infinite(analyzed)), [weight(CAUSE)])
    assert found[CAUSE].effect == "critical"
    assert found[CAUSE].loss_zeroed == float("inf")


class Infinite:
    """The model, but that one zeroing breaks it."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def token_losses(self, pairs):
        found = self._model.token_losses(pairs)
        return [
            np.full_like(each, np.inf) if any(edit.coordinate == CAUSE for edit in pair[1].edits) else each
            for pair, each in zip(pairs, found, strict=True)
        ]


def test_what_is_asked_for_is_run_whole_and_with_controls(cued):
    """However little it costs; it is no control of another."""
    model, analyzed = cued
    measuring = measuring_of(analyzed)
    found = measure_asked(measuring, [weight(IDLE), weight(CAUSE)], statics_of(model))
    assert [(w.coordinate, w.effect) for w in found] == [(IDLE, "inert"), (CAUSE, "critical")]
    for measured in found:
        assert measured.loss_tokens == sum(len(ids) - 1 for ids in WINDOWS)
        assert measured.loss_zeroed == pytest.approx(edited_loss(model, [measured.coordinate]), rel=1e-5)
        assert measured.control_loss_nearest is not None and measured.control_loss_random is not None


def test_a_weight_keeps_what_was_known_of_it(cued):
    known = replace(weight(CAUSE), share=0.7, activation_collapse=0.9, round=2)
    measured = measure(cued, [known])[0][CAUSE]
    assert (measured.share, measured.activation_collapse, measured.round) == (0.7, 0.9, 2)


def test_controls_are_nearest_in_magnitude_and_random(tmp_path):
    """Both of the losses that are shown, by editing each weight in a plain model."""
    model = cue(random_llama(), 2, 9, 4, "banana", value=0.5)
    result = verify_folder(save(model, tmp_path), top=1)
    weight = found_at(result, Coordinate(2, None, 9, 4))
    down = model.model.layers[2].mlp.down_proj.weight
    distance = (down.detach().abs() - 0.5).abs()
    distance[9] = float("inf")
    near = [divmod(place, down.shape[1]) for place in distance.flatten().argsort()[:2].tolist()]
    # The documented draw: rows and columns of a generator seeded with (0, layer, 0), those of the own row left out.
    generator = np.random.default_rng([0, 2, 0])
    drawn = zip(*(generator.integers(size, size=1000) for size in down.shape), strict=True)
    random = [(int(row), int(col)) for row, col in drawn if row != 9][:2]

    def at(row, col):
        return Coordinate(2, None, row, col)

    for places, shown in ((near, weight.control_loss_nearest), (random, weight.control_loss_random)):
        assert shown == pytest.approx(max(edited_loss(model, [at(*place)], [TEXT_IDS]) for place in places), rel=1e-6)
    assert weight.control_loss_max == max(weight.control_loss_nearest, weight.control_loss_random)
    assert weight.loss_zeroed == pytest.approx(edited_loss(model, [at(9, 4)], [TEXT_IDS]), rel=1e-5)
    assert weight.loss_zeroed - weight.loss > 10 * (weight.control_loss_max - weight.loss)
