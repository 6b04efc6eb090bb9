"""Which part of which stored tensor is a matrix, and the tiles it is read in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analyzer.numbers.encoding import TILE_NUMBERS, Encoding, Tile
from analyzer.numbers.floats import FORMATS

Int64 = NDArray[np.int64]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor of a checkpoint, by name."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a stored tensor, from `start` to `stop` counted from its own beginning, as an array of this shape."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear map's matrix; `shape` is (rows, cols) = (output, input channels) whichever way round it is stored.

    `data` are its units, [lines, units]; `transposed` tells that a line holds one input channel's weights. What a unit
    stands for down the lines lies next to each other or, where it is `apart`, as many lines apart as there are units
    down.
    """

    data: Part
    companions: tuple[Part, ...]
    encoding: Encoding
    shape: tuple[int, int]
    transposed: bool
    apart: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that the checkpoint stores of it."""
        return (self.data, *self.companions)

    @property
    def stored_bytes(self) -> int:
        """How many bytes of the checkpoint it is, scales and all."""
        return sum(part.stop - part.start for part in self.parts)

    @property
    def most_units(self) -> int:
        """How many units a tile has at most."""
        numbers = TILE_NUMBERS if self.encoding.name in FORMATS else TILE_NUMBERS // 2  # decoding takes more memory
        return max(1, numbers // math.prod(self.encoding.expand))

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles in the order of the file; they depend on the matrix alone."""
        lines, units = self.data.shape
        if units <= self.most_units:
            step = self.most_units // units
            for line in range(0, lines, step):
                yield Tile(line, min(step, lines - line), 0, units)
        else:
            for line in range(lines):
                for first in range(0, units, self.most_units):
                    yield Tile(line, 1, first, min(self.most_units, units - first))

    def span(self, tile: Tile) -> tuple[int, int]:
        """Return where a tile's bytes start and stop in the tensor that stores it; they are contiguous."""
        size = self.encoding.unit.itemsize
        start = self.data.start + (tile.line * self.data.shape[1] + tile.first) * size
        return start, start + tile.lines * tile.units * size

    def tile_of(self, row: int, col: int) -> tuple[Tile, int]:
        """Return the tile of the one unit that holds a weight, and the weight's index in the decoded tile."""
        line, place = (col, row) if self.transposed else (row, col)
        down, along = self.encoding.expand
        unit, within = divmod(line, self.data.shape[0])[::-1] if self.apart else divmod(line, down)
        return Tile(unit, 1, place // along, 1), within * along + place % along

    def axes(self, tile: Tile) -> tuple[Int64, slice]:
        """Return which lines, and which places along them, a decoded tile covers."""
        down, along = self.encoding.expand
        units, within = np.arange(tile.line, tile.line + tile.lines), np.arange(down)
        if self.apart:
            lines = (within[:, None] * self.data.shape[0] + units).ravel()
        else:
            lines = (units[:, None] * down + within).ravel()
        return lines, slice(tile.first * along, (tile.first + tile.units) * along)

    def row_major(self, tile: Tile, indices: Int64) -> Int64:
        """Return the indices into (rows, cols), row by row, of a decoded tile's flat indices."""
        lines, places = self.axes(tile)
        width = places.stop - places.start
        line, place = lines[indices // width], indices % width + places.start
        cols = self.shape[1]
        places_in_rows: Int64 = place * cols + line if self.transposed else line * cols + place
        return places_in_rows


def turned(matrix: Matrix) -> Matrix:
    """Return the matrix read the other way round: lines hold input channels where they held output channels."""
    return replace(matrix, shape=matrix.shape[::-1], transposed=not matrix.transposed)
