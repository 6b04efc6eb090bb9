"""Default configurations made tiny, by what the names of their fields say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VOCABULARY = 300
HEADS = 4


@dataclass(frozen=True)
class Width:
    """The sizes of one kind of tower, distinct from those of the others, so that shapes tell things apart."""

    hidden: int
    inner: int
    layers: int

    @property
    def head(self) -> int:
        """Channels of one attention head."""
        return self.hidden // HEADS


WIDTHS = {"text": Width(64, 176, 4), "vision": Width(48, 160, 3), "audio": Width(80, 208, 3)}
EXPERT_INNER, SHARED_INNER = 72, 120

Shrink = Callable[["Node", int], int]


@dataclass(frozen=True)
class Node:
    """A configuration or a part of it: which kind of tower, and how many blocks it has by default."""

    kind: str
    fields: Mapping[str, Any]

    @property
    def width(self) -> Width:
        """The sizes of this kind of tower."""
        return WIDTHS[self.kind]


def at_most(limit: int) -> Shrink:
    """Return what keeps sizes up to a limit."""
    return lambda _node, old: min(old, limit)


def always(value: int) -> Shrink:
    """Return what replaces any size by one value."""
    return lambda _node, _old: value


def hidden(node: Node, _old: int) -> int:
    """Return the width of the residual stream."""
    return node.width.hidden


def text_hidden(_node: Node, _old: int) -> int:
    """Return the width of the text tower."""
    return WIDTHS["text"].hidden


def vision_hidden(_node: Node, _old: int) -> int:
    """Return the width of the vision tower."""
    return WIDTHS["vision"].hidden


def audio_hidden(_node: Node, _old: int) -> int:
    """Return the width of the audio tower."""
    return WIDTHS["audio"].hidden


def inner(node: Node, _old: int) -> int:
    """Return the inner width of an MLP."""
    return node.width.inner


def layers(node: Node, old: int) -> int:
    """Return how many blocks a tower has."""
    return min(old, node.width.layers)


def head(node: Node, old: int) -> int:
    """Return the size of an attention head."""
    return 8 if old == node.fields.get("qk_rope_head_dim") else node.width.head


def key_heads(node: Node, old: int) -> int:
    """Return how many heads keys have."""
    heads = next((node.fields[n] for n in ("num_attention_heads", "n_heads") if n in node.fields), None)
    return HEADS if old == heads else min(old, 2)


def image(node: Node, old: int) -> int:
    """Return the size of an image, a few patches."""
    patch = node.fields.get("patch_size")
    return 4 * patch if isinstance(patch, int) and 4 * patch < old else min(old, 64)


def window(node: Node, old: int) -> int:
    """Return the size of an attention window."""
    patch = node.fields.get("patch_size")
    return 4 * patch if isinstance(patch, int) and old > patch else min(old, 8)


# What a number's name says, the first that matches: sizes that nothing here names stay as they are.
RULES: tuple[tuple[str, Shrink], ...] = tuple(
    (pattern, shrink)
    for pattern, shrink in (
        (r"type_vocab_size", at_most(4)),
        (r"codebook_size", at_most(256)),
        (r".*vocab.*|num_embeddings", at_most(VOCABULARY)),
        (r"q_lora_rank", at_most(24)),
        (r"kv_lora_rank", at_most(20)),
        (r"o_lora_rank|.*_rank|.*lowrank", at_most(8)),
        (r"qk_rope_head_dim", at_most(8)),
        (r"qk_nope_head_dim|v_head_dim", at_most(16)),
        (r"qk_head_dim", at_most(24)),
        (r"index_head_dim|indexer_head_dim", at_most(16)),
        (r"index_n_heads|indexer_n_heads", at_most(2)),
        (r"index_topk.*", at_most(8)),
        (r"linear_num_key_heads|.*mamba.*n_?groups|n_groups|num_groups|mamba_ngroups", at_most(2)),
        (r"linear_num_value_heads|linear_num_heads", always(4)),
        (r"linear_(key_|value_)?head_dim", always(16)),
        (r"mamba_(n_heads|num_heads)|n_mamba_heads", always(8)),
        (r"mamba_(d_head|head_?dim)", always(16)),
        (r"mamba_d_state|ssm_state_size|state_size", at_most(16)),
        (r"mamba_d_ssm|mamba_intermediate_size", always(128)),
        (r"(mamba_|attention_)?chunk_size|.*attn_chunk_length", at_most(16)),
        (r"rotary_dim", at_most(8)),
        (r"hidden_size_per_layer_input", at_most(16)),
        (r"mamba_dt_rank|time_step_rank", always(8)),
        (r"lru_width", hidden),
        (r"attention_hidden_size", lambda node, _old: 2 * node.width.hidden),
        (r".*(num|n)_(key_value|kv)_heads.*|num_query_groups|kv_n_heads|multi_query_group_num", key_heads),
        (r".*(num|n)_.*heads?|n_heads?|num_heads|.*attention_heads|resampler_heads", at_most(HEADS)),
        (r".*_head_dim|head_dim|d_head|dim_head|d_kv|kv_channels|attention_head_size|.*_dim_head", head),
        (r"(n|num)_(group|expert_group)|topk_group", always(1)),
        (r".*n_shared_experts|.*num_shared_experts", at_most(2)),
        (r".*experts_per_tok(en)?|.*top_?k(_experts)?|moe_k", at_most(2)),
        (r".*(n|num)_(routed_|local_)?experts", at_most(4)),
        (r".*shared_.*intermediate_size|share_expert_dim", always(SHARED_INNER)),
        (r"moe_latent_size", at_most(24)),
        (r"moe_.*intermediate_size|expert_ffn_hidden_size|moe_ffn_hidden_size", always(EXPERT_INNER)),
        (r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|d_inner|n_inner|mlp_dim", inner),
        (r"(encoder_|decoder_)?(num_)?(encoder_|decoder_)?(hidden_)?layers|n_layers?|depth|.*num_.*layers", layers),
        (r"num_blocks", layers),
        (
            r"out_hidden_size|adapter_out_dim|text_hidden_size|vision_output_dim|.*out(put)?_hidden_size|.*projection_dim",
            text_hidden,
        ),
        (r"vision_hidden_size|mm_hidden_size|image_hidden_size", vision_hidden),
        (r"audio_hidden_size", audio_hidden),
        (
            r".*hidden_size.*|adapter_in_dim|adapter_input_size|d_model|n_embd|hidden_dim|dim|embed_dim|.*embed_proj_dim|d_embed|emb_dim",
            hidden,
        ),
        (r".*embedding_size|embedding_dim", hidden),
        (r"max_.*position.*|n_positions|max_seq_len|n_ctx|max_.*positions|context_length|seq_len(gth)?", at_most(128)),
        (r"window_size", window),
        (r"sliding_window.*|.*window_size|local_attention|local_radius", at_most(8)),
        (r"image_size|force_image_size|img_size", image),
        (r".*(_period|_interval|_step|_frequency|_every_n_layers|_pattern|layer_group_size)", at_most(2)),
        (r"zero_expert_num", at_most(2)),
        (r"first_k_dense_replace|num_dense_layers|.*_layer_offset", at_most(1)),
    )
)

INDEX_LISTS = re.compile(r".*(indexes|indices|_idxs|_ids|_layers|feature_layer|insert_layer_id|layer_map)")
LAYER_COUNTS = re.compile(
    r"(num_)?(hidden_)?(decoder_)?(encoder_)?layers|n_layers?|depth|num_blocks|.*num_.*hidden_layers"
)
NOT_LAYERS = re.compile(r".*(mtp|nextn|adapter|lstm|residual|dense|kv_shared|sparse|conv|global|input|output).*")
TOKENS = re.compile(r".*(token_ids?|token_index|_id|_index|start_id|end_id)")
KINDS = (("vision", r"vision|visual|vit|image|siglip|clip"), ("audio", r"audio|speech|whisper|conformer|encoder_audio"))


ROPE_SECTIONS = re.compile(r".*mrope_section")
# Fields that are null by default, and are filled where a model cannot be built without them.
FILLED = {
    "head_dim": 0,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "q_lora_rank": 24,
}


def shrunk(config: Mapping[str, Any], kind: str = "text") -> dict[str, Any]:
    """Return a configuration's fields with the sizes made tiny, those of its parts too."""
    node = Node(kind, config)
    old_layers = _layer_count(config)
    indices = _kept_layers(config, old_layers, node.width.layers)
    small: dict[str, Any] = {}
    for name, value in config.items():
        if name in DROPPED:
            continue
        if name == "per_layer_config" and isinstance(value, Mapping):
            small[name] = {
                position: shrunk(value[key], kind)
                for position, index in enumerate(indices)
                for key in value
                if int(key) == index
            }
        elif isinstance(value, Mapping):
            part = "model_type" in value
            small[name] = (
                shrunk(value, _kind(name, value, kind))
                if part
                else _small_rope(value, node)
                if "rope" in name
                else dict(value)
            )
        elif isinstance(value, list):
            small[name] = _small_list(name, value, node, old_layers, indices)
        elif type(value) is int:
            small[name] = _small_number(name, value, node)
        else:
            small[name] = value
    if old_layers is not None:
        for name in small:
            if LAYER_COUNTS.fullmatch(name) and config[name] == old_layers:
                small[name] = len(indices)
    return merged(small, OVERRIDES.get(str(config.get("model_type")), {}))


