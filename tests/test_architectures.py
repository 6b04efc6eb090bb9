import numpy as np
import pytest

from analyzer.architectures import BlockName, DownProjection, find_down_projections, parse_down_projection
from analyzer.errors import ArchitectureError


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
    assert parse_down_projection(name) == BlockName(block, layer, expert)


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
        "modelXlayers.0.mlp.down_proj",  # the dots are dots
        "vision_tower.model.layers.0.mlp.down_proj",
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
    assert parse_down_projection(name) is None


def find(shapes, *, dtype="BF16", **config):
    return find_down_projections("m", {name: (dtype, shape) for name, shape in shapes.items()}, config)


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
    assert [(p.layer, p.expert, p.shape, p.transposed) for p in found] == [
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
    assert (found.shape, found.transposed) == (shape, transposed)


@pytest.mark.parametrize("model_type", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"])
def test_who_uses_conv1d(model_type):
    (found,) = find({GPT2: (4, 4)}, model_type=model_type)
    assert found.transposed


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


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 7)])
@pytest.mark.parametrize("transposed", [False, True])
def test_places_in_the_file_and_in_rows_and_cols(shape, transposed):
    projection = DownProjection("w", 0, None, shape, transposed)
    matrix = np.arange(shape[0] * shape[1]).reshape(shape)  # each element holds its row-major place
    stored = (matrix.T if transposed else matrix).ravel()
    assert projection.row_major(np.arange(stored.size)).tolist() == stored.tolist()
    for row in range(shape[0]):
        for col in range(shape[1]):
            assert stored[projection.file_place(row, col)] == matrix[row, col]


def test_unknown_names_are_shown():
    with pytest.raises(ArchitectureError) as caught:
        find({"blk.0.ffn_down": (4, 6), "blk.0.norm": (4,)}, model_type="new\x1b")
    assert "m (model_type new\\x1b) has no MLP down projection" in str(caught.value)
    assert "like blk.0.ffn_down" in str(caught.value)


def test_no_tensors_at_all():
    with pytest.raises(ArchitectureError, match=r"model_type None.*named like none"):
        find({})


def test_fused_experts_are_refused():
    with pytest.raises(ArchitectureError, match="3 dimensions; fused experts"):
        find({"model.layers.0.mlp.experts.down_proj": (8, 4, 6)})


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8", "F8_E5M2"])
def test_dtypes_that_cannot_be_scanned(dtype):
    with pytest.raises(ArchitectureError, match=f"is stored as {dtype}"):
        find({LLAMA: (4, 6)}, dtype=dtype)


def test_two_tensors_for_one_place():
    with pytest.raises(ArchitectureError, match="both claim layer 0"):
        find({LLAMA: (4, 6), GPT2: (4, 6)})
    with pytest.raises(ArchitectureError, match="both claim layer 0"):
        find({LLAMA: (4, 6), "model.layers.00.mlp.down_proj.weight": (4, 6)})
