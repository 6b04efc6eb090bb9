"""Tiny models whose blocks are of other shapes than one MLP each, with what their down projections are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from models import PROMPT_IDS, arguments, streams, with_large_weights

from analyzer.base.records import Coordinate

WIDTH, INNER, ROUTED, LAYERS = 64, 96, 72, 5
TEXT = {
    "vocab_size": 19,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 18,
    "eos_token_id": 18,
}


@dataclass(frozen=True)
class Inner:
    """A down projection, [rows, cols], the rows [2 or 1, cols, width] that feed its inputs, and the module they see."""

    down: torch.Tensor
    feeding: tuple[torch.Tensor, ...]
    module: torch.nn.Module


@dataclass(frozen=True)
class Shape:
    """A model: its class and config, its blocks, and the down projections of one block by (MLP, expert).

    `scales` are the weights of norms that follow these, which are planted with them.
    """

    name: str
    config: dict
    blocks: str
    inside: Callable
    scales: Callable = lambda block, place: ()


def dense(module, down="down_proj", feeding=("gate_proj", "up_proj")):
    weights = tuple(module.get_submodule(name).weight.data for name in feeding)
    return Inner(module.get_submodule(down).weight.data, weights, module.get_submodule(feeding[0]))


def joined(module, down="down_proj", both="gate_up_proj"):
    feeding = module.get_submodule(both)
    return Inner(module.get_submodule(down).weight.data, tuple(feeding.weight.data.chunk(2)), feeding)


def fused(module, number, name="gate_up_proj", down="down_proj"):
    gate_up = module.get_parameter(name).data[number]
    return Inner(module.get_parameter(down).data[number], tuple(gate_up.chunk(2)), module)


def every(experts, mlp=None):
    return {(mlp, number): fused(experts, number) for number in range(len(experts.down_proj))}


def of_granite(block):
    shared = joined(block.shared_mlp, "output_linear", "input_linear")
    return {(None, None): shared} | every(block.block_sparse_moe.experts)


def of_dbrx(block):
    glu = block.ffn.experts.mlp
    parts = [weight.data.view(4, INNER, WIDTH) for weight in (glu.w1, glu.v1, glu.w2)]
    return {
        (None, expert): Inner(parts[2][expert].T, (parts[0][expert], parts[1][expert]), block.ffn.experts)
        for expert in range(4)
    }


def of_minimax(block):
    return {(None, None): joined(block.mlp.shared_experts)} | every(block.mlp.experts)


def of_shared(block):
    if not hasattr(block.mlp, "experts"):
        return {(None, None): dense(block.mlp)}
    return {(None, None): dense(block.mlp.shared_experts)} | every(block.mlp.experts)


def of_jetmoe(block):
    weights = block.mlp.input_linear.weight.data, block.mlp.output_linear.weight.data
    return {(None, n): Inner(weights[1][n], tuple(weights[0][n].chunk(2)), block.mlp) for n in range(4)}


def of_inkling(block):
    found = every(block.mlp.experts, 0)
    shared = block.mlp.shared_experts
    for number in range(2):
        weights = shared.gate_proj.data[number], shared.up_proj.data[number]
        found[1, number] = Inner(shared.down_proj.data[number], weights, shared)
    return found


def of_ernie(block):
    if not hasattr(block.mlp, "text_moe"):
        return {(None, None): dense(block.mlp)}
    return {(None, None): dense(block.mlp.shared_experts)} | every(block.mlp.text_moe.experts)


def norms_of_gemma4(block, place):
    number = 1 if place[1] is None else 2
    return block.get_submodule(f"post_feedforward_layernorm_{number}").weight, block.post_feedforward_layernorm.weight


SHAPES = {
    "granitemoehybrid": Shape(
        "GraniteMoeHybridForCausalLM",
        {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 120}
        | {"layer_types": ["attention"] * LAYERS, "position_embedding_type": "rope"},
        "model.layers",
        of_granite,
    ),
    "gemma4_text": Shape(
        "Gemma4ForCausalLM",
        {**TEXT, "head_dim": 16, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
        | {"moe_intermediate_size": ROUTED, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
        | {"layer_types": ["full_attention"] * LAYERS},
        "model.layers",
        lambda block: {(None, None): dense(block.mlp)} | every(block.experts),
        norms_of_gemma4,
    ),
    "longcat_flash": Shape(
        "LongcatFlashForCausalLM",
        {key: value for key, value in TEXT.items() if key != "num_hidden_layers"}
        | {"num_key_value_heads": 4, "num_layers": LAYERS, "ffn_hidden_size": INNER, "moe_topk": 2}
        | {"expert_ffn_hidden_size": ROUTED, "n_routed_experts": 4, "zero_expert_num": 0, "q_lora_rank": 24}
        | {"kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8},
        "model.layers",
        lambda block: {(n, None): dense(mlp) for n, mlp in enumerate(block.mlps)} | every(block.mlp.experts),
    ),
    "dbrx": Shape(
        "DbrxForCausalLM",
        {key: TEXT[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        | {"d_model": WIDTH, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 64}
        | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}}
        | {"ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": INNER, "moe_num_experts": 4, "moe_top_k": 2}},
        "transformer.blocks",
        of_dbrx,
    ),
    "minimax_m3_vl_text": Shape(
        "MiniMaxM3VLForCausalLM",
        {**TEXT, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 80}
        | {"routed_scaling_factor": 2.5, "layer_types": ["full_attention"] * LAYERS, "rotary_dim": 8}
        | {"mlp_layer_types": ["sparse"] * LAYERS},
        "model.layers",
        of_minimax,
    ),
    "axk1": Shape(
        "AXK1ForCausalLM",
        {**TEXT, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2}
        | {"moe_intermediate_size": ROUTED, "mlp_layer_types": ["dense", *["sparse"] * (LAYERS - 1)]}
        | {"q_lora_rank": 24, "kv_lora_rank": 20}
        | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 1, "topk_group": 1},
        "model.layers",
        of_shared,
        lambda block, _: (block.mlp.post_mlp_layernorm.weight,),
    ),
    "deepseek_v4": Shape(
        "DeepseekV4ForCausalLM",
        {**TEXT, "head_dim": 16, "num_key_value_heads": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"n_shared_experts": 1, "moe_intermediate_size": ROUTED, "q_lora_rank": 24, "o_groups": 4, "o_lora_rank": 8}
        | {"qk_rope_head_dim": 2, "partial_rotary_factor": 0.125, "index_n_heads": 2, "index_head_dim": 16}
        | {"mlp_layer_types": ["moe"] * LAYERS, "layer_types": ["heavily_compressed_attention"] * LAYERS},
        "model.layers",
        of_shared,
    ),
    "hy_v4": Shape(
        "HYV4ForCausalLM",
        {**TEXT, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
        | {"moe_intermediate_size": ROUTED, "mlp_layer_types": ["dense", *["sparse"] * (LAYERS - 1)]}
        | {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
        | {"n_group": 1, "topk_group": 1, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64},
        "model.layers",
        of_shared,
    ),
    "gemma3n_text": Shape(
        "Gemma3nForCausalLM",
        {**TEXT, "head_dim": 16, "layer_types": ["full_attention"] * LAYERS, "num_kv_shared_layers": 0}
        | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 19, "laurel_rank": 8}
        | {"intermediate_size": [INNER] * LAYERS, "activation_sparsity_pattern": [0.0] * LAYERS},
        "model.layers",
        lambda block: {(None, None): dense(block.mlp)},
        lambda block, _: (block.post_feedforward_layernorm.weight,),
    ),
    "jetmoe": Shape(
        "JetMoeForCausalLM",
        {**TEXT, "kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
        "model.layers",
        of_jetmoe,
    ),
    "inkling_text": Shape(
        "InklingForCausalLM",
        {**TEXT, "head_dim": 16, "swa_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2}
        | {"moe_intermediate_size": ROUTED, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2}
        | {"layer_types": ["hybrid"] * LAYERS, "mlp_layer_types": ["sparse"] * LAYERS, "d_rel": 16},
        "model.layers",
        of_inkling,
    ),
    "ernie4_5_vl_moe": Shape(
        "Ernie4_5_VLMoeForConditionalGeneration",
        {
            "text_config": {
                **TEXT, "moe_intermediate_size": [ROUTED, 88], "moe_num_experts": 4, "moe_k": 2,
                "moe_num_shared_experts": 2, "mlp_layer_types": ["dense", *["sparse"] * (LAYERS - 1)],
                "rope_parameters": {"mrope_section": [3, 3, 2], "rope_theta": 500000.0, "rope_type": "default"},
            },
            "vision_config": {"depth": 3, "hidden_size": 48, "intermediate_size": 160, "num_heads": 4},
            "image_start_token_id": 15, "image_end_token_id": 15, "image_token_id": 15, "video_start_token_id": 15,
            "video_end_token_id": 15, "video_token_id": 15,
        },
        "model.language_model.layers",
        of_ernie,
    ),
    "albert": Shape(
        "AlbertForMaskedLM",
        {**TEXT, "embedding_size": 32},
        "albert.encoder.albert_layer_groups",
        lambda group: {(None, None): dense(group.albert_layers[0], "ffn_output", ("ffn",))},
        lambda group, _: (group.albert_layers[0].full_layer_layer_norm.weight,),
    ),
}  # fmt: skip


def build(name, **config):
    torch.manual_seed(0)
    model_class = getattr(transformers, SHAPES[name].name)
    model = model_class(model_class.config_class(**{**SHAPES[name].config, **config})).eval()
    return with_large_weights(model)


def inside(name, model, layer):
    """Return what is inside the block that is this layer, by (MLP, expert)."""
    blocks = model.get_submodule(SHAPES[name].blocks)
    return SHAPES[name].inside(blocks[layer])


def coordinate(name, layer, place, row, col):
    tower = "language" if name.startswith("ernie") else None
    return Coordinate(layer, place[1], row, col, tower, place[0])


@torch.no_grad()
def plant(model, name, layer, place, row, col, ratio=500.0):
    """Have one weight write a super activation of some `ratio` times the median, on the first token of PROMPT."""
    shape = SHAPES[name]
    blocks = model.get_submodule(shape.blocks)
    inner = inside(name, model, layer)[place]
    entered = arguments(model, inner.module, PROMPT_IDS)[0].reshape(-1, WIDTH)[: len(PROMPT_IDS)]
    for weights in inner.feeding:
        weights[col] = torch.linalg.pinv(entered)[:, 0] * 4  # 4 of the first token, 0 of the others
    inner.down[row] = 0
    inner.down[row, col] = 1
    if name == "albert":  # whose blocks end in a norm: nothing but the planted weight is to write the channel
        (block,) = blocks[0].albert_layers
        block.ffn_output.bias[row] = block.full_layer_layer_norm.bias[row] = block.attention.LayerNorm.bias[row] = 0
        block.attention.LayerNorm.weight[row] = 0
    for norm in shape.scales(blocks[layer], place):
        norm[row] = 1
        inner.down[row, col] = 30
    for _ in range(8):
        stream = torch.stack(streams(model, blocks, PROMPT_IDS))[layer:, 0]  # [layers, T, hidden]
        reached = (stream[:, 0, row].abs() / stream.abs().flatten(1).median(dim=1).values).min()
        scale = shape.scales(blocks[layer], place)[-1:] or (inner.down[:, col],)
        scale[0][row] *= ratio / reached
