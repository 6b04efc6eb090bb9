"""What a checkpoint holds: its config, and which file holds which tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyzer.base.errors import CheckpointError, HeaderError, shown
from analyzer.checkpoint.files import ENTRY_BYTES, GUESS_BYTES, Read, read_header, read_json
from analyzer.checkpoint.gguf_parts import read_gguf_parts
from analyzer.checkpoint.header import LENGTH_BYTES, TensorRecord
from analyzer.checkpoint.params import PARAMS, config_of_params
from analyzer.checkpoint.shards import (
    CONFIG,
    INDEX,
    SAFETENSORS,
    WeightFiles,
    adapter_alone,
    find_weight_files,
    listed,
    unread_files,
)
from analyzer.numbers.module import IN_A_NAME, starred
from analyzer.source.single_file import GGUF_SUFFIX
from analyzer.source.source import Source
from analyzer.source.streaming import in_parallel

Headers = Mapping[str, dict[str, TensorRecord] | HeaderError]
"""By file, its tensors by name or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's record and the file that holds it."""

    filename: str
    record: TensorRecord

    @property
    def nbytes(self) -> int:
        """How many bytes the file has of it."""
        return self.record.stop - self.record.start


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: its config, its tensors by name, and the files that hold them.

    `absent` are the tensors that an index names and no shard has; `notes` say, a line each, what else does not agree.
    `metadata` are a GGUF file's, as it has them.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_contents(source: Source, read: Read) -> Contents:
    """Read config, index and headers, or the headers of a GGUF file where there is nothing else.

    Raises CheckpointError (HeaderError for a shard) where they are missing or contradict each other, SourceError where
    they cannot be read.
    """
    parts = sorted(name for name in source.sizes if name.endswith(GGUF_SUFFIX))
    if parts and not any(name.endswith(SAFETENSORS) for name in source.sizes):
        gguf, metadata, placed = read_gguf_parts(source, read, parts)
        tensors = {name: StoredTensor(*place) for name, place in placed.items()}
        return Contents(gguf, tensors, tuple(parts), metadata=metadata)
    found = find_weight_files(source, read)
    headers = _read_headers(source, read, found.sets)
    chosen, why = _choose(found.sets, headers)
    records: dict[str, dict[str, TensorRecord]] = {}
    for shard in chosen.shards:
        header = headers[shard]
        if isinstance(header, HeaderError):
            raise HeaderError(f"{source.model}: {header}") from header
        records[shard] = header
    tensors = _join(source.model, records, chosen)
    if tensors and all(".lora_" in name for name in tensors):
        raise adapter_alone(source, read)
    config = _read_config(source, read)
    weight_map = chosen.weight_map or {}
    absent = tuple(sorted(weight_map.keys() - tensors.keys()))
    omitted = sorted(tensors.keys() - weight_map.keys()) if chosen.index else []
    notes = [*found.faults, *why]
    if chosen.missing:
        notes.append(f"{chosen.index} names files that are missing: {listed(chosen.missing)}")
    if absent:
        notes.append(f"{chosen.index} names what no shard has: {_families(absent)}")
    if omitted:
        notes.append(f"{chosen.index} does not name all that its shards have, which is read too: {_families(omitted)}")
    if unread := unread_files(source, found.sets):
        notes.append(f"not among the model's files, so not read: {listed(unread)}")
    return Contents(config, tensors, chosen.shards, absent, tuple(notes))


def _read_config(source: Source, read: Read) -> dict[str, Any]:
    filename = PARAMS if CONFIG not in source.sizes and PARAMS in source.sizes else CONFIG
    if filename not in source.sizes:
        raise CheckpointError(f"{source.model} has no {CONFIG}: download it too")
    try:
        config = read_json(source, read, filename)
    except CheckpointError as error:
        raise CheckpointError(f"{source.model}: {error}") from error
    return config_of_params(config) if filename == PARAMS else config


def _read_headers(source: Source, read: Read, sets: Sequence[WeightFiles]) -> Headers:
    """Read the header of every shard of these sets."""
    guesses: dict[str, int] = {}
    for one in sets:
        guesses |= dict.fromkeys(one.shards, GUESS_BYTES if one.weight_map is None else LENGTH_BYTES + ENTRY_BYTES)
        for name, shard in (one.weight_map or {}).items():
            if shard in guesses:
                guesses[shard] += ENTRY_BYTES + len(name)
    shards = list(guesses)
    headers = in_parallel(
        lambda shard: read_header(source, read, shard, guesses[shard]), shards, threads=source.readers
    )
    return dict(zip(shards, headers, strict=True))


def _choose(sets: Sequence[WeightFiles], headers: Headers) -> tuple[WeightFiles, list[str]]:
    """Return the set that is read, and a line on the other where there are two: a single file, and shards of an index.

    Transformers takes the single file. So does this, unless it is not the model that the index tells of: it cannot be
    read, or lacks numbered layers' tensors, or has them in other shapes, as a leftover of another conversion does.
    """
    if len(sets) == 1:
        return sets[0], []
    single, indexed = sets
    name, index = single.shards[0], indexed.index
    held = headers[name]
    if isinstance(held, HeaderError):
        return indexed, [f"the shards of {index} are read, since {held}"]
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in indexed.shards:
        header = headers[shard]
        if isinstance(header, HeaderError):
            return single, [f"{name} is read, and not the shards of {index}, since {header}"]
        shapes |= {tensor: record.shape for tensor, record in header.items() if IN_A_NAME.search(tensor)}
    if all(tensor in held and held[tensor].shape == shape for tensor, shape in shapes.items()):
        return single, [f"{name} is read, as transformers does, and not the shards of {index}"]
    return indexed, [f"the shards of {index} are read, and not {name}, which has other tensors (transformers reads it)"]


def _join(
    model: str, headers: Mapping[str, Mapping[str, TensorRecord]], chosen: WeightFiles
) -> dict[str, StoredTensor]:
    """Return each tensor once, from the shard that the index names or, where it names none, from the last that has it.

    So does transformers. Without an index no tensor may be in two shards.
    """
    tensors: dict[str, StoredTensor] = {}
    for filename, header in headers.items():
        for name, record in header.items():
            if chosen.index is None and name in tensors:
                raise CheckpointError(
                    f"{model}: {tensors[name].filename} and {filename} both have {shown(name)}, and no {INDEX} says "
                    "which counts"
                )
            tensors[name] = StoredTensor(filename, record)
    for name, shard in (chosen.weight_map or {}).items():
        if name in headers.get(shard, ()):
            tensors[name] = StoredTensor(shard, headers[shard][name])
    return tensors


def _families(names: Collection[str]) -> str:
    """Return these names in few words: those that differ only by numbers as one pattern, with how many they are."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(starred(name), []).append(name)
    return listed([of[0] if len(of) == 1 else f"{family} ({len(of)})" for family, of in families.items()])
