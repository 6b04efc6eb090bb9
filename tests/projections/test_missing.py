"""What is not stored and should be: it is said, by name and number, and a model that is whole says nothing."""

import pytest
from layouts import CONFIG, HIDDEN, ROUTED, attention, dense, look, mixture, mlp, places, without

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Unread
from analyzer.projections.down_projections import find_down_projections

EXPERTS = {**CONFIG, "n_routed_experts": 4}


FIVE = {"hidden_size": HIDDEN, "num_hidden_layers": 5}


@pytest.mark.parametrize(
    "config",
    [
        FIVE,
        {"text_config": {"hidden_size": HIDDEN, "n_layer": 5}},
        {"num_hidden_layers": 3, "text_config": FIVE},
        {"thinker_config": {"text_config": FIVE}},
    ],
)
def test_layers_that_the_config_promises(config):
    (unread,) = look(dense(), **config).unread
    assert unread == Unread(
        "model.layers.*", 2, None, "config.json says it has 5 blocks; nothing of these is stored"
    )  # fmt: skip


def test_a_depth_that_no_model_has_is_only_counted():
    (unread,) = look(dense(layers=(0, 2)), **CONFIG | {"num_hidden_layers": 10**18}).unread
    assert unread.count == 10**18 - 2


def test_a_layer_within_the_stack_that_is_not_there():
    assert [each.count for each in look(dense(layers=(0, 2)), **CONFIG).unread] == [1]


@pytest.mark.parametrize(
    ("gone", "count"),
    [(("layers.2.mlp.experts.3.",), 1), (("experts.3.", "experts.0."), 4)],
)
def test_experts_that_the_config_promises(gone, count):
    for key in ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"):
        (unread,) = look(without(mixture(), *gone), **CONFIG, **{key: 4}).unread
        assert unread == Unread(
            "model.layers.*.mlp.experts.*.down_proj",
            count,
            None,
            "config.json says it has 4 experts a layer; these are not stored",
        )


@pytest.mark.parametrize(
    ("gone", "count"),
    [
        (("layers.2.mlp.experts.3.",), 1),  # the last: the router has an output for it
        (("experts.3.", "mlp.gate.weight"), 0),  # nothing tells
        (("experts.1.", "mlp.gate.weight"), 2),  # a gap in their numbers
        (("experts.1.", "experts.3."), 4),
        ((), 0),
    ],
)
def test_experts_that_are_told_by_what_is_there(gone, count):
    unread = look(without(mixture(), *gone), **CONFIG).unread
    assert sum(each.count for each in unread) == count
    assert {each.names for each in unread} <= {"model.layers.*.mlp.experts.*.down_proj"}


def test_a_layer_that_lacks_its_experts_or_its_mlp():
    """It has all that the others have, but for the MLP."""
    (unread,) = look(without(mixture(), "layers.2.mlp.experts."), **EXPERTS).unread
    assert (unread.names, unread.count) == ("model.layers.2.mlp.experts.*.down_proj", 4)
    for gone in ("layers.1.mlp.down_proj", "layers.1.mlp."):
        (unread,) = look(without(dense(), gone), **CONFIG).unread
        assert (unread.names, unread.count, unread.shape) == ("model.layers.1.mlp.down_proj", 1, None)
        assert unread.why == (
            "layer 0 has it, and all else that is stored of these blocks"
            if gone.endswith(".mlp.")
            else "what projects into it is stored, and it is not"
        )
    (unread,) = look(without(dense(), "layers.1.mlp.", "layers.2.mlp."), **CONFIG).unread
    assert (unread.names, unread.count) == ("model.layers.*.mlp.down_proj", 2)


@pytest.mark.parametrize("besides", [(), ("layers.2.input_layernorm", "layers.2.mlp.gate.")])
def test_an_expert_whose_inputs_are_there(besides):
    shapes = without(mixture(), "layers.2.mlp.experts.1.down", "layers.1.mlp.shared_experts.down", *besides)
    for config in (CONFIG, EXPERTS):
        assert [(each.names, each.count) for each in look(shapes, **config).unread] == [
            ("model.layers.1.mlp.shared_experts.down_proj", 1),
            ("model.layers.2.mlp.experts.1.down_proj", 1),
        ]


