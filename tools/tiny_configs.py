"""Default configurations made tiny: sizes by name, lists with an entry for each block by the blocks that are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tiny_overrides import FILLED, OVERRIDES
from tiny_sizes import TOKENS, WIDTHS, Node, small_number

INDEX_LISTS = re.compile(r".*(indexes|indices|_idxs|_ids|_layers|feature_layer|insert_layer_id|layer_map)")
LAYER_COUNTS = re.compile(
    r"(num_)?(hidden_)?(decoder_)?(encoder_)?layers|n_layers?|depth|num_blocks|.*num_.*hidden_layers"
)
NOT_LAYERS = re.compile(r".*(mtp|nextn|adapter|lstm|residual|dense|kv_shared|sparse|conv|global|input|output).*")
KINDS = (("vision", r"vision|visual|vit|image|siglip|clip"), ("audio", r"audio|speech|whisper|conformer|encoder_audio"))

ROPE_SECTIONS = re.compile(r".*mrope_section")
DROPPED = {"transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id"}


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
        elif isinstance(value, Mapping) and "model_type" in value:
            small[name] = shrunk(value, _kind(name, value, kind))
        elif isinstance(value, Mapping) and "rope" in name:
            small[name] = _small_rope(value, node)
        elif isinstance(value, list):
            small[name] = _small_list(name, value, node, old_layers, indices)
        elif type(value) is int:
            small[name] = small_number(name, value, node)
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
            full[name] = WIDTHS[kind].head if FILLED[name] is None else FILLED[name]
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
    """Return which blocks are kept: the first of each kind, then the first ones.

    Kinds are what the lists with an entry for each block tell apart.
    """
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
        return [small_number(name, value[i], node) if type(value[i]) is int else value[i] for i in indices]
    if INDEX_LISTS.fullmatch(name) and value and all(type(each) is int for each in value) and count:
        return sorted({each * len(indices) // count if each >= 0 else max(each, -len(indices)) for each in value})
    if TOKENS.fullmatch(name) and all(type(each) is int for each in value):
        return [small_number(name, each, node) for each in value]
    return list(value)


def _small_rope(parameters: Mapping[str, Any], node: Node) -> dict[str, Any]:
    """Return rope parameters with their sections scaled as the heads are."""
    small: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            small[name] = _small_rope(value, node)
        elif ROPE_SECTIONS.fullmatch(name) and isinstance(value, list):
            rotated = 8 if "qk_rope_head_dim" in node.fields else node.width.head
            half = int(rotated * parameters.get("partial_rotary_factor", 1)) // 2
            third = half // 4
            small[name] = [half - 2 * third, third, third] if len(value) == 3 else value
        else:
            small[name] = value
    return small
