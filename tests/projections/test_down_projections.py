"""Names to towers, layers and experts, which way round a matrix lies, patterns, contradictions."""

import re

import pytest

from analyzer.base.errors import ArchitectureError
from analyzer.projections.down_projections import find_down_projections
from analyzer.projections.names import find_modules


@pytest.mark.parametrize(
    ("name", "block", "layer", "expert"),
    [
        ("model.layers.0.mlp.down_proj", "model.layers.0", 0, None),  # llama, mistral, qwen, gemma, olmo2, ...
        ("model.layers.79.mlp.down_proj", "model.layers.79", 79, None),
        ("layers.3.mlp.down_proj", "layers.3", 3, None),  # saved without its head
        ("transformer.h.11.mlp.c_proj", "transformer.h.11", 11, None),  # gpt2
        ("h.11.mlp.c_proj", "h.11", 11, None),
        ("transformer.h.5.mlp.dense_4h_to_h", "transformer.h.5", 5, None),  # falcon, bloom
        ("gpt_neox.layers.5.mlp.dense_4h_to_h", "gpt_neox.layers.5", 5, None),
        ("transformer.h.27.mlp.fc_out", "transformer.h.27", 27, None),  # gptj
        ("transformer.blocks.1.ffn.down_proj", "transformer.blocks.1", 1, None),  # mpt
        ("model.layers.2.mlp.fc2", "model.layers.2", 2, None),  # phi
        ("model.decoder.layers.2.fc2", "model.decoder.layers.2", 2, None),  # opt
        ("model.transformer.blocks.4.ff_out", "model.transformer.blocks.4", 4, None),  # olmo
        ("model.layers.4.feed_forward.w2", "model.layers.4", 4, None),  # internlm2
        ("bert.encoder.layer.0.output.dense", "bert.encoder.layer.0", 0, None),
        ("model.layers.7.block_sparse_moe.experts.3.w2", "model.layers.7", 7, 3),  # mixtral
        ("model.layers.47.mlp.experts.127.down_proj", "model.layers.47", 47, 127),  # qwen3_moe
        ("model.layers.1.mlp.shared_expert.down_proj", "model.layers.1", 1, None),  # qwen2_moe
        ("model.layers.1.mlp.shared_experts.down_proj", "model.layers.1", 1, None),  # deepseek
    ],
)
def test_names_of_down_projections(name, block, layer, expert):
    parsed = find_modules([name])[name]
    assert (parsed.stack, parsed.layer, parsed.expert) == (block.rpartition(".")[0], layer, expert)
    assert parsed.block == block


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.self_attn.o_proj",
        "transformer.h.0.attn.c_proj",
        "bert.encoder.layer.0.attention.output.dense",
        "model.layers.0.block_sparse_moe.experts.3.w1",
        "model.layers.0.mlp.down_proj.bias",
        "model.layers.0.mlp.down_proj.qweight",
        "model.layers.0.mlp.down_proj.lora_A",
        "model.layers.0Xmlp.down_proj",  # the dots are dots
        "layers.mlp.down_proj",
        "model.layers.0.mlp.down_proj.extra",
        "model.layers.0\n.mlp.down_proj",
        "model.layers.x.mlp.down_proj",
        "model.layers.-1.mlp.down_proj",
        "model.layers.\u0663.mlp.down_proj",  # a digit, but not one of ASCII
        "model.layers.{bid}.mlp.down_proj",
        "model.layers.123456.mlp.down_proj",  # no model is that deep; a number in a name is not a size to trust
        "",
    ],
)
def test_other_names(name):
    assert find_modules([name]) == {}


def find(shapes, *, dtype="BF16", pattern=None, **config):
    tensors = {name: (dtype, shape) for name, shape in shapes.items()}
    return find_down_projections("m", tensors, config, pattern=pattern).projections


def test_down_projections_come_by_layer_and_expert():
    names = [
        "model.layers.10.mlp.down_proj.weight",
        "model.layers.9.mlp.experts.10.down_proj.weight",
        "model.layers.9.mlp.experts.9.down_proj.weight",
        "model.layers.9.mlp.shared_expert.down_proj.weight",
        "model.layers.9.mlp.gate_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.2.mlp.down_proj.bias",
    ]
    found = find(dict.fromkeys(names, (4, 6)), hidden_size=4)
    assert [(p.layer, p.expert, p.shape, p.matrix.transposed) for p in found] == [
        (2, None, (4, 6), False),
        (9, None, (4, 6), False),
        (9, 9, (4, 6), False),
        (9, 10, (4, 6), False),
        (10, None, (4, 6), False),
    ]
    assert found[2].name == "model.layers.9.mlp.experts.9.down_proj.weight"