def filled(config: Mapping[str, Any], kind: str = "text") -> dict[str, Any]:
    """Return the fields with those that are null, and that some classes need, filled."""
    full = dict(config)
    for name, value in config.items():
        if isinstance(value, Mapping) and "model_type" in value:
            full[name] = filled(value, _kind(name, value, kind))
        elif value is None and name in FILLED:
            full[name] = FILLED[name] or WIDTHS[kind].head
    return full


def ungrouped(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with as many key heads as heads."""
    plain = {name: ungrouped(v) if isinstance(v, Mapping) else v for name, v in config.items()}
    if type(plain.get("num_key_value_heads")) is int:
        plain["num_key_value_heads"] = plain["num_attention_heads"]
    return plain


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with these changed, in parts of parts too."""
    result = dict(config)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _kind(name: str, config: Mapping[str, Any], parent: str) -> str:
    words = f"{name} {config.get('model_type')}"
    if name in ("text_config", "llm_config", "decoder", "language_config"):
        return "text"
    return next((kind for kind, pattern in KINDS if re.search(pattern, words)), parent)


def _layer_count(config: Mapping[str, Any]) -> int | None:
    names = [name for name in config if LAYER_COUNTS.fullmatch(name) and not NOT_LAYERS.fullmatch(name)]
    counts = [config[n] for n in sorted(names, key=lambda n: n != "num_hidden_layers") if type(config[n]) is int]
    return counts[0] if counts else None


def _kept_layers(config: Mapping[str, Any], count: int | None, wanted: int) -> list[int]:
    """Return which blocks are kept: one of each kind that lists with an entry a block tell apart, then the first."""
    if count is None or count <= wanted:
        return list(range(count or 0))
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == count]
    special = {int(index) for index in config.get("per_layer_config") or {}}
    kinds: dict[str, int] = {}
    for index in range(count):
        kinds.setdefault(repr([index in special, *(each[index] for each in lists)]), index)
    kept = sorted(kinds.values())[: max(wanted, 6)]
    for index in range(count):
        if len(kept) >= wanted:
            break
        if index not in kept:
            kept.append(index)
    return sorted(kept)


