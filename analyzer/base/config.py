"""What config.json says, at any depth: sizes, model types, quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analyzer.base.errors import shown


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of quantization, of the model or of its text part; empty where it says nothing."""
    keys = ("quantization_config", "compression_config", "quantization")
    found = (part.get(key) for part in parts_of(config) for key in keys)
    return next((said for said in found if isinstance(said, Mapping) and said), {})


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


HIDDEN_SIZE_KEYS = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim")
NUM_LAYERS_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def model_types(config: Mapping[str, Any]) -> set[str]:
    """Return the model types that a config names: its own, and those of the parts of a composite model."""
    return {part["model_type"] for part in parts_of(config) if isinstance(part.get("model_type"), str)}


def parts_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a config and the parts of a composite model that it holds."""
    return [config, *(part for part in config.values() if isinstance(part, Mapping))]
