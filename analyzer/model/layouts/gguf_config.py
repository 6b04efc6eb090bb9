"""What a GGUF file's metadata say of its model, as the stock config says it.

The library's own reading of them passes over what it does not know, among it the scaling of rotary embeddings, and
then computes another model. Here every key of an architecture has its place in the config, or the file is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyzer.base.errors import ArchitectureError, shown
from analyzer.numbers.matrices import Shapes

ROTARY_FACTORS = "rope_freqs.weight"
"""The tensor by which each frequency of the rotary embedding is divided (Llama 3.1 and later)."""
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
# What follows the architecture's name in a key: what that is in the config.
KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
SIZES = frozenset({
    "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "rope.dimension_count",
})  # fmt: skip
WINDOW = {"attention.sliding_window": "sliding_window"}
CAPS = {each: each for each in ("attn_logit_softcapping", "final_logit_softcapping")}
EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# The rotary embedding is told by these, the head's width by one more; the embedding itself tells the vocabulary.
ELSEWHERE = frozenset({
    "attention.value_length", "vocab_size", "rope.dimension_count", "rope.freq_base", "rope.freq_base_swa",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
})  # fmt: skip
BY_RULES = frozenset({"lfm2", "qwen35", "qwen35moe"})  # of the architectures, those that the library loads by rules
SCALE_BY_WIDTH = (46, 62)  # blocks of Gemma 2 and 3 of 27B, whose queries are scaled by the width over the heads


@dataclass(frozen=True)
class Architecture:
    """What transformers calls an architecture; `keys` others do not have, `more` is true of all its files.

    `partial` tells that a head may turn only a part of its channels, `windowed` that layers with a sliding window have
    a rotary embedding of their own.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    windowed: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama"),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen2moe": Architecture("qwen2_moe", EXPERTS),
    "qwen3moe": Architecture("qwen3_moe", EXPERTS, {"norm_topk_prob": True}),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2", WINDOW | CAPS),
    "gemma3": Architecture("gemma3_text", WINDOW | CAPS, windowed=True),
    "olmo2": Architecture("olmo2"),
    "phi3": Architecture("phi3", WINDOW),
    "starcoder2": Architecture("starcoder2", WINDOW | {"attention.layer_norm_epsilon": "norm_epsilon"}),
    "stablelm": Architecture("stablelm", {"attention.layer_norm_epsilon": "layer_norm_eps",
                                          "use_parallel_residual": "use_parallel_residual"}, partial=True),
    "nemotron": Architecture("nemotron", {"attention.layer_norm_epsilon": "norm_eps"}, partial=True),
}  # fmt: skip


