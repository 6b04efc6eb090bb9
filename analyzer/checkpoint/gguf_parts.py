"""The parts of a GGUF file: which of them holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from analyzer.base.errors import CheckpointError, HeaderError, shown
from analyzer.checkpoint.files import Read, intruder_in
from analyzer.checkpoint.gguf import MAGIC, GgufHeader, gguf_config, read_gguf_header
from analyzer.checkpoint.header import TensorRecord
from analyzer.source.source import Source
from analyzer.source.streaming import in_parallel


def read_gguf_parts(
    source: Source, read: Read, parts: Sequence[str]
) -> tuple[dict[str, Any], Mapping[str, Any], dict[str, tuple[str, TensorRecord]]]:
    """Return the config and the metadata of a GGUF file, and by name each tensor with the part that holds it.

    The first part has the metadata. Raises CheckpointError (HeaderError for a part) where the parts are not right.
    """
    read_header = partial(_read_gguf_header, source, read)
    headers = in_parallel(read_header, parts, threads=source.readers)
    tensors: dict[str, tuple[str, TensorRecord]] = {}
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
            tensors[name] = (part, record)
    metadata = headers[0].metadata
    if metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise CheckpointError(
            f"{source.model} has {len(tensors)} tensors, not the {shown(metadata['split.tensors.count'], 20)} that "
            f"{shown(parts[0])} tells of: download it again"
        )
    try:
        return gguf_config(metadata), metadata, tensors
    except HeaderError as error:
        raise HeaderError(f"{source.model}: {shown(parts[0])} {error}") from error


def _read_gguf_header(source: Source, read: Read, filename: str) -> GgufHeader:
    try:
        return read_gguf_header(partial(read, filename), source.sizes[filename])
    except HeaderError as error:
        begun = read(filename, 0, min(len(MAGIC), source.sizes[filename])) == MAGIC
        said = error if begun else intruder_in(source, read, filename) or error
        raise HeaderError(f"{source.model}: {shown(filename)} {said}") from error
