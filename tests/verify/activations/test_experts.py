"""Super experts by the criterion of arXiv 2507.23279: on figures that are made up, and on a planted mixture."""

from families import FAMILIES, build
from models import PROMPT, plant_in, save, verify_folder, with_large_weights

from analyzer.base.records import Unit
from analyzer.verify.activations.experts import forming_layers, judge_experts
from analyzer.verify.records import SuperActivation, Write

ACTIVATIONS = (SuperActivation(1, 7, 0, "a", -900.0, 500.0, 9), SuperActivation(4, 3, 2, "b", 50.0, 150.0, 9))


def test_layers_that_take_an_activation_away_do_not_form_it():
    writes = (
        Write(1, 7, 0, -850.0, 0.9),
        Write(9, 7, 0, 900.0, 0.9),
        Write(4, 3, 2, 49.0, 0.5),
        Write(5, 3, 1, 9.0, 0.5),
    )
    assert forming_layers(writes, ACTIVATIONS) == {1, 4}


def place(layer, expert):
    return ("", layer, -1, expert)


def outputs(**changes):
    """Return outputs of 4 layers of 100 experts, all small, but for those named as layer_expert."""
    found = {place(layer, expert): (1.0 + expert / 100, 10) for layer in range(4) for expert in range(100)}
    return found | {place(*map(int, name[1:].split("_"))): (value, 3) for name, value in changes.items()}


def super_experts(found, forming):
    judged = judge_experts(found, forming)
    return [(each.layer, each.expert) for each in judged.values() if each.super_expert]


def test_a_super_expert_is_above_both_bounds_in_a_layer_that_forms():
    found = outputs(e1_5=900.0, e2_7=95.0)
    assert super_experts(found, {1, 2}) == [(1, 5), (2, 7)]
    assert super_experts(found, {1}) == [(1, 5)]
    assert super_experts(found | {place(2, 7): (89.0, 3)}, {1, 2}) == [(1, 5)]  # less than a tenth of the largest
    # Of 400 experts the percentile is just above the third largest.
    assert super_experts(outputs(e1_5=900.0, e1_6=890.0, e1_7=880.0), {1}) == [(1, 5), (1, 6)]
    assert super_experts(outputs(), set()) == []
    assert judge_experts({}, {1}) == {}


def test_an_expert_has_its_rank_and_its_tokens():
    judged = judge_experts(outputs(e1_5=900.0, e3_8=800.0), {1})
    other = judged[Unit(place(3, 8))]
    assert (other.output_max, other.output_rank, other.tokens, other.super_expert) == (800.0, 2, 3, False)


def test_the_expert_with_a_planted_weight_is_one(tmp_path):
    model = with_large_weights(build(FAMILIES["mixtral"]))
    expert = plant_in(model, "mixtral", layer=0)
    unit, other = Unit(place(0, expert)), Unit(place(1, 0))
    result = verify_folder(save(model, tmp_path), text=f"{PROMPT} " * 4, units=(unit, other))
    first, second = result.experts
    assert (first.layer, first.expert, first.output_rank, first.super_expert) == (0, expert, 1, True)
    assert (second.layer, second.expert, second.super_expert) == (1, 0, False)
