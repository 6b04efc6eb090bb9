"""What names say: the block among several numbers, the MLP in it, the expert, what stands beside; what is no MLP."""

import pytest

from analyzer.projections.architectures import TOWERS
from analyzer.projections.names import find_modules, inputs_of, towers_of

ATTENTION = {  # what each block has beside its MLPs: the number before it is the block's
    "encoder.block.3": "layer.0.SelfAttention.q",
    "swin.encoder.layers.1.blocks.2": "attention.self.query",
    "model.layers.4": "self_attn.0.q_b_proj",
    "albert.encoder.albert_layer_groups.2.albert_layers.1": "attention.query",
    "mobilebert.encoder.layer.5": "attention.self.query",
}


@pytest.mark.parametrize(
    ("block", "mlp", "stack", "layer", "expert"),
    [
        ("encoder.block.3", "layer.1.DenseReluDense.wo", "encoder.block", 3, None),  # t5: 1 is the sublayer's
        ("encoder.block.3", "layer.1.mlp.wo", "encoder.block", 3, None),  # switch
        ("encoder.block.3", "layer.1.mlp.experts.expert_7.wo", "encoder.block", 3, 7),
        ("swin.encoder.layers.1.blocks.2", "output.dense", "swin.encoder.layers.1.blocks", 2, None),
        ("model.layers.4", "mlps.1.down_proj", "model.layers", 4, None),  # longcat: two of all in a block
        ("model.layers.4", "mlp.experts.12.down_proj", "model.layers", 4, 12),
        ("model.layers.4", "ffn.expert9.down_proj", "model.layers", 4, 9),
    ],
)
def test_the_block_among_several_numbers(block, mlp, stack, layer, expert):
    module = f"{block}.{mlp}"
    found = find_modules([module, f"{block}.{ATTENTION[block]}"])
    assert {name: (each.stack, each.layer, each.expert) for name, each in found.items()} == {
        module: (stack, layer, expert)
    }


def test_mlps_of_one_block_have_names_of_their_own():
    block = "model.layers.4"
    modules = [f"{block}.mlps.{number}.down_proj" for number in range(2)]
    found = find_modules([*modules, f"{block}.self_attn.1.q_b_proj"])
    assert {found[module].mlp for module in modules} == {"mlps.0.down_proj", "mlps.1.down_proj"}
    assert {found[module].block for module in modules} == {block}


def test_a_group_of_blocks_that_share_weights_is_the_block():
    block = "albert.encoder.albert_layer_groups.2.albert_layers.1"
    module = f"{block}.ffn_output"
    found = find_modules([module, f"{block}.ffn", f"{block}.{ATTENTION[block]}"])[module]
    assert (found.stack, found.layer, found.mlp) == (
        "albert.encoder.albert_layer_groups", 2, "albert_layers.1.ffn_output",
    )  # fmt: skip
    assert found.inputs == (f"{block}.ffn",)


def test_every_mlp_of_a_bottleneck_block():
    block = "mobilebert.encoder.layer.5"
    downs = [f"{block}.output.dense", *(f"{block}.ffn.{number}.output.dense" for number in range(3))]
    ups = [name.replace("output", "intermediate") for name in downs]
    others = [f"{block}.output.bottleneck.dense", f"{block}.attention.output.dense", f"{block}.bottleneck.input.dense"]
    found = find_modules([*downs, *ups, *others, f"{block}.{ATTENTION[block]}"])
    assert list(found) == downs
    assert {each.layer for each in found.values()} == {5}
    assert [each.inputs for each in found.values()] == [(up,) for up in ups]


@pytest.mark.parametrize(
    ("module", "layer", "expert"),
    [("blk.5.ffn_down.3", 5, 3), ("blk.5.ffn_down", 5, None), ("blk.5.ffn_down_exps", 5, None),
     ("blk.5.ffn_down_shexp", 5, None)],
)  # fmt: skip
def test_names_of_gguf(module, layer, expert):
    found = find_modules([module])[module]
    assert (found.stack, found.layer, found.expert) == ("blk", layer, expert)


