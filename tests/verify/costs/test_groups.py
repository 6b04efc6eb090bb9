"""Weights that are zeroed with others first, or looked at over a window at once: what is run, and that it is so."""

import pytest
import torch
from cued import CAUSE, IDLE, SECOND, edited_loss, measure, weight
from models import TEXT_IDS, cue, hooked, random_llama, save

from analyzer.base.records import Coordinate
from analyzer.verify.costs.effects import GROUP


def many(count, *, among=()):
    """Return weights of a layer that are behind no write, and these among them."""
    idle = [Coordinate(4, None, row, 5) for row in range(count)]
    return [weight(c, "rejected") for c in (*idle, *among)]


def test_what_is_behind_no_write_is_zeroed_in_groups(cued):
    found, _, zeroed = measure(cued, many(40))
    _, first, second = zeroed  # the untouched text, and one look at each grouping
    assert [len(group) for group in (*first, *second)] == [10, 10, 10, 10] * 2
    assert sorted(c for group in first for c in group) == sorted(c for group in second for c in group)
    assert set(first) != set(second)
    for measured in found.values():
        assert (measured.effect, measured.loss, measured.loss_zeroed) == ("inert", None, None)
        assert measured.zeroed_with == 9
        assert measured.delta_high < 0.01 * edited_loss(cued[0], [])


def test_of_a_group_that_costs_something_each_is_looked_at(cued):
    model, _ = cued
    found, _, zeroed = measure(cued, many(40, among=(SECOND,)))
    _, first, second, alone, *_ = zeroed
    assert [len(group) for group in (*first, *second)] == [11, 10, 10, 10, 11, 10, 10]
    (group,) = [group for group in first if SECOND in group]
    assert sorted((c,) for c in group) == sorted(alone)
    assert {c for c, w in found.items() if w.zeroed_with is None} == set(group)
    assert sorted(c for each in second for c in each) == sorted(c for each in first if each != group for c in each)
    measured = found[SECOND]
    assert measured.effect == "critical"
    assert measured.loss_zeroed == pytest.approx(edited_loss(model, [SECOND]), rel=1e-5)


def test_groups_are_as_large_as_each_other_and_none_is_of_a_single_weight(cued):
    for count in (33, 122):
        _, _, zeroed = measure(cued, many(count))
        sizes = [len(group) for group in (*zeroed[1], *zeroed[2])]
        assert (sum(sizes), max(sizes) - min(sizes)) == (2 * count, count % 3 != 0)
        assert max(sizes) <= GROUP


def test_few_are_in_two_groups_that_differ(cued):
    _, _, zeroed = measure(cued, many(9))
    assert [len(group) for group in (*zeroed[1], *zeroed[2])] == [5, 4] * 2
    assert set(zeroed[1]) != set(zeroed[2])


def test_two_that_cancel_out_are_seen_in_another_grouping(cued, tmp_path):
    """The second undoes the first where both are zeroed; alone, each matters."""
    model = cue(random_llama(max_position_embeddings=256), 1, 7, 3, "banana", value=0.3)
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.gate_proj.weight[6], mlp.up_proj.weight[6] = mlp.gate_proj.weight[3], mlp.up_proj.weight[3]
        mlp.down_proj.weight[7, 6] = -0.3
        mlp.gate_proj.weight[8], mlp.up_proj.weight[8] = mlp.gate_proj.weight[3], mlp.up_proj.weight[3]
        mlp.down_proj.weight[7, 8] = 0.3
    pair = (CAUSE, CAUSE._replace(col=6))
    found, _, zeroed = measure((model, hooked(save(model, tmp_path))), many(40, among=pair))
    assert any({*pair} <= set(group) for group in zeroed[1]) or found[CAUSE].zeroed_with is None
    loss = edited_loss(model, [])
    assert abs(edited_loss(model, pair) - loss) < 1e-3 * loss
    assert edited_loss(model, [CAUSE]) > 1.02 * loss
    assert found[CAUSE].zeroed_with is None


def test_what_is_loud_is_looked_at_over_a_window_at_once(cued):
    """It comes to the same, and no window is run twice; nor is it for what is inert in a group."""
    windows = [TEXT_IDS * 3, TEXT_IDS * 3, TEXT_IDS]
    few, loud = many(9), [CAUSE, IDLE, Coordinate(4, None, 0, 5)]
    (slow, _, runs), (fast, _, loud_runs) = (
        measure(cued, [*few, weight(CAUSE), weight(IDLE)], windows, loud=each) for each in ((), loud)
    )
    assert loud_runs[3] == [(CAUSE,), (IDLE,)]  # after the untouched text and two groupings: whole
    assert slow[IDLE].loss_tokens == fast[IDLE].loss_tokens == 191  # of the second window, of the first
    assert fast[CAUSE] == slow[CAUSE]
    assert sum(map(len, loud_runs)) == sum(map(len, runs))
