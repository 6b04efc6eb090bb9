"""A safetensors checkpoint: its config, its index and shards, and what is read of its tensors."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from analyzer.encodings import NUMPY_DTYPES, Tile
from analyzer.errors import CheckpointError, HeaderError, shown
from analyzer.header import LENGTH_BYTES, header_length, parse_header
from analyzer.matrices import Matrix, Part
from analyzer.outliers import Unsigned
from analyzer.records import TensorRecord
from analyzer.source import Source, is_plain_path
from analyzer.streaming import Want, in_parallel, stream

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON_BYTES = {CONFIG: 10_000_000, INDEX: 100_000_000}  # the largest index on the Hub is some 10 MB

UseTile = Callable[[int, Tile, Unsigned], None]
"""Takes a tile of a matrix, the how manieth it is, and its decoded bits, [lines, numbers along them]; on any thread."""


@dataclass(frozen=True, slots=True)
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
        headers = dict(zip(shards, in_parallel(self._read_header, shards, threads=source.readers), strict=True))
        self.tensors = _join(source.model, headers, weight_map)
        self.shards = tuple(shards)
        self.total_bytes = sum(source.sizes[shard] for shard in shards)

    @property
    def model_type(self) -> str | None:
        """The architecture's name in config.json, null where it has none."""
        model_type = self.config.get("model_type")
        return model_type if isinstance(model_type, str) else None

    @property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each tensor, by name."""
        return {name: (tensor.record.dtype, tensor.record.shape) for name, tensor in self.tensors.items()}

    def blocks(self, tensor: StoredTensor, *, element_bytes: int) -> Iterator[bytes]:
        """Yield the tensor's bytes in order, in blocks of whole elements of about the source's block size."""
        size = tensor.record.stop - tensor.record.start
        step = self.source.block_bytes // element_bytes * element_bytes
        for start in range(0, size, step):
            yield self.read(tensor, start, min(start + step, size))

    def sha256(self, filename: str, progress: Callable[[int], object]) -> str:
        """Return the hash of a whole file's content, as Source.content names it; `progress` is told of its bytes."""
        digest = hashlib.sha256()
        size, step = self.source.sizes[filename], self.source.block_bytes
        for start in range(0, size, step):
            block = self._read(filename, start, min(start + step, size))
            digest.update(block)
            progress(len(block))
        return f"sha256:{digest.hexdigest()}"

    def read(self, tensor: StoredTensor, start: int, stop: int) -> bytes:
        """Return bytes of a tensor, counted from its own start, `stop` exclusive."""
        return self._read(tensor.filename, tensor.record.start + start, tensor.record.start + stop)

    def read_tensors(self, names: Sequence[str]) -> dict[str, bytearray]:
        """Return the bytes of whole tensors, read in parallel. Raises SourceError where they cannot be read."""
        sizes = {name: self.tensors[name].record.stop - self.tensors[name].record.start for name in names}
        whole = {name: bytearray(size) for name, size in sizes.items()}

        def wants() -> Iterator[Want]:
            for name, size in sizes.items():
                for start in range(0, size, self.source.block_bytes):
                    stop = min(start + self.source.block_bytes, size)
                    yield self._want(name, start, stop, partial(_fill, whole[name], start))

        stream(self.source, wants())
        return whole

    def read_rows(self, name: str, rows: Sequence[int]) -> dict[int, bytearray]:
        """Return the bytes of single rows of a matrix. Raises SourceError where they cannot be read."""
        record = self.tensors[name].record
        size = (record.stop - record.start) // record.shape[0]
        found = {row: bytearray(size) for row in rows}
        stream(
            self.source,
            (self._want(name, row * size, (row + 1) * size, partial(_fill, found[row], 0)) for row in rows),
        )
        return found

    def read_part(self, part: Part, use: Callable[[np.ndarray[Any, Any]], None]) -> Want:
        """Return the wish to read a part of a tensor and hand it on as an array of its shape."""
        dtype = NUMPY_DTYPES[part.dtype]
        return self._want(
            part.tensor, part.start, part.stop, lambda data: use(np.frombuffer(data, dtype).reshape(part.shape))
        )

    def read_matrix(
        self,
        matrix: Matrix,
        use: UseTile,
        *,
        done: Callable[[], None] = lambda: None,
        progress: Callable[[int], object] = lambda _: None,
        after: tuple[threading.Event, ...] = (),
        only: Tile | None = None,
    ) -> Iterator[Want]:
        """Yield the wishes that bring a whole matrix, its scales first, and call `done` when every tile was used.

        `only` brings that tile alone. `progress` is told the number of bytes just used. When they are streamed,
        CheckpointError is raised where the scales contradict themselves.
        """
        reading = _Reading(self.source.model, matrix, use, done)
        ready = (reading.ready,) if matrix.companions else ()
        for number, part in enumerate(matrix.companions):
            yield self.read_part(part, partial(reading.take_companion, number))
        number = 0
        for tiles in [[only]] if only else _blocks(matrix, self.source.block_bytes):

            def take(data: memoryview, number: int = number, tiles: list[Tile] = tiles) -> None:
                reading.take(number, tiles, data)
                progress(len(data))

            number += len(tiles)
            start, stop = matrix.span(tiles[0])[0], matrix.span(tiles[-1])[1]
            yield self._want(matrix.data.tensor, start, stop, take, (*ready, *after))

    def _want(
        self,
        name: str,
        start: int,
        stop: int,
        use: Callable[[memoryview], None],
        after: tuple[threading.Event, ...] = (),
    ) -> Want:
        tensor = self.tensors[name]

        def count_and_use(data: memoryview) -> None:
            with self._counting:
                self.bytes_read += len(data)
            use(data)

        return Want(tensor.filename, tensor.record.start + start, tensor.record.start + stop, count_and_use, after)

    def _read(self, filename: str, start: int, stop: int) -> bytes:
        data = bytes(self.source.read(filename, start, stop))
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
        if size > MAX_JSON_BYTES[filename]:
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


