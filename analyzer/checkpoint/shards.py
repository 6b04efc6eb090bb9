"""Which files hold a model's weights, where a folder has several sets, an index that is stale, or an adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from analyzer.base.errors import CheckpointError, shown
from analyzer.checkpoint.files import MAX_INDEX_BYTES, Read, read_json
from analyzer.numbers.module import IN_A_NAME
from analyzer.source.source import Source, is_plain_path

CONFIG = "config.json"
SAFETENSORS = ".safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Mistral's own format: the same weights by other names, in most of its repositories beside the first.
MISTRAL = "consolidated"
FORMATS = ((SINGLE, INDEX), (f"{MISTRAL}.safetensors", f"{MISTRAL}.safetensors.index.json"))
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})\.safetensors", re.ASCII)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ADAPTER, ADAPTER_CONFIG = "adapter", "adapter_config.json"  # adapter_model.safetensors; MLX writes adapters.safetensors
MAX_SHOWN_FILES = 3


@dataclass(frozen=True)
class WeightFiles:
    """One set of weights: its files and, where an index joins them, its name and its map from tensors to files.

    `missing` are files that the index names and that hold nothing of a numbered layer.
    """

    shards: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The sets of weights of one format, a single file before an index, and what is wrong with what is passed over."""

    sets: tuple[WeightFiles, ...]
    faults: tuple[str, ...] = ()


def find_weight_files(source: Source, read: Read) -> Found:
    """Return the sets of weights that are whole, of the first format that has one: the library's own before Mistral's.

    Shards without an index are a set where their names say that none is missing. Raises CheckpointError where there
    is no set.
    """
    files = _model_files(source.sizes)
    faults = []
    for single, index in FORMATS:
        sets = [WeightFiles((single,))] if single in files else []
        if index in source.sizes:
            try:
                indexed = _read_index(source, read, index)
                sets = [indexed] if single in indexed.shards else [*sets, indexed]
            except CheckpointError as error:
                faults.append(str(error))
        if sets:
            return Found(tuple(sets), tuple(faults))
    if faults:
        raise CheckpointError(f"{source.model}: {faults[0]}")
    shards = _numbered_shards(files)
    if shards:
        fault = f"there is no {INDEX}: {len(shards)} shards are joined by their names"
        return Found((WeightFiles(shards),), (fault,))
    if len(files) == 1 and is_plain_path(files[0]):
        return Found((WeightFiles(files),))
    raise _no_weights(source, read, files)


def unread_files(source: Source, sets: Sequence[WeightFiles]) -> list[str]:
    """Return the weights, and adapters of them, that belong to none of these sets.

    Weights in Mistral's format beside the library's are the same ones, so are none of them.
    """
    known = {shard for one in sets for shard in one.shards}
    beside = [name for name in (*_model_files(source.sizes), *_adapters(source.sizes)) if name not in known]
    if any(shard.startswith(MISTRAL) for shard in known):
        return beside
    return [name for name in beside if not name.startswith(MISTRAL)]


def listed(names: Collection[str]) -> str:
    """Return the first few of these names, and how many more there are."""
    first = [shown(name, 80) for name in list(names)[:MAX_SHOWN_FILES]]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


def _model_files(names: Collection[str]) -> tuple[str, ...]:
    """Return the safetensors files among these names that may be a model's, and no adapter's."""
    return tuple(sorted(n for n in names if n.endswith(SAFETENSORS) and "/" not in n and not n.startswith(ADAPTER)))


def _adapters(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name.startswith(ADAPTER) and name.endswith((SAFETENSORS, *PICKLES))))


def _read_index(source: Source, read: Read, index: str) -> WeightFiles:
    """Return the set that an index joins; raises CheckpointError, which names the index, where it is not whole."""
    weight_map = read_json(source, read, index, most=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    shards = tuple(sorted({str(shard) for shard in weight_map.values()}))
    for shard in shards:
        if not is_plain_path(shard) or not shard.endswith(SAFETENSORS):
            raise CheckpointError(f"{index} names {shown(shard)}, not a safetensors file of the model")
    missing = tuple(shard for shard in shards if shard not in source.sizes)
    for name, shard in weight_map.items() if missing else ():
        if shard in missing and (IN_A_NAME.search(name) or len(missing) == len(shards)):
            raise CheckpointError(f"the shard {shard} that {index} names is missing: download it")
    return WeightFiles(tuple(shard for shard in shards if shard not in missing), index, weight_map, missing)


def _numbered_shards(files: Collection[str]) -> tuple[str, ...]:
    """Return the shards that number themselves 1 to the last of as many, where there is one such row of them."""
    rows: dict[tuple[str, int], dict[int, str]] = {}
    for name in files:
        if (match := SHARD.fullmatch(name)) and is_plain_path(name):
            rows.setdefault((match["stem"], int(match["count"])), {})[int(match["number"])] = name
    whole = [row for (_, count), row in rows.items() if len(row) == count and min(row) == 1 and max(row) == count]
    return tuple(name for _, name in sorted(whole[0].items())) if len(whole) == 1 else ()


def _no_weights(source: Source, read: Read, files: Collection[str]) -> CheckpointError:
    model = source.model
    if files:
        return CheckpointError(
            f"{model} has {len(files)} safetensors files ({listed(files)}) and no {INDEX} to join them"
        )
    if ADAPTER_CONFIG in source.sizes or _adapters(source.sizes):
        return adapter_alone(source, read)
    if any(name.endswith(PICKLES) for name in source.sizes):
        return CheckpointError(
            f"{model} has its weights only as pickle files, which can run code and are never opened: "
            "use a safetensors conversion"
        )
    return CheckpointError(f"{model} has no safetensors file: is it the right folder, or is a --subfolder missing?")


def adapter_alone(source: Source, read: Read) -> CheckpointError:
    """Return the error that there is an adapter and no model, which names the model that it changes."""
    config: Mapping[str, object] = {}
    with suppress(CheckpointError, KeyError):  # there may be none
        config = read_json(source, read, ADAPTER_CONFIG)
    kind = config.get("peft_type") or config.get("fine_tune_type")  # the second, and `model`, are MLX's
    what = "a LoRA adapter" if kind in ("LORA", "lora") else f"an adapter ({shown(kind, 40)})" if kind else "an adapter"
    base = config.get("base_model_name_or_path") or config.get("model")
    if not base:
        return CheckpointError(
            f"{source.model} is {what}, not a model: scan the model that it changes, or merge the two"
        )
    name = shown(base, 100)
    return CheckpointError(f"{source.model} is {what} of {name} ({ADAPTER_CONFIG}): scan {name}, or merge the two")
