"""Pure NumPy: exact streaming top-k and statistics of a tensor's magnitudes, without converting what is not ranked.

With the sign bit masked, the bits of an IEEE float order as unsigned integers just as its magnitudes do. So a tile
is ranked on its integers; floats are made only for the sums, and only in buffers that fit a core's cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.numbers.encoding import TILE_NUMBERS
from analyzer.numbers.floats import Float64, FloatFormat, Int64, Unsigned

TIES_AT_ONCE = 1 << 16

RowMajor = Callable[[Int64], Int64]
"""Turns flat indices of a tile into row-major places of its matrix."""


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """The statistics of a matrix's finite magnitudes, and its `top` largest weights, best first.

    `places` are row-major indices into (rows, cols), `values` the signed weights; ties are in order of place.
    `scores` are what the weights are ranked by: their magnitudes, or another score of theirs.
    """

    mean_abs: float
    std: float
    max_abs: float
    nonfinite: int
    places: Int64
    values: Float64
    scores: Float64


class Magnitudes:
    """Summarizes one matrix from its tiles, which may come in any order and from several threads.

    NaN and infinite weights are counted and otherwise left out. Each tile is summed in float64 in a fixed order, and
    the tiles' sums exactly: the result depends on the matrix alone. Memory is bounded by a tile and `top`.
    """

    def __init__(self, float_format: FloatFormat, top: int) -> None:
        self._format = float_format
        self._ranking = TopK(top)
        self._merging = threading.Lock()
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._peak = self._nonfinite = self._numbers = 0

    def add(self, bits: Unsigned, row_major: RowMajor) -> None:
        """Add a tile, its bits flat and at most TILE_NUMBERS."""
        key_buffer, wide_buffer, float_buffer = _buffers(self._format.bits)
        infinity = self._format.infinity
        keys = self._format.keys(bits, out=key_buffer[: bits.size])
        largest = int(keys.max())
        bad: NDArray[np.bool_] | None = None
        nonfinite = 0
        if largest >= infinity:
            bad = keys >= infinity
            nonfinite = int(np.count_nonzero(bad))
            keys[bad] = 0
            largest = int(keys.max())
        cut = self._ranking.lowest
        if cut is None or largest >= cut:
            self._ranking.offer(keys, bits, row_major, bad)
        magnitudes = self._format.magnitudes(keys, float_buffer[: keys.size], wide_buffer[: keys.size])
        total = float(np.einsum("i->", magnitudes))  # measured faster than sum, and as exact at this length
        with np.errstate(over="ignore"):  # float64 weights above 1e154; std is then infinite
            np.multiply(magnitudes, magnitudes, out=magnitudes)
            squares = float(np.einsum("i->", magnitudes))
        with self._merging:
            self._sums.append(total)
            self._squares.append(squares)
            self._peak = max(self._peak, largest)
            self._nonfinite += nonfinite
            self._numbers += bits.size

    def summary(self) -> TensorSummary:
        """Return the summary of the tiles added so far."""
        ranking = self._ranking
        values = self._format.decode(ranking.bits.astype(self._format.bits))
        finite = self._numbers - self._nonfinite
        if finite == 0:
            figures = (math.nan, math.nan, math.nan)
        else:
            mean = exact_sum(self._sums) / finite
            peak = float(self._format.decode(np.array([self._peak], self._format.bits))[0])
            figures = (mean, math.sqrt(max(exact_sum(self._squares) / finite - mean * mean, 0.0)), peak)
        return TensorSummary(*figures, self._nonfinite, ranking.places, values, np.abs(values))


def exact_sum(numbers: list[float]) -> float:
    """Return the sum, the same in any order; infinite where it is beyond float64."""
    try:
        return math.fsum(numbers)
    except OverflowError:
        return math.inf


class TopK:
    """The `count` largest scores offered so far, from any thread; of equal scores those with the lowest places stay."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._merging = threading.Lock()
        self.scores: NDArray[Any] = np.empty(0, np.uint8)
        self.places: Int64 = np.empty(0, np.int64)
        self.bits: NDArray[Any] = np.empty(0, np.uint8)

    @property
    def lowest(self) -> Any:
        """The score below which nothing can be ranked any more; null while there is room.

        It only ever grows, so one that is out of date lets too much through, never too little.
        """
        scores = self.scores
        return scores[-1] if scores.size == self._count else None

    def offer(
        self, scores: NDArray[Any], bits: Unsigned, row_major: RowMajor, excluded: NDArray[np.bool_] | None = None
    ) -> None:
        """Rank a tile's scores, all but the excluded; with each kept one its place and its bits."""
        cut = self.lowest
        eligible = scores >= (scores.dtype.type(0) if cut is None else cut)
        if excluded is not None:
            eligible &= ~excluded
        hits = np.flatnonzero(eligible)
        if hits.size > self._count:  # sorting all of a tile would cost more than scanning it
            candidates = scores[hits]
            least = np.partition(candidates, -self._count)[-self._count]
            above, ties = hits[candidates > least], hits[candidates == least]
            hits = np.concatenate((above, _lowest_places(ties, self._count - above.size, row_major)))
        if hits.size:
            self._push(scores[hits], row_major(hits), bits[hits])

    def _push(self, scores: NDArray[Any], places: Int64, bits: NDArray[Any]) -> None:
        with self._merging:
            if self.scores.size:
                scores = np.concatenate((self.scores, scores))
                places, bits = np.concatenate((self.places, places)), np.concatenate((self.bits, bits))
            best = np.lexsort((-places, scores))[::-1][: self._count]
            self.scores, self.places, self.bits = scores[best], places[best], bits[best]


def _lowest_places(indices: Int64, count: int, row_major: RowMajor) -> Int64:
    """Return the `count` indices of the lowest places, a few at a time: in a constant tensor all of a tile ties."""
    kept = indices[:0]
    for start in range(0, indices.size, TIES_AT_ONCE):
        kept = np.concatenate((kept, indices[start : start + TIES_AT_ONCE]))
        if kept.size > count:
            kept = kept[np.argpartition(row_major(kept), count - 1)[:count]]
    return kept


_own = threading.local()


def _buffers(bits: np.dtype[Any]) -> tuple[Unsigned, NDArray[np.uint32], Float64]:
    """Return this thread's buffers for a tile; new ones for each tensor measured 15 % slower, for their pages."""
    buffers: dict[np.dtype[Any], tuple[Unsigned, NDArray[np.uint32], Float64]] = _own.__dict__.setdefault("buffers", {})
    if bits not in buffers:
        buffers[bits] = np.empty(TILE_NUMBERS, bits), np.empty(TILE_NUMBERS, np.uint32), np.empty(TILE_NUMBERS)
    return buffers[bits]


def count_before(
    bits: Unsigned, row_major: RowMajor, float_format: FloatFormat, *, magnitudes: Float64, tie_places: Int64
) -> Int64:
    """Return how many finite weights of a tile rank before each of `magnitudes`.

    Before means larger, or as large and at a row-major place below the one in `tie_places`.
    """
    weights = np.abs(float_format.decode(bits))
    large = np.flatnonzero((weights >= magnitudes.min()) & np.isfinite(weights))
    places, weights = row_major(large), weights[large]
    counts = np.zeros(magnitudes.size, np.int64)
    for index, magnitude in enumerate(magnitudes):
        ties = (weights == magnitude) & (places < tie_places[index])
        counts[index] = np.count_nonzero(weights > magnitude) + np.count_nonzero(ties)
    return counts