class _Reading:
    """One matrix on its way: holds its scales until every tile has been used."""

    def __init__(self, model: str, matrix: Matrix, use: UseTile, done: Callable[[], None]) -> None:
        self.ready = threading.Event()
        self._model, self._matrix, self._use, self._done = model, matrix, use, done
        self._companions: list[np.ndarray[Any, Any] | None] = [None] * len(matrix.companions)
        self._counting = threading.Lock()
        self._left = matrix.data.stop - matrix.data.start

    def take_companion(self, number: int, array: np.ndarray[Any, Any]) -> None:
        with self._counting:
            self._companions[number] = array.copy()  # it must not hold on to a block
            if all(companion is not None for companion in self._companions):
                self.ready.set()

    def take(self, number: int, tiles: list[Tile], data: memoryview) -> None:
        encoding = self._matrix.encoding
        companions = tuple(companion for companion in self._companions if companion is not None)
        start = 0
        for tile in tiles:
            stop = start + tile.lines * tile.units * encoding.unit.itemsize
            units = np.frombuffer(data[start:stop], encoding.unit).reshape(tile.lines, tile.units)
            try:
                bits = encoding.decode(units, tile, companions)
            except CheckpointError as error:
                raise CheckpointError(f"{self._model}: {shown(self._matrix.data.tensor)} {error}") from error
            self._use(number, tile, bits)
            start, number = stop, number + 1
        with self._counting:
            self._left -= len(data)
            finished = self._left == 0
        if finished:
            self._companions.clear()
            self._done()


def _fill(whole: bytearray, start: int, data: memoryview) -> None:
    whole[start : start + len(data)] = data


def _blocks(matrix: Matrix, block_bytes: int) -> Iterator[list[Tile]]:
    """Yield runs of a matrix's tiles of at most that many bytes, or of one tile."""
    run: list[Tile] = []
    for tile in matrix.tiles():
        if run and matrix.span(tile)[1] - matrix.span(run[0])[0] > block_bytes:
            yield run
            run = []
        run.append(tile)
    yield run


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
