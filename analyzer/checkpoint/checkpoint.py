"""A checkpoint, of safetensors or a GGUF file: what is read of its tensors."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from analyzer.base.errors import SourceError, shown
from analyzer.checkpoint.contents import StoredTensor, read_contents
from analyzer.checkpoint.reading import MatrixReading, UseTile, blocks_of
from analyzer.numbers.encoding import NUMPY_DTYPES, Tile
from analyzer.numbers.matrices import Matrix, Part
from analyzer.source.source import MEBIBYTE, ReadsInto, Source
from analyzer.source.streaming import Want, in_parallel, stream

PIECE_BYTES = 8 * MEBIBYTE  # of one read straight into memory; nothing of it has to stay in a core's cache


class Checkpoint:
    """The tensors of one model, by name, read through a source in blocks; counts the bytes that were read."""

    def __init__(self, source: Source) -> None:
        """Read config, index and headers, or those of a GGUF file.

        Raises CheckpointError (HeaderError for a shard) where they are missing or contradict each other, and
        SourceError where they cannot be read.
        """
        if not isinstance(source, Source):
            raise SourceError(f"{shown(repr(source), 80)} is no opened model: give what open_model returns")
        self.source = source
        self.bytes_read = 0
        self._counting = threading.Lock()
        contents = read_contents(source, self._read)
        self.config: Mapping[str, Any] = contents.config
        self.metadata: Mapping[str, Any] = contents.metadata
        """A GGUF file's metadata, but for what is large."""
        self.tensors: Mapping[str, StoredTensor] = contents.tensors
        self.shards = contents.shards
        self.absent = contents.absent
        """Tensors that an index names and no shard has."""
        self.notes = (*source.notes, *contents.notes)
        """What there is to know of how the model was found and what of it was read, a line each."""
        self.total_bytes = sum(source.sizes[shard] for shard in self.shards)

    @property
    def model_type(self) -> str | None:
        """The architecture's name in config.json or a GGUF file's metadata, null where it has none."""
        model_type = self.config.get("model_type")
        return model_type if isinstance(model_type, str) else None

    @property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each tensor, by name."""
        return {name: (tensor.record.dtype, tensor.record.shape) for name, tensor in self.tensors.items()}

    def blocks(self, tensor: StoredTensor, *, element_bytes: int) -> Iterator[bytes]:
        """Yield the tensor's bytes in order, in blocks of whole elements of about the source's block size."""
        size = tensor.nbytes
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
        sizes = {name: self.tensors[name].nbytes for name in names}
        whole = {name: bytearray(size) for name, size in sizes.items()}
        stream(self.source, self._filling({name: memoryview(each) for name, each in whole.items()}))
        return whole

    def read_into(self, into: Mapping[str, memoryview]) -> None:
        """Read whole tensors into memory of theirs, in parallel, and straight where the source can do that.

        Raises SourceError where they cannot be read.
        """
        source = self.source
        if not isinstance(source, ReadsInto):
            stream(source, self._filling(into))
            return

        def read(piece: tuple[str, int]) -> None:
            name, start = piece
            tensor, part = self.tensors[name], into[name][start : start + PIECE_BYTES]
            source.read_into(tensor.filename, tensor.record.start + start, part)
            with self._counting:
                self.bytes_read += len(part)

        pieces = [(name, start) for name, each in into.items() for start in range(0, len(each), PIECE_BYTES)]
        in_parallel(read, pieces, threads=source.readers)

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
        only: Iterable[Tile] | None = None,
    ) -> Iterator[Want]:
        """Yield the wishes that bring a whole matrix, its scales first, and call `done` when every tile was used.

        `only` brings these tiles alone. `progress` is told the number of bytes just used. When they are streamed,
        CheckpointError is raised where the scales contradict themselves.
        """
        reading = MatrixReading(self.source.model, matrix, use, done)
        ready = (reading.ready,) if matrix.companions else ()
        for number, part in enumerate(matrix.companions):
            yield self.read_part(part, partial(reading.take_companion, number))
        number = 0
        for tiles in blocks_of(matrix, self.source.block_bytes) if only is None else ([tile] for tile in only):

            def take(data: memoryview, number: int = number, tiles: list[Tile] = tiles) -> None:
                reading.take(number, tiles, data)
                progress(len(data))

            number += len(tiles)
            start, stop = matrix.span(tiles[0])[0], matrix.span(tiles[-1])[1]
            yield self._want(matrix.data.tensor, start, stop, take, (*ready, *after))

    def take_back(self, count: int) -> None:
        """Count so many bytes as not read: they were here already."""
        with self._counting:
            self.bytes_read -= count

    def _filling(self, into: Mapping[str, memoryview]) -> Iterator[Want]:
        """Yield the wishes that fill these with whole tensors."""
        for name, each in into.items():
            for start in range(0, len(each), self.source.block_bytes):
                stop = min(start + self.source.block_bytes, len(each))
                yield self._want(name, start, stop, partial(_fill, each, start))

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


def _fill(whole: bytearray | memoryview, start: int, data: memoryview) -> None:
    whole[start : start + len(data)] = data
