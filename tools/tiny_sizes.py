"""How large a number of a tiny configuration is, by what its name says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
    """A configuration, or a part of one, and which kind of tower it describes."""

    kind: str
    fields: Mapping[str, Any]

    @property
    def width(self) -> Width:
        """The sizes of its kind of tower."""
        return WIDTHS[self.kind]


def _at_most(limit: int) -> Shrink:
    return lambda _node, old: min(old, limit)


def _always(value: int) -> Shrink:
    return lambda _node, _old: value


def _hidden(node: Node, _old: int) -> int:
    return node.width.hidden


def _text_hidden(_node: Node, _old: int) -> int:
    return WIDTHS["text"].hidden


def _vision_hidden(_node: Node, _old: int) -> int:
    return WIDTHS["vision"].hidden


def _audio_hidden(_node: Node, _old: int) -> int:
    return WIDTHS["audio"].hidden


def _inner(node: Node, _old: int) -> int:
    return node.width.inner


def _layers(node: Node, old: int) -> int:
    return min(old, node.width.layers)


def _head(node: Node, old: int) -> int:
    return 8 if old == node.fields.get("qk_rope_head_dim") else node.width.head


def _key_heads(node: Node, old: int) -> int:
    heads = next((node.fields[n] for n in ("num_attention_heads", "n_heads") if n in node.fields), None)
    return HEADS if old == heads else min(old, 2)


def _image(node: Node, old: int) -> int:
    patch = node.fields.get("patch_size")
    return 4 * patch if isinstance(patch, int) and 4 * patch < old else min(old, 64)


def _window(node: Node, old: int) -> int:
    patch = node.fields.get("patch_size")
    return 4 * patch if isinstance(patch, int) and old > patch else min(old, 8)


# What a number's name says, the first that matches: sizes that nothing here names stay as they are.
RULES: tuple[tuple[str, Shrink], ...] = (
    (r"type_vocab_size", _at_most(4)),
    (r"codebook_size", _at_most(256)),
    (r".*vocab.*|num_embeddings", _at_most(VOCABULARY)),
    (r"q_lora_rank", _at_most(24)),
    (r"kv_lora_rank", _at_most(20)),
    (r"o_lora_rank|.*_rank|.*lowrank", _at_most(8)),
    (r"qk_rope_head_dim", _at_most(8)),
    (r"qk_nope_head_dim|v_head_dim", _at_most(16)),
    (r"qk_head_dim", _at_most(24)),
    (r"index_head_dim|indexer_head_dim", _at_most(16)),
    (r"index_n_heads|indexer_n_heads", _at_most(2)),
    (r"index_topk.*", _at_most(8)),
    (r"linear_num_key_heads|.*mamba.*n_?groups|n_groups|num_groups|mamba_ngroups", _at_most(2)),
    (r"linear_num_value_heads|linear_num_heads", _always(4)),
    (r"linear_(key_|value_)?head_dim", _always(16)),
    (r"mamba_(n_heads|num_heads)|n_mamba_heads", _always(8)),
    (r"mamba_(d_head|head_?dim)", _always(16)),
    (r"mamba_d_state|ssm_state_size|state_size", _at_most(16)),
    (r"mamba_d_ssm|mamba_intermediate_size", _always(128)),
    (r"(mamba_|attention_)?chunk_size|.*attn_chunk_length", _at_most(16)),
    (r"rotary_dim", _at_most(8)),
    (r"hidden_size_per_layer_input", _at_most(16)),
    (r"mamba_dt_rank|time_step_rank", _always(8)),
    (r"lru_width", _hidden),
    (r"attention_hidden_size", lambda node, _old: 2 * node.width.hidden),
    (r".*(num|n)_(key_value|kv)_heads.*|num_query_groups|kv_n_heads|multi_query_group_num", _key_heads),
    (r".*(num|n)_.*heads?|n_heads?|num_heads|.*attention_heads|resampler_heads", _at_most(HEADS)),
    (r".*_head_dim|head_dim|d_head|dim_head|d_kv|kv_channels|attention_head_size|.*_dim_head", _head),
    (r"(n|num)_(group|expert_group)|topk_group", _always(1)),
    (r".*n_shared_experts|.*num_shared_experts", _at_most(2)),
    (r".*experts_per_tok(en)?|.*top_?k(_experts)?|moe_k", _at_most(2)),
    (r".*(n|num)_(routed_|local_)?experts", _at_most(4)),
    (r".*shared_.*intermediate_size|share_expert_dim", _always(SHARED_INNER)),
    (r"moe_latent_size|moe_hidden_size", _at_most(24)),
    (r"moe_.*intermediate_size|expert_ffn_hidden_size|moe_ffn_hidden_size", _always(EXPERT_INNER)),
    (r".*intermediate_size.*|.*ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|d_inner|n_inner|mlp_dim", _inner),
    (r"(encoder_|decoder_)?(num_)?(encoder_|decoder_)?(hidden_)?layers|n_layers?|depth|.*num_.*layers", _layers),
    (r"num_blocks", _layers),
    (
        r"adapter_out_dim|text_hidden_size|vision_output_dim|.*out(put)?_hidden_size|.*projection_dim",
        _text_hidden,
    ),
    (r"vision_hidden_size|mm_hidden_size|image_hidden_size", _vision_hidden),
    (r"audio_hidden_size", _audio_hidden),
    (
        r".*hidden_size.*|adapter_in_dim|adapter_input_size|d_model|n_embd|hidden_dim|dim|emb(ed)?_dim"
        r"|.*embed_proj_dim|d_embed",
        _hidden,
    ),
    (r".*embedding_size|embedding_dim", _hidden),
    (r"max_.*position.*|n_positions|max_seq_len|n_ctx|max_.*positions|context_length|seq_len(gth)?", _at_most(128)),
    (r"window_size", _window),
    (r"sliding_window.*|.*window_size|local_attention|local_radius", _at_most(8)),
    (r"image_size|force_image_size|img_size", _image),
    (r".*(_period|_interval|_step|_frequency|_every_n_layers|_pattern|layer_group_size)", _at_most(2)),
    (r"zero_expert_num", _at_most(2)),
    (r"first_k_dense_replace|num_dense_layers|.*_layer_offset", _at_most(1)),
)


TOKENS = re.compile(r".*(token_ids?|token_index|_id|_index|start_id|end_id)")


def small_number(name: str, value: int, node: Node) -> int:
    """Return a field's number made tiny; a token's stays within the tiny vocabulary."""
    if TOKENS.fullmatch(name):
        return value if value < VOCABULARY else 200 + value % 99
    for pattern, shrink in RULES:
        if value > 0 and re.fullmatch(pattern, name):
            return shrink(node, value)
    return value
