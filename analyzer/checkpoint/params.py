"""params.json, which Mistral's own format has in place of config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARAMS = "params.json"

# What config.json calls the same, as the library's converter and vLLM's reader of the format have it.
CONFIG_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "vision_encoder": "vision_config",
    "quantization": "quantization_config",
    # of a mixture, which has a part of its own
    "num_experts": "num_local_experts",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
}


def config_of_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what params.json says by the names of config.json, with what it says of a mixture beside the rest."""
    config = {key: _renamed(said) if isinstance(said, Mapping) else said for key, said in _renamed(params).items()}
    mixture, quantized = config.pop("moe", None), config.get("quantization_config")
    if isinstance(quantized, dict) and str(quantized.get("qformat_weight")).startswith("fp8"):
        quantized.setdefault("quant_method", "fp8")
    return {**config, **mixture} if isinstance(mixture, dict) else config


def _renamed(said: Mapping[str, Any]) -> dict[str, Any]:
    return {CONFIG_KEYS.get(key, key): value for key, value in said.items()}
