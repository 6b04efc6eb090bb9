"""Config, index and shards, or the parts of a GGUF file: which files hold which tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from analyzer.base.errors import CheckpointError, HeaderError, shown
from analyzer.checkpoint.gguf import GgufHeader, gguf_config, read_gguf_header
from analyzer.checkpoint.header import LENGTH_BYTES, TensorRecord, header_length, parse_header
from analyzer.source.single_file import GGUF_SUFFIX
from analyzer.source.source import Source, is_plain_path
from analyzer.source.streaming import in_parallel

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON_BYTES = {CONFIG: 10_000_000, INDEX: 100_000_000}  # the largest index on the Hub is some 10 MB

Read = Callable[[str, int, int], bytes]
"""Reads the bytes of a file from a start to a stop, exclusive."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's record and the file that holds it."""

    filename: str
    record: TensorRecord


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: its config, its tensors by name, and the files that hold them."""

    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]


def read_contents(source: Source, read: Read) -> Contents:
    """Read config, index and headers, or the headers of a GGUF file where there is nothing else.

    Raises CheckpointError (HeaderError for a shard) where they are missing or contradict each other, SourceError where
    they cannot be read.
    """
    parts = sorted(name for name in source.sizes if name.endswith(GGUF_SUFFIX))
    if parts and not any(name.endswith(SAFETENSORS) for name in source.sizes):
        return _read_gguf(source, read, parts)
    weight_map, shards = _find_shards(source, read)
    config = _read_json(source, read, CONFIG)
    read_header = partial(_read_header, source, read)
    headers = dict(zip(shards, in_parallel(read_header, shards, threads=source.readers), strict=True))
    return Contents(config, _join(source.model, headers, weight_map), tuple(shards))


def _find_shards(source: Source, read: Read) -> tuple[Mapping[str, str] | None, list[str]]:
    """Return the index's map from tensors to shards (null without an index) and the shards' names."""
    sizes, model = source.sizes, source.model
    if SINGLE in sizes:
        return None, [SINGLE]
    if INDEX in sizes:
        weight_map = _read_json(source, read, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{model}: {INDEX} has no weight_map: download it again")
        shards = sorted({str(shard) for shard in weight_map.values()})
        for shard in shards:
            if not is_plain_path(shard) or not shard.endswith(SAFETENSORS):
                raise CheckpointError(f"{model}: {INDEX} names {shown(shard)}, not a safetensors file of the model")
            if shard not in sizes:
                raise CheckpointError(f"{model}: the shard {shard} that {INDEX} names is missing: download it")
        return weight_map, shards
    others = sorted(name for name in sizes if name.endswith(SAFETENSORS) and "/" not in name)
    if len(others) == 1 and is_plain_path(others[0]):
        return None, others
    if others:
        names = ", ".join(shown(name, 40) for name in others[:3])
        raise CheckpointError(f"{model} has {len(others)} safetensors files ({names} …) and no {INDEX} to join them")
    if any(name.endswith(PICKLES) for name in sizes):
        raise CheckpointError(
            f"{model} has its weights only as pickle files, which can run code and are never opened: "
            "use a safetensors conversion"
        )
    raise CheckpointError(f"{model} has no safetensors file: is it the right folder, or is a --subfolder missing?")


def _read_json(source: Source, read: Read, filename: str) -> dict[str, Any]:
    model, size = source.model, source.sizes.get(filename)
    if size is None:
        raise CheckpointError(f"{model} has no {filename}: download it too")
    if size > MAX_JSON_BYTES[filename]:
        raise CheckpointError(f"{model}: {filename} has {size} bytes, too many to be true")
    try:
        loaded = json.loads(read(filename, 0, size).decode("utf-8")) if size else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{model}: {filename} is not JSON ({shown(error)}): download it again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{model}: {filename} is not a JSON object")
    return loaded


def _read_header(source: Source, read: Read, filename: str) -> dict[str, TensorRecord]:
    size = source.sizes[filename]
    try:
        length = header_length(read(filename, 0, min(LENGTH_BYTES, size)) if size else b"", size)
        return parse_header(read(filename, LENGTH_BYTES, LENGTH_BYTES + length), size)
    except HeaderError as error:
        raise HeaderError(f"{source.model}: {filename} {error}") from error


def _join(
    model: str, headers: Mapping[str, Mapping[str, TensorRecord]], weight_map: Mapping[str, str] | None
) -> dict[str, StoredTensor]:
    """Return each tensor once, from the shard that the index names; every name in the index must be there."""
    if weight_map is None:
        return {
            name: StoredTensor(filename, record)
            for filename, header in headers.items()
            for name, record in header.items()
        }
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise CheckpointError(f"{model}: {INDEX} places {shown(name)} in {shard}, which does not have it")
    return {name: StoredTensor(shard, headers[shard][name]) for name, shard in weight_map.items()}


def _read_gguf(source: Source, read: Read, parts: list[str]) -> Contents:
    """Read the headers of all parts of a GGUF file, the first of which has the metadata."""
    read_header = partial(_read_gguf_header, source, read)
    headers = in_parallel(read_header, parts, threads=source.readers)
    tensors: dict[str, StoredTensor] = {}
    for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
        said = (header.metadata.get("split.no", 0), header.metadata.get("split.count", 0) or 1)
        if said != (number, len(parts)):
            raise CheckpointError(
                f"{source.model}: {shown(part)} says that it is part {shown(said[0], 20)} of {shown(said[1], 20)}, not "
                f"{number} of {len(parts)}, counted from 0: give all parts the names that they were split into"
            )
        for name, record in header.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{source.model}: {shown(name)} is in two parts: download them again")
            tensors[name] = StoredTensor(part, record)
    metadata = headers[0].metadata
    if metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise CheckpointError(
            f"{source.model} has {len(tensors)} tensors, not the {shown(metadata['split.tensors.count'], 20)} that "
            f"{shown(parts[0])} tells of: download it again"
        )
    try:
        return Contents(gguf_config(metadata), tensors, tuple(parts))
    except HeaderError as error:
        raise HeaderError(f"{source.model}: {shown(parts[0])} {error}") from error


def _read_gguf_header(source: Source, read: Read, filename: str) -> GgufHeader:
    try:
        return read_gguf_header(partial(read, filename), source.sizes[filename])
    except HeaderError as error:
        raise HeaderError(f"{source.model}: {shown(filename)} {error}") from error
