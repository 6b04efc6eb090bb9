"""What config.json says, at any depth: sizes, model types, quantization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from analyzer.base.errors import shown

GGUF = "gguf"
HIDDEN_SIZE_KEYS = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim")
NUM_LAYERS_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
DECODER_LAYERS_KEYS = ("num_decoder_layers", "decoder_layers", "decoder_num_layers")
NUM_EXPERTS_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", "num_moe_experts")
PREDICTION_LAYERS_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
LANGUAGE_PARTS = (
    "text_config",
    "llm_config",
    "language_config",
    "language_model_config",
    "thinker_config",
    "lm_config",
    "decoder",
)
MAX_DEPTH = 4


def parts_of(config: Mapping[str, Any], *, depth: int = MAX_DEPTH) -> list[Mapping[str, Any]]:
    """Return a config and the parts of a composite model that it holds, outer ones first."""
    return list(_parts(config, depth))


def _parts(config: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    yield config
    if depth:
        for part in config.values():
            if isinstance(part, Mapping):
                yield from _parts(part, depth - 1)


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part that describes the stack that makes text, at any depth; the config itself where it has none."""
    for _ in range(MAX_DEPTH):
        inner = next((config[key] for key in LANGUAGE_PARTS if isinstance(config.get(key), Mapping)), None)
        if inner is None:
            break
        config = inner
    return config


def not_a_number_in(value: Any, name: str = "", *, depth: int = MAX_DEPTH) -> str | None:
    """Return the name of what is NaN in a config, at any depth; null where all its numbers are ones."""
    if isinstance(value, float) and math.isnan(value):
        return name
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    found = (not_a_number_in(each, f"{name}{name and '.'}{key}", depth=depth - 1) for key, each in inner if depth)
    return next((each for each in found if each is not None), None)


def sizes_in(config: Mapping[str, Any], keys: tuple[str, ...]) -> set[int]:
    """Return the positive whole numbers that a config has under these keys, at any depth."""
    return {size for part in parts_of(config) for key in keys if (size := _size(part, key)) is not None}


def hidden_sizes(config: Mapping[str, Any]) -> set[int]:
    """Return the widths that a config names for residual streams; MobileBERT has one of its own for its blocks."""
    return sizes_in(config, ("true_hidden_size",)) or sizes_in(config, HIDDEN_SIZE_KEYS)


def size_in(part: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """Return the first positive whole number that one part of a config has under these keys."""
    return next((size for key in keys if (size := _size(part, key)) is not None), None)


def _size(part: Mapping[str, Any], key: str) -> int | None:
    size = part.get(key)
    return size if type(size) is int and size > 0 else None


def model_types(config: Mapping[str, Any]) -> set[str]:
    """Return the model types that a config names: its own, and those of the parts of a composite model."""
    return {part["model_type"] for part in parts_of(config) if isinstance(part.get("model_type"), str)}


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of quantization, of the model or of its text part; empty where it says nothing."""
    keys = ("quantization_config", "compression_config", "quantization")
    found = (part.get(key) for part in parts_of(config) for key in keys)
    return next((said for said in found if isinstance(said, Mapping) and said), {})


def quantizations(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a config says of quantization as MLX does, of the model and of its parts."""
    keys = ("quantization", "quantization_config")
    return _mappings(part.get(key) for part in parts_of(config) for key in keys)


def weight_schemes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return how the weights of each group of modules are quantized, as compressed-tensors says it."""
    groups = quantization(config).get("config_groups")
    found = (group.get("weights") for group in _mappings(groups.values() if isinstance(groups, Mapping) else ()))
    return _mappings(found)


def _mappings(values: Iterable[object]) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)]


def quantization_name(config: Mapping[str, Any]) -> str | None:
    """Return the name of the quantization that config.json names, with what says more about it."""
    said = quantization(config)
    groups = said.get("config_groups")
    formats = [group.get("format") for group in _mappings(groups.values() if isinstance(groups, Mapping) else ())]
    names = [said.get("quant_method"), said.get("quant_algo"), said.get("format"), *formats]
    kept = dict.fromkeys(shown(name, 40) for name in names if isinstance(name, str))
    return " ".join(kept) or None


def ternary_when_run(config: Mapping[str, Any]) -> bool:
    """Tell whether the model makes its float weights ternary as it runs (BitNet), and never uses their values."""
    return quantization(config).get("quant_method") == "bitnet"


def is_gguf(config: Mapping[str, Any]) -> bool:
    """Tell whether these are a GGUF file's metadata, under the names of config.json."""
    return config.get("format") == GGUF