def test_what_another_tower_lost_is_not_counted_for_the_experts_of_the_text():
    shapes = without(mixture(), "layers.2.mlp.experts.3.") | without(
        mixture("vision_tower.blocks"), "blocks.2.mlp.experts.3.down"
    )
    assert [(each.names, each.count) for each in look(shapes, text_config=EXPERTS).unread] == [
        ("vision_tower.blocks.2.mlp.experts.3.down_proj", 1),
        ("model.layers.*.mlp.experts.*.down_proj", 1),
    ]


def test_a_lost_expert_in_an_mlp_of_a_long_number():
    """5,000 digits are more than Python makes a number of without being told to."""
    block = f"model.layers.1.mlp{'9' * 5000}.experts"
    shapes = dense() | mlp(f"{block}.0", ROUTED) | without(mlp(f"{block}.1", ROUTED), "down_proj")
    assert f"{block}.1.down_proj" in {each.names for each in look(shapes, **CONFIG).unread}


def test_experts_past_the_last_do_nothing():
    """LongCat stores the inputs of experts that return what they are given."""
    assert look(without(mixture(), "experts.3.down"), **CONFIG, n_routed_experts=3).unread == ()


@pytest.mark.parametrize(("asked", "count"), [((range(1, 2),), 1), ((range(1),), 0), ((range(3),), 2), (None, 2)])
def test_of_layers_that_are_asked_for_it_is_said(asked, count):
    shapes = without(dense(), "layers.1.mlp.down", "layers.2.mlp.")
    tensors = {name: ("BF16", shape) for name, shape in shapes.items()}
    found = find_down_projections("m", tensors, CONFIG, layers=asked)
    assert sum(each.count for each in found.unread) == count
    assert places(found)[0] == ["0"]


def test_groups_of_experts_are_not_groups_of_blocks():
    shapes = {}
    for layer in range(3):
        shapes |= attention(f"model.layers.{layer}")
        for group in range(2):
            shapes |= mlp(f"model.layers.{layer}.mlp.groups.{group}.experts.1", ROUTED)
            shapes |= mlp(f"model.layers.{layer}.mlp.groups.{group}.experts.0", ROUTED)
    assert places(look(shapes, **CONFIG))[0] == [
        f"{layer}.{group},{expert}" for layer in range(3) for group in range(2) for expert in range(2)
    ]


def test_blocks_between_others_of_which_nothing_is_stored():
    towers = dense("thinker.model.layers", (0, 2, 3)) | dense("talker.model.layers", (1, 2, 5))
    for config in ({"hidden_size": HIDDEN}, {"thinker_config": {"text_config": CONFIG}, "hidden_size": HIDDEN}):
        assert [(each.names, each.count) for each in look(towers, **config).unread] == [
            ("talker.model.layers.*", 2),
            ("thinker.model.layers.*", 1),
        ]


def test_blocks_that_a_tower_has_by_its_own_part_of_the_config():
    shapes = dense() | dense("vision_tower.blocks", (0, 1), hidden=12, inner=20)
    (unread,) = look(shapes, text_config=CONFIG, vision_config={"depth": 4, "hidden_size": 12}).unread
    assert (unread.names, unread.count) == ("vision_tower.blocks.*", 2)
    assert look(shapes, text_config=CONFIG, vision_config={"depth": 2, "hidden_size": 12}).unread == ()


def test_a_config_may_count_attention_and_mlp_apart():
    kinds = ["full_attention", "mlp"] * 3
    assert look(dense(), **CONFIG | {"num_hidden_layers": 6, "layer_types": kinds}).unread == ()


def test_a_router_without_any_expert_is_refused():
    said = "has no experts, but model.layers.1.mlp.gate.weight chooses from 4 of them"
    with pytest.raises(ArchitectureError, match=said):
        look(without(mixture(), ".mlp.experts."), **EXPERTS)
