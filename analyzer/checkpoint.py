"""A safetensors checkpoint: its config, its index and shards, and the blocks of its tensors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from analyzer.errors import CheckpointError, HeaderError, shown
from analyzer.header import LENGTH_BYTES, header_length, parse_header
from analyzer.records import TensorRecord
from analyzer.source import Source, is_plain_path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON_BYTES = 100_000_000  # the largest index on the Hub is some 10 MB


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's record and the file that holds it."""

    filename: str
    record: TensorRecord


class Checkpoint:
    """The tensors of one model, by name, read through a source in blocks; counts the bytes that were read."""

    def __init__(self, source: Source) -> None:
        """Read config, index and headers.

        Raises CheckpointError (HeaderError for a shard) where they are missing or contradict each other, and
        SourceError where they cannot be read.
        """
        self.source = source
        self.bytes_read = 0
        self._counting = threading.Lock()
        weight_map, shards = self._find_shards()
        self.config = self._read_json(CONFIG)
        with ThreadPoolExecutor(source.readers) as pool:
            headers = dict(zip(shards, pool.map(self._read_header, shards), strict=True))
        self.tensors = _join(source.model, headers, weight_map)
        self.shards = tuple(shards)
        self.total_bytes = sum(source.sizes[shard] for shard in shards)

    @property
    def model_type(self) -> str | None:
        """The architecture's name in config.json, null where it has none."""
        model_type = self.config.get("model_type")
        return model_type if isinstance(model_type, str) else None

    def blocks(self, tensor: StoredTensor, *, element_bytes: int) -> Iterator[bytes]:
        """Yield the tensor's bytes in order, in blocks of whole elements of about the source's block size."""
        size = tensor.record.stop - tensor.record.start
        step = self.source.block_bytes // element_bytes * element_bytes
        for start in range(0, size, step):
            yield self.read(tensor, start, min(start + step, size))

    def read(self, tensor: StoredTensor, start: int, stop: int) -> bytes:
        """Return bytes of a tensor, counted from its own start, `stop` exclusive."""
        return self._read(tensor.filename, tensor.record.start + start, tensor.record.start + stop)

    def _read(self, filename: str, start: int, stop: int) -> bytes:
        data = self.source.read(filename, start, stop)
        with self._counting:
            self.bytes_read += len(data)
        return data

    def _find_shards(self) -> tuple[Mapping[str, str] | None, list[str]]:
        """Return the index's map from tensors to shards (null without an index) and the shards' names."""
        sizes, model = self.source.sizes, self.source.model
        if SINGLE in sizes:
            return None, [SINGLE]
        if INDEX in sizes:
            weight_map = self._read_json(INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{model}: {INDEX} has no weight_map: download it again")
            shards = sorted({str(shard) for shard in weight_map.values()})
            for shard in shards:
                if not is_plain_path(shard) or not shard.endswith(".safetensors"):
                    raise CheckpointError(f"{model}: {INDEX} names {shown(shard)}, not a safetensors file of the model")
                if shard not in sizes:
                    raise CheckpointError(f"{model}: the shard {shard} that {INDEX} names is missing: download it")
            return weight_map, shards
        others = sorted(name for name in sizes if name.endswith(".safetensors") and "/" not in name)
        if len(others) == 1 and is_plain_path(others[0]):
            return None, others
        if others:
            names = ", ".join(shown(name, 40) for name in others[:3])
            raise CheckpointError(
                f"{model} has {len(others)} safetensors files ({names} …) and no {INDEX} to join them"
            )
        if any(name.endswith(PICKLES) for name in sizes):
            raise CheckpointError(
                f"{model} has its weights only as pickle files, which can run code and are never opened: "
                "use a safetensors conversion"
            )
        raise CheckpointError(f"{model} has no safetensors file: is it the right folder, or is a --subfolder missing?")

    def _read_json(self, filename: str) -> dict[str, Any]:
        model = self.source.model
        size = self.source.sizes.get(filename)
        if size is None:
            raise CheckpointError(f"{model} has no {filename}: download it too")
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{model}: {filename} has {size} bytes, too many to be true")
        try:
            loaded = json.loads(self._read(filename, 0, size).decode("utf-8")) if size else None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{model}: {filename} is not JSON ({shown(error)}): download it again") from error
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{model}: {filename} is not a JSON object")
        return loaded

    def _read_header(self, filename: str) -> dict[str, TensorRecord]:
        size = self.source.sizes[filename]
        try:
            length = header_length(self._read(filename, 0, min(LENGTH_BYTES, size)) if size else b"", size)
            return parse_header(self._read(filename, LENGTH_BYTES, LENGTH_BYTES + length), size)
        except HeaderError as error:
            raise HeaderError(f"{self.source.model}: {filename} {error}") from error


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