@pytest.mark.parametrize(
    ("container", "down", "beside"),
    [
        ("mlp.switch_mlp", "down_proj", ("gate_proj", "up_proj")),
        ("block_sparse_moe.switch_mlp", "down_proj", ("gate_proj", "up_proj")),
        ("feed_forward.switch_glu", "down_proj", ("gate_proj", "up_proj")),
        ("experts.switch_glu", "down_proj", ("gate_proj", "up_proj")),
        ("moe.switch_mlp", "down_proj", ("gate_proj", "up_proj")),
        ("mixer.switch_mlp", "fc2", ("fc1",)),
        ("mlp.experts", "down_proj", ("gate_up_proj",)),
        ("ffn.shared_experts", "w2", ("w1", "w3")),
        ("feed_forward", "w3", ("w1", "w2")),
        ("mlp_block", "down_proj", ("gate_proj", "up_proj")),
        ("ffn", "value", ("key",)),
        ("feed_forward1", "linear2", ("linear1",)),
        ("mixer", "down_proj", ("up_proj",)),
    ],
)
def test_what_stands_beside(container, down, beside):
    """A module is known by the projections into its MLP, whatever holds them, and at any prefix."""
    for prefix in ("model.layers.1", "model.language_model.layers.1", "thinker.model.layers.1", "backbone.layers.1"):
        module = f"{prefix}.{container}.{down}"
        there = {module, *(f"{prefix}.{container}.{name}" for name in beside)}
        found = find_modules(there)
        assert module in found  # w2 and w3 are both called so beside each other: their shapes tell which it is
        assert found[module].inputs == tuple(f"{prefix}.{container}.{name}" for name in beside)
        assert found[module].layer == 1


@pytest.mark.parametrize("wrapper", ["base_layer", "linear"])
def test_a_wrapped_module_is_the_module(wrapper):
    parent = "model.layers.1.mlp"
    names = [f"{parent}.{name}.{wrapper}" for name in ("gate_proj", "up_proj", "down_proj")]
    lora = [f"{parent}.down_proj.lora_{side}.{name}" for side in "AB" for name in ("speech", "vision")]
    found = find_modules([*names, *lora])
    assert list(found) == [names[2]]
    assert found[names[2]].inputs == tuple(names[:2])
    assert found[names[2]].mlp == "mlp.down_proj"


def test_an_mlp_in_a_block_of_convolutions():
    block = "audio_tower.layers.3"
    downs = [f"{block}.conv_blocks.{number}.mlp.fc2" for number in range(2)]
    conv = [f"{block}.conv_blocks.0.conv.conv1", f"{block}.conv_blocks.0.conv.conv2", f"{block}.self_attn.q_proj"]
    found = find_modules([*downs, *(name.replace("fc2", "fc1") for name in downs), *conv])
    assert [(name, each.layer) for name, each in found.items()] == [(name, 3) for name in downs]


def test_an_mlp_of_its_own_for_queries():
    layer = "qformer.encoder.layer.1"
    modules = [f"{layer}.{part}{of}.dense" for part in ("intermediate", "output") for of in ("", "_query")]
    found = find_modules([*modules, f"{layer}.attention.attention.query"])
    assert {name: each.inputs for name, each in found.items()} == {
        f"{layer}.output{of}.dense": (f"{layer}.intermediate{of}.dense",) for of in ("", "_query")
    }


def test_no_inputs_where_one_is_missing():
    assert inputs_of("m.0.mlp.w2", {"m.0.mlp.w1", "m.0.mlp.w2"}) == ("m.0.mlp.w1",)
    assert inputs_of("m.0.mlp.down_proj", {"m.0.mlp.gate_proj"}) == ()
    assert inputs_of("b.0.output.dense", {"b.0.intermediate.dense"}) == ("b.0.intermediate.dense",)


@pytest.mark.parametrize(
    "names",
    [
        ("self_attn.out_proj", "self_attn.in_proj"),
        ("self_attn.value", "self_attn.key"),
        ("attention.output.dense", "attention.intermediate.dense"),
        ("mamba.out_proj", "mamba.in_proj"),
        ("mixer.out_proj", "mixer.in_proj"),
        ("conv.conv2", "conv.conv1"),
        ("adapter.down", "adapter.up"),
        ("mlp.adapter_layer.down", "mlp.adapter_layer.up"),
        ("router.linear2", "router.linear1"),
        ("mlp.down_proj.lora_A", "mlp.down_proj.lora_B"),
        ("position_embed.fc2x", "position_embed.fc1"),
        ("mlp.gate.down_proj", "mlp.gate.up_proj"),
        ("mlp.gate.router_mlp.out_proj", "mlp.gate.router_mlp.in_proj"),
        ("time_mixing.value", "time_mixing.key"),
        ("mlp.gate.weights_out_of", "mlp.gate.weights_in"),
    ],
)
def test_what_is_no_mlp(names):
    assert find_modules([f"model.layers.0.{name}" for name in names]) == {}


@pytest.mark.parametrize("stack", ["mtp.layers", "mtp", "model.mtp.layers", "model.mtp_layers", "model.mtp_blocks",
                                   "nextn.layers", "model.nextn_predict_layers", "mtp_predictor.layers"])  # fmt: skip
def test_what_predicts_further_tokens_is_a_tower_apart(stack):
    assert towers_of(["model.layers", stack], TOWERS) == {"model.layers": None, stack: "mtp"}
    named = towers_of(["model.language_model.layers", stack, "model.visual.blocks"], TOWERS)
    assert list(named.values()).count("mtp") == 1
    assert named["model.language_model.layers"] == "language"