GPT2 = "transformer.h.0.mlp.c_proj.weight"
LLAMA = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("name", "stored", "config", "shape", "transposed"),
    [
        (LLAMA, (4, 6), {"model_type": "llama", "hidden_size": 4}, (4, 6), False),
        (GPT2, (6, 4), {"model_type": "gpt2", "n_embd": 4}, (4, 6), True),
        (GPT2, (4, 4), {"model_type": "gpt2", "n_embd": 4}, (4, 4), True),  # square: only the model type tells
        (GPT2, (4, 6), {"model_type": "gpt_bigcode", "n_embd": 4}, (4, 6), False),  # the same name, but Linear
        (GPT2, (6, 4), {"model_type": "gpt2"}, (4, 6), True),
        (LLAMA, (4, 6), {}, (4, 6), False),
        (LLAMA, (4, 6), {"model_type": ["gpt2"], "hidden_size": "6"}, (4, 6), False),  # nonsense says nothing
        (LLAMA, (5, 7), {"hidden_size": 4}, (5, 7), False),  # neither side: no proof of the contrary
    ],
)
def test_which_way_round(name, stored, config, shape, transposed):
    (found,) = find({name: stored}, **config)
    assert (found.shape, found.matrix.transposed) == (shape, transposed)


@pytest.mark.parametrize("model_type", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"])
def test_who_uses_conv1d(model_type):
    (found,) = find({GPT2: (4, 4)}, model_type=model_type)
    assert found.matrix.transposed


@pytest.mark.parametrize(
    ("name", "stored", "config", "said"),
    [
        (GPT2, (6, 4), {"model_type": "llama", "n_embd": 4}, "6 output and 4 input channels"),
        (GPT2, (4, 6), {"model_type": "gpt2", "n_embd": 4}, "6 output and 4 input channels"),
        (LLAMA, (6, 4), {"model_type": "llama", "hidden_size": 4}, "the hidden size is 4"),
        (LLAMA, (6, 4), {"d_model": 4}, "the other way round"),
    ],
)
def test_a_shape_that_contradicts_the_config(name, stored, config, said):
    with pytest.raises(ArchitectureError, match=said):
        find({name: stored}, **config)


def test_unknown_names_are_shown_with_the_option_that_scans_them():
    shapes = {f"blk.{layer}.{name}": shape for layer in range(3) for name, shape in UNKNOWN.items()}
    with pytest.raises(ArchitectureError) as caught:
        find(shapes, model_type="new\x1b", hidden_size=4)
    message = str(caught.value)
    assert "m (model_type new\\x1b) has no MLP down projection that this version knows" in message
    assert "could be: blk.*.back_again.weight [4, 6] x 3; " in message
    assert message.endswith("scan the right ones with --tensors 'blk.*.back_again.weight'")
    assert "norm" not in message


UNKNOWN = {"attn.weight": (4, 4), "up_there.weight": (6, 4), "back_again.weight": (4, 6), "norm.weight": (4,)}


def test_a_pattern_names_the_tensors():
    shapes = {f"blk.{layer}.{name}": shape for layer in (3, 10) for name, shape in UNKNOWN.items()}
    found = find(shapes, hidden_size=4, pattern="blk.*.back_again.*")
    assert [(p.tower, p.layer, p.expert, p.shape, p.name) for p in found] == [
        (None, 3, None, (4, 6), "blk.3.back_again.weight"),
        (None, 10, None, (4, 6), "blk.10.back_again.weight"),
    ]
    # No name tells which way round it lies, so the hidden size does.
    (turned, _) = find(shapes, hidden_size=4, pattern="blk.*.up_there.*")
    assert (turned.shape, turned.matrix.transposed) == ((4, 6), True)


def test_the_second_number_of_a_pattern_is_the_expert():
    shapes = {f"net.{layer}.moe.{expert}.out": (4, 6) for layer in range(2) for expert in range(3)}
    found = find(shapes, pattern="net.*.out")
    assert [(p.layer, p.expert) for p in found] == [(layer, expert) for layer in range(2) for expert in range(3)]
    (one, *rest) = find({"net.1.moe.out": (3, 4, 6)}, pattern="net.*")
    assert (one.layer, one.expert, one.shape, len(rest)) == (1, 0, (4, 6), 2)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("nothing", "has no tensor of two or more dimensions that matches --tensors nothing"),
        ("blk.*.norm.weight", "has no tensor of two or more dimensions"),
        ("blk.*", "both claim layer 0: narrow --tensors blk.*"),
        ("embed*", "embed.weight has no layer's number in its name"),
    ],
)
def test_patterns_that_name_no_down_projections(pattern, said):
    shapes = {f"blk.0.{name}": shape for name, shape in UNKNOWN.items()} | {"embed.weight": (9, 4)}
    with pytest.raises(ArchitectureError, match=re.escape(said)):
        find(shapes, pattern=pattern)


