"""Pure NumPy: two versions of one matrix, compared weight by weight from their tiles, however each is stored."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Int64, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.scan.outliers import exact_sum

# Numbers compared at once, whose float64 values stay in a core's cache.
CHUNK_NUMBERS = 1 << 16


@dataclass(frozen=True, slots=True)
class MatrixChange:
    """How two versions of a matrix differ, over the weights that are finite in both.

    `same` tells that no weight's value differs. `place` is the row-major place of the weight that changed most (of
    equals the first), null where none did; `old` and `new` are its values. `squares` is the sum of all squared changes,
    `excluded` that of the squares of old weights that are finite there alone.
    """

    same: bool
    place: int | None
    old: float
    new: float
    squares: float
    excluded: float = 0.0

    @classmethod
    def of_kept(cls, body: Mapping[str, Any] | None) -> MatrixChange | None:
        """Return what was kept as the fields of one, if it is whole."""
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            if body is not None:
                same, place = body["same"] is True, body["place"]
                figures = (float(body[name]) for name in ("old", "new", "squares", "excluded"))
                return cls(same, None if place is None else int(place), *figures)
        return None


def comparable(old: Matrix, new: Matrix) -> bool:
    """Tell whether two matrices can be compared from their tiles: of one shape, the same way round, in whole lines."""
    return old.shape == new.shape and old.transposed == new.transposed and _in_one_piece(old) and _in_one_piece(new)


def _in_one_piece(matrix: Matrix) -> bool:
    """Tell whether each tile is a run of the matrix's numbers as the file has them, line after line."""
    return matrix.encoding.expand[0] == 1 or (matrix.data.shape[1] <= matrix.most_units and not matrix.apart)


class Meeting(ABC):
    """Brings tiles of two versions of one matrix together, which may come in any order and from several threads.

    A tile waits for those of the other version that cover the same weights. So memory is bounded by how far one version
    is ahead of the other. What each stretch that two tiles share is cut into depends on the matrices alone.
    """

    def __init__(self, old: Matrix, new: Matrix) -> None:
        """Compare two matrices that are `comparable`."""
        self._matrices = (old, new)
        self._waiting: tuple[dict[int, _Piece], dict[int, _Piece]] = ({}, {})
        self._meeting = threading.Lock()

    def take(self, side: int, tile: Tile, bits: Unsigned) -> None:
        """Take a tile of the old version (`side` 0) or the new one (1); its decoded bits, [lines, numbers along]."""
        matrix = self._matrices[side]
        lines, places = matrix.axes(tile)
        width = matrix.data.shape[1] * matrix.encoding.expand[1]
        piece = _Piece(int(lines[0]) * width + places.start, bits.ravel())
        shared: list[tuple[int, Unsigned, Unsigned]] = []
        with self._meeting:
            others = self._waiting[1 - side]
            for other in [o for o in others.values() if o.start < piece.stop and piece.start < o.stop]:
                start, stop = max(piece.start, other.start), min(piece.stop, other.stop)
                both = (piece.cut(start, stop), other.cut(start, stop))
                shared.append((start, *both) if side == 0 else (start, *both[::-1]))
                piece.left -= stop - start
                other.left -= stop - start
                if not other.left:
                    del others[other.start]
            if piece.left:
                self._waiting[side][piece.start] = piece
                piece.bits = piece.bits.copy()  # it must not hold on to a block
        for start, old, new in shared:
            self._compare(start, old, new)

    def _compare(self, start: int, old_bits: Unsigned, new_bits: Unsigned) -> None:
        for first in range(0, old_bits.size, CHUNK_NUMBERS):
            chunk = slice(first, first + CHUNK_NUMBERS)
            self._compare_chunk(start + first, old_bits[chunk], new_bits[chunk])

    @abstractmethod
    def _compare_chunk(self, start: int, old_bits: Unsigned, new_bits: Unsigned) -> None:
        """Take the same numbers of both versions, the first of which is `start` as the files have them."""


class Comparison(Meeting):
    """Compares two versions of one matrix: what changed, and which weight changed most.

    Each chunk is summed in float64, and these sums exactly: the result depends on the matrices alone.
    """

    def __init__(self, old: Matrix, new: Matrix) -> None:
        """See Meeting."""
        super().__init__(old, new)
        self._largest: tuple[float, int | None, float, float] = (0.0, None, 0.0, 0.0)  # change, -place, old, new
        self._squares: list[float] = []
        self._excluded: list[float] = []
        self._same = True

    def result(self) -> MatrixChange:
        """Return how the versions differ, once all tiles of both were taken."""
        _, negative_place, old, new = self._largest
        place = None if negative_place is None else -negative_place
        return MatrixChange(self._same, place, old, new, exact_sum(self._squares), exact_sum(self._excluded))

    def _compare_chunk(self, start: int, old_bits: Unsigned, new_bits: Unsigned) -> None:
        old_format, new_format = (matrix.encoding.decoded for matrix in self._matrices)
        if old_format == new_format and np.array_equal(old_bits, new_bits):
            return
        old, new = old_format.decode(old_bits), new_format.decode(new_bits)
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.subtract(new, old)
            np.abs(change, out=change)
            squares = float(np.einsum("i,i->", change, change))
        if (not squares or not math.isfinite(squares)) and np.array_equal(old, new, equal_nan=True):
            return  # but for the sign of a zero, or the way in which it is stored
        excluded = 0.0
        if not math.isfinite(squares):
            lost = ~np.isfinite(change)
            change[lost] = 0.0
            with np.errstate(over="ignore"):
                squares = float(np.einsum("i,i->", change, change))
                gone = old[lost & np.isfinite(old)]
                excluded = float(np.einsum("i,i->", gone, gone))
        largest = float(change.max())
        with self._meeting:
            self._same = False
            self._squares.append(squares)
            self._excluded.append(excluded)
            if not largest or largest < self._largest[0]:
                return
            numbers = np.flatnonzero(change == largest)
            places = self._row_major(start + numbers)
            best = int(places.argmin())
            found = (largest, -int(places[best]), float(old[numbers[best]]), float(new[numbers[best]]))
            if self._largest[1] is None or found[:2] > self._largest[:2]:
                self._largest = found

    def _row_major(self, numbers: Int64) -> Int64:
        """Return the row-major places of numbers counted line after line as the files have them."""
        matrix = self._matrices[0]
        rows, cols = matrix.shape
        return numbers % rows * cols + numbers // rows if matrix.transposed else numbers


class _Piece:
    """A run of a matrix's numbers; `left` counts those that the other version has not met yet."""

    def __init__(self, start: int, bits: Unsigned) -> None:
        self.start, self.stop, self.bits, self.left = start, start + bits.size, bits, bits.size

    def cut(self, start: int, stop: int) -> Unsigned:
        return self.bits[start - self.start : stop - self.start]
