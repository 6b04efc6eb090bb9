"""One matrix on its way from blocks of bytes to decoded tiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from analyzer.base.errors import CheckpointError, shown
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Unsigned
from analyzer.numbers.matrices import Matrix

UseTile = Callable[[int, Tile, Unsigned], None]
"""Takes a tile of a matrix, the how manieth it is, and its decoded bits, [lines, numbers along them]; on any thread."""


class MatrixReading:
    """One matrix on its way: holds its scales until every tile has been used."""

    def __init__(self, model: str, matrix: Matrix, use: UseTile, done: Callable[[], None]) -> None:
        self.ready = threading.Event()
        self._model, self._matrix, self._use, self._done = model, matrix, use, done
        self._companions: list[np.ndarray[Any, Any] | None] = [None] * len(matrix.companions)
        self._counting = threading.Lock()
        self._left = matrix.data.stop - matrix.data.start

    def take_companion(self, number: int, array: np.ndarray[Any, Any]) -> None:
        """Keep one of the tensors that scale the matrix; `ready` is set once all are there."""
        with self._counting:
            self._companions[number] = array.copy()  # it must not hold on to a block
            if all(companion is not None for companion in self._companions):
                self.ready.set()

    def take(self, number: int, tiles: list[Tile], data: memoryview) -> None:
        """Decode the bytes of these tiles, the first of which has this number, and hand each on."""
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


def blocks_of(matrix: Matrix, block_bytes: int) -> Iterator[list[Tile]]:
    """Yield runs of a matrix's tiles of at most that many bytes, or of one tile."""
    run: list[Tile] = []
    for tile in matrix.tiles():
        if run and matrix.span(tile)[1] - matrix.span(run[0])[0] > block_bytes:
            yield run
            run = []
        run.append(tile)
    yield run