def test_no_tensors_at_all():
    with pytest.raises(ArchitectureError, match=r"model_type None.*no matrix in numbered layers at all"):
        find({})


@pytest.mark.parametrize(
    ("stacks", "towers"),
    [
        (["model.layers"], [None]),
        (["encoder.layer"], [None]),  # a model's only stack needs no name
        (["model.layers", "visual.blocks"], ["language", "vision"]),
        (["language_model.model.layers", "vision_tower.encoder.layers"], ["language", "vision"]),
        (["text_model.encoder.layers", "vision_model.encoder.layers"], ["text", "vision"]),
        (["decoder.block", "encoder.block"], ["decoder", "encoder"]),
        (["model.layers", "mtp.layers"], [None, "mtp"]),
        (["audio_tower.layers", "model.layers", "visual.blocks"], ["audio", "language", "vision"]),
        (["a.encoder.x", "b.encoder.x"], ["a.encoder.x", "b.encoder.x"]),  # the same word for both tells nothing
        (["a.layers", "b.layers"], ["a.layers", "b.layers"]),
    ],
)
def test_towers(stacks, towers):
    found = find({f"{stack}.0.mlp.down_proj.weight": (4, 6) for stack in stacks})
    named = {p.name.removesuffix(".0.mlp.down_proj.weight"): p.tower for p in found}
    assert named == dict(zip(stacks, towers, strict=True))


FUSED = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("shape", "config", "expected", "transposed"),
    [
        ((8, 4, 6), {"hidden_size": 4}, (4, 6), False),
        ((8, 6, 4), {"hidden_size": 4}, (4, 6), True),  # the hidden size tells
        ((8, 4, 4), {"hidden_size": 4, "model_type": "qwen3_moe"}, (4, 4), False),
        ((8, 4, 4), {"hidden_size": 4, "model_type": "gpt_oss"}, (4, 4), True),
        ((8, 6, 4), {"text_config": {"hidden_size": 4, "model_type": "llama4_text"}}, (4, 6), True),
        ((8, 4, 6), {}, (4, 6), False),
    ],
)
def test_fused_experts(shape, config, expected, transposed):
    found = find({FUSED: shape}, **config)
    assert [(p.layer, p.expert) for p in found] == [(0, expert) for expert in range(8)]
    assert {(p.shape, p.matrix.transposed) for p in found} == {(expected, transposed)}
    size = 2 * shape[1] * shape[2]
    assert [p.matrix.data.start for p in found] == [expert * size for expert in range(8)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(FUSED, (1 << 40, 0, 4)), (FUSED, (100_000, 1, 1)), (FUSED, (2, 2, 2, 2)), (LLAMA, (2, 4, 6)), (LLAMA, (0, 6))],
)
def test_shapes_that_no_down_projection_has(name, shape):
    with pytest.raises(ArchitectureError, match=re.escape(name)):
        find({name: shape})


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E8M0", "F4"])
def test_dtypes_that_are_not_numbers_by_themselves(dtype):
    with pytest.raises(ArchitectureError, match=f"is stored as {dtype}"):
        find({LLAMA: (4, 6)}, dtype=dtype)


def test_two_tensors_for_one_place():
    with pytest.raises(ArchitectureError, match="both claim layer 0"):
        find({LLAMA: (4, 6), "model.layers.0.mlp.fc2.weight": (4, 6)})
    with pytest.raises(ArchitectureError, match="both claim layer 0"):
        find({LLAMA: (4, 6), "model.layers.00.mlp.down_proj.weight": (4, 6)})


def test_the_mlps_of_a_block_count_by_their_names_2_before_10():
    longest = "9" * 5000  # more digits than Python makes a number of without being told to
    names = [f"model.layers.0.mlps{number}.down_proj.weight" for number in ("2", "10", "100", longest)]
    inputs = {name.replace("down", "up"): (6, 4) for name in names}
    found = find(dict.fromkeys(names[::-1], (4, 6)) | inputs)
    assert [(each.mlp, each.name) for each in found] == list(enumerate(names))