def _small_list(name: str, value: list[Any], node: Node, count: int | None, indices: Sequence[int]) -> list[Any]:
    if count is not None and len(value) == count and count > 1:
        if value == list(range(count)):
            return list(range(len(indices)))
        return [_small_number(name, value[i], node) if type(value[i]) is int else value[i] for i in indices]
    if INDEX_LISTS.fullmatch(name) and value and all(type(each) is int for each in value) and count:
        return sorted({each * len(indices) // count if each >= 0 else max(each, -len(indices)) for each in value})
    if TOKENS.fullmatch(name) and all(type(each) is int for each in value):
        return [_small_token(each) for each in value]
    return list(value)


def _small_rope(parameters: Mapping[str, Any], node: Node) -> dict[str, Any]:
    """Return rope parameters with their sections scaled as the heads are."""
    small = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            small[name] = _small_rope(value, node)
        elif ROPE_SECTIONS.fullmatch(name) and isinstance(value, list):
            half = (
                4
                if "qk_rope_head_dim" in node.fields
                else int(node.width.head * parameters.get("partial_rotary_factor", 1)) // 2
            )
            third = half // 4
            small[name] = [half - 2 * third, third, third] if len(value) == 3 else value
        else:
            small[name] = value
    return small


def _small_number(name: str, value: int, node: Node) -> int:
    if TOKENS.fullmatch(name):
        return _small_token(value)
    for pattern, shrink in RULES:
        if value > 0 and re.fullmatch(pattern, name):
            return shrink(node, value)
    return value


def _small_token(value: int) -> int:
    return value if value < VOCABULARY else 200 + value % 99


DROPPED = {"transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id"}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SMALL_CODES = {"base_channels": 32, "channel_multiplier": [1, 2], "latent_channels": 32, "embed_dim": 32}
SECTIONS = {"rope_parameters": {"mrope_section": [4, 2, 2]}}  # of half a head
# Where a class needs what the rules cannot know, or has more in it than by default.
OVERRIDES: dict[str, dict[str, Any]] = {
    "wavtokenizer_encoder": {"codebook_dim": 80, "decoder_attention_num_groups": 16},
    "apertus1p5": {"image_token_offset": 20, "audio_token_offset": 276, "text_config": {"vocab_size": 600}},
    "apertus1p5_vision_tokenizer": {**SMALL_CODES, "num_res_blocks": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "chameleon": {"vocabulary_map": {"<image>": 250, "IMGIMGA": 251, "IMGIMGB": 252}},
    "chameleon_vqgan": SMALL_CODES,
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": EXPERT_INNER},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots3_note_text": {"head_dim": 24},
    "emu3": {"vocabulary_map": {"<image>": 250, "<|extra_200|>": 251}},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 2], "embed_dim": 32},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [EXPERT_INNER, 88],
        "rope_parameters": {"mrope_section": [3, 3, 2]},
    },
    "florence_vision": {
        "depths": [1, 1, 2, 1],
        "embed_dim": [16, 32, 64, 96],
        "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4],
        "projection_dim": 64,
    },
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_assistant": {"text_config": {"enable_moe_block": False}},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": EXPERT_INNER,
    },
    "glm4v_moe_text": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "glm4v_text": SECTIONS,
    "glm5_next_text": {"index_kpool": 4},
    "glm_ocr_text": SECTIONS,
    "granite4_vision": {
        "deepstack_layer_map": [[-2, 0], [-1, 1]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "hunyuan_vl_text": SECTIONS,
    "janus_vqgan": SMALL_CODES,
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "led": {"attention_window": 8},
    "llama4_vision_model": {"projector_input_dim": 64, "projector_output_dim": 64, "intermediate_size": 192},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mllama_text_model": {"cross_attention_layers": [1, 3]},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "molmo2_vision": {"image_size": [56, 56], "num_position_embeddings": 16},
    "molmo2_adapter": {"vision_feature_layer": [2, 1]},
    "nemotron_h": {"moe_latent_size": 24},
    "paddleocr_vl_text": SECTIONS,
    "perceiver": {"num_self_attends_per_block": 3, "d_latents": 96, "num_latents": 16},
    "phi4_multimodal_audio": {
        "depthwise_separable_out_channel": 80,
        "ext_pw_out_channel": 80,
        "nemo_conv_channels": 80,
    },
    "qwen2_5_omni_text": SECTIONS,
    "qwen2_5_vl_text": SECTIONS,
    "qwen2_vl_text": SECTIONS,
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [32, 32]},
    "step3p5": {"sliding_window": 8},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4, "depths": [1] * 7},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "hybrid_layer_ids": [1, 3, 5],
        "num_mem_blocks": 2,
    },
    "zamba": {"num_hidden_layers": 5, "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["linear_attention"]},
}
# Where a configuration cannot be made of nothing: what it is made of.
BASES: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    }
}
CLASS_OVERRIDES: dict[str, dict[str, Any]] = {"ReformerModelWithLMHead": {"is_decoder": True}}