def stock_config(
    model: str, metadata: Mapping[str, Any], shapes: Shapes, rotary_factors: Sequence[float] | None
) -> dict[str, Any]:
    """Return what the library makes a config of: the model type, and all that the metadata say.

    `rotary_factors` are the numbers of ROTARY_FACTORS, null where it is not stored. Raises ArchitectureError for an
    architecture whose tensors are not known to be the stock model's, and for what is not known of one that is.
    """
    name = str(metadata.get("general.architecture"))
    if name in BY_RULES:
        return _by_the_library(model, name, metadata, shapes)
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise ArchitectureError(
            f"{model} is a GGUF file of the architecture {shown(name, 40)}, which can be scanned, but not yet "
            "verified: use the model that it was made from"
        )
    said = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    keys = {**KEYS, **architecture.keys}
    for key, value in said.items():
        if key not in keys and key not in ELSEWHERE:
            raise _unknown(model, name, key, value)
        is_number = type(value) in (int, float, bool) and math.isfinite(value)
        if (key in SIZES and not (type(value) is int and value > 0)) or (key != "rope.scaling.type" and not is_number):
            raise _unknown(model, name, key, value)
    config: dict[str, Any] = {keys[key]: value for key, value in said.items() if key in keys}
    if any(each not in said for each in ("block_count", "embedding_length", "attention.head_count")):
        raise ArchitectureError(
            f"{model}: its metadata do not say how large the model is: use the one it was made from"
        )
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    width = config.get("head_dim", max(1, config["hidden_size"] // config["num_attention_heads"]))
    if said.get("attention.value_length", width) != width:
        raise _unknown(model, name, "attention.value_length", said["attention.value_length"])
    if name in ("gemma2", "gemma3"):
        by_width = config["num_hidden_layers"] in SCALE_BY_WIDTH
        config["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"] if by_width else width
    if "sliding_window" in config:
        config["sliding_window"] = config["sliding_window"] or None
    has_biases = {
        f"{part}_bias": f"blk.0.{of}.bias" in shapes for part, of in (("attention", "attn_q"), ("mlp", "ffn_up"))
    }
    return {
        **config,
        **architecture.more,
        **(has_biases if name == "llama" else {}),
        **{each: metadata.get(f"tokenizer.ggml.{key}") for each, key in TOKENS.items()},
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary(shapes),
        "tie_word_embeddings": "output.weight" not in shapes,
        "rope_parameters": _rotary(model, name, architecture, said, width, rotary_factors),
    }


def _by_the_library(model: str, name: str, metadata: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return the library's config, where it has looked at all that the metadata say of the architecture."""
    from analyzer.model.layouts.gguf_library import config_of  # imports torch

    known = _Asked({**metadata, "tokenizer.ggml.tokens": _vocabulary(shapes)})
    try:
        config = config_of(known, tuple(shapes))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ArchitectureError(
            f"{model}: its metadata do not say what the model is ({shown(error, 60)}): use the one it was made from"
        ) from error
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for key, value in metadata.items():
        end = key.removeprefix(f"{name}.")
        of_width = end in ("attention.key_length", "attention.value_length") and value == width
        if end != key and key not in known.asked and end != "vocab_size" and not of_width:
            raise _unknown(model, name, end, value)
    return config


class _Asked(dict[str, Any]):
    """Metadata that know which of their keys were asked for."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _vocabulary(shapes: Shapes) -> int:
    return shapes["token_embd.weight"][1][0] if "token_embd.weight" in shapes else 0


def _rotary(
    model: str,
    name: str,
    architecture: Architecture,
    said: Mapping[str, Any],
    width: int,
    factors: Sequence[float] | None,
) -> dict[str, Any]:
    """Return the parameters of the rotary embedding, or those of each kind of layer."""
    turned = said.get("rope.dimension_count", width)
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base", 10000.0))}
    if architecture.partial:
        rotary["partial_rotary_factor"] = turned / width
    elif turned != width:
        raise _unknown(model, name, "rope.dimension_count", turned)
    scaling = said.get("rope.scaling.type", "none")
    context = said.get("context_length", 1)
    if scaling not in ("none", "linear", "yarn"):
        raise _unknown(model, name, "rope.scaling.type", scaling)
    if factors is not None and (scaling != "none" or architecture.windowed or len(factors) != turned // 2):
        raise ArchitectureError(
            f"{model}: its {ROTARY_FACTORS} are not known to be run: use the model that it was made from"
        )
    if scaling != "none":
        rotary |= {"rope_type": scaling, "factor": float(said.get("rope.scaling.factor", 1.0))}
    if scaling == "yarn":
        rotary["original_max_position_embeddings"] = said.get("rope.scaling.original_context_length", context)
    if factors is not None:  # as many as are turned, and the same however long the text
        rotary |= {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0}
        rotary |= {"short_factor": list(factors), "long_factor": list(factors)}
        rotary["original_max_position_embeddings"] = context
    if architecture.windowed:
        windowed = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base_swa", 10000.0))}
        return {"full_attention": rotary, "sliding_attention": windowed}
    return rotary


def _unknown(model: str, architecture: str, key: str, value: object) -> ArchitectureError:
    return ArchitectureError(
        f"{model}: its metadata say {shown(f'{architecture}.{key}', 80)} is {shown(value, 40)}, which is not known "
        "to be run: use the model that it was made from"
    )
