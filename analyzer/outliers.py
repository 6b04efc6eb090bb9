"""Pure NumPy: exact streaming top-k and statistics of a tensor's magnitudes, without converting what is not ranked.

With the sign bit masked, the bits of an IEEE float order as unsigned integers just as its magnitudes do. So a block
is ranked on its integers; floats are made only for the sums, and only in buffers that fit a core's cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Unsigned = NDArray[np.unsignedinteger[Any]]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Bytes per pass. With less, the interpreter's lock costs more than the work (measured: at 128 KiB a second thread
# gains nothing); with more, the float64 buffer leaves the cache (measured: half the speed at 2 MiB).
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FloatFormat:
    """A float as safetensors stores it; little-endian, with IEEE infinities."""

    bits: np.dtype[Any]
    """The unsigned integer of the same width."""
    mantissa_bits: int
    exponent_bits: int

    @property
    def infinity(self) -> int:
        """The bits of infinity; every larger magnitude is a NaN."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    def keys(self, bits: Unsigned, out: Unsigned | None = None) -> Unsigned:
        """Return the bits without their sign: integers in the order of the magnitudes."""
        mask = np.asarray((1 << (self.mantissa_bits + self.exponent_bits)) - 1, self.bits)
        keys: Unsigned = np.bitwise_and(bits, mask, out=out)
        return keys

    def magnitudes(self, keys: Unsigned, out: Float64, scratch: NDArray[np.uint32]) -> Float64:
        """Fill `out` with the exact float64 magnitudes of finite numbers' keys; `scratch` has their length too."""
        if self.bits.itemsize > 2:
            out[...] = keys.view(f"<f{self.bits.itemsize}")
            return out
        # A 16-bit float's exponent and mantissa, moved to where float32 has them, are that float32 but for the
        # exponent's bias, which a power of two makes up. NumPy's own cast from float16 measured ten times slower.
        scratch[...] = keys
        np.left_shift(scratch, np.uint32(23 - self.mantissa_bits), out=scratch)
        narrow = scratch.view(np.float32)
        rebias = 127 - ((1 << (self.exponent_bits - 1)) - 1)
        if rebias:
            np.multiply(narrow, np.float32(2.0**rebias), out=narrow)
        out[...] = narrow
        return out

    def decode(self, bits: Unsigned) -> Float64:
        """Return the float64 values of the bits, exactly."""
        keys = self.keys(bits)
        nonfinite = keys >= self.infinity
        numbers: Unsigned = np.where(nonfinite, 0, keys)  # of the others `magnitudes` knows nothing
        values = self.magnitudes(numbers, np.empty(bits.shape), np.empty(bits.shape, np.uint32))
        values[nonfinite] = np.where(keys[nonfinite] == self.infinity, np.inf, np.nan)
        return np.where(keys == bits, values, -values)


FORMATS = {
    "F64": FloatFormat(np.dtype("<u8"), mantissa_bits=52, exponent_bits=11),
    "F32": FloatFormat(np.dtype("<u4"), mantissa_bits=23, exponent_bits=8),
    "F16": FloatFormat(np.dtype("<u2"), mantissa_bits=10, exponent_bits=5),
    "BF16": FloatFormat(np.dtype("<u2"), mantissa_bits=7, exponent_bits=8),
}


@dataclass(frozen=True)
class TensorSummary:
    """The statistics of a tensor's finite magnitudes, and its `top` largest weights, best first.

    `places` are row-major indices into (rows, cols), `values` the signed weights; ties are in order of place.
    """

    mean_abs: float
    std: float
    max_abs: float
    nonfinite: int
    places: Int64
    values: Float64


def summarize(
    blocks: Iterable[bytes],
    float_format: FloatFormat,
    *,
    top: int,
    row_major: Callable[[Int64], Int64] = lambda places: places,
) -> TensorSummary:
    """Summarize one tensor from its consecutive blocks; memory is bounded by a block and a chunk.

    `row_major` turns indices in the order of the file into row-major ones. NaN and infinite weights are counted and
    otherwise left out. The sums are float64 in a fixed order: on one machine the result depends neither on the
    blocks' size (where that is whole chunks) nor on threads.
    """
    ranking = TopK(top)
    cut = 0  # the smallest key that could still be ranked
    start = nonfinite = peak = 0
    total = squares = 0.0
    for chunk in _chunks(blocks, float_format.bits):
        key_buffer, wide_buffer, float_buffer = _buffers(float_format.bits)
        keys = float_format.keys(chunk, out=key_buffer[: chunk.size])
        largest = int(keys.max())
        bad: NDArray[np.bool_] | None = None
        if largest >= float_format.infinity:
            bad = keys >= float_format.infinity
            nonfinite += int(np.count_nonzero(bad))
            keys[bad] = 0
            largest = int(keys.max())
        peak = max(peak, largest)
        if largest >= cut:
            hits = np.flatnonzero(keys >= cut) if bad is None else np.flatnonzero((keys >= cut) & ~bad)
            hits = _prefilter(hits, keys, top)
            ranking.push(keys[hits], row_major(hits + start), chunk[hits])
            cut = max(cut, ranking.lowest)
        magnitudes = float_format.magnitudes(keys, float_buffer[: keys.size], wide_buffer[: keys.size])
        total += float(np.einsum("i->", magnitudes))  # measured faster than sum, and as exact at this length
        with np.errstate(over="ignore"):  # float64 weights above 1e154; std is then infinite
            np.multiply(magnitudes, magnitudes, out=magnitudes)
            squares += float(np.einsum("i->", magnitudes))
        start += chunk.size
    finite = start - nonfinite
    if finite == 0:
        return TensorSummary(math.nan, math.nan, math.nan, nonfinite, ranking.places, float_format.decode(ranking.bits))
    mean = total / finite
    return TensorSummary(
        mean_abs=mean,
        std=math.sqrt(max(squares / finite - mean * mean, 0.0)),
        max_abs=float(float_format.decode(np.array([peak], float_format.bits))[0]),
        nonfinite=nonfinite,
        places=ranking.places,
        values=float_format.decode(ranking.bits),
    )


class TopK:
    """The `count` largest scores pushed so far; of equal scores those with the lowest places stay."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._scores: NDArray[Any] | None = None
        self.places: Int64 = np.empty(0, np.int64)
        self.bits: NDArray[Any] = np.empty(0, np.uint16)

    @property
    def lowest(self) -> int:
        """The score below which nothing can be ranked any more."""
        full = self._scores is not None and self._scores.size == self._count
        return int(self._scores[-1]) if full and self._scores is not None and self._count else 0

    def push(self, scores: NDArray[Any], places: Int64, bits: NDArray[Any]) -> None:
        """Add scores with their places and bits, all of one length."""
        if self._scores is not None:
            scores = np.concatenate((self._scores, scores))
            places, bits = np.concatenate((self.places, places)), np.concatenate((self.bits, bits))
        best = np.lexsort((-places, scores))[::-1][: self._count]
        self._scores, self.places, self.bits = scores[best], places[best], bits[best]


def _prefilter(hits: Int64, keys: Unsigned, top: int) -> Int64:
    """Drop hits that `top` others exceed; sorting a whole first chunk would cost more than scanning it."""
    if hits.size <= top:
        return hits
    scores = keys[hits]
    kept: Int64 = hits[scores >= np.partition(scores, -top)[-top]]
    return kept


def _chunks(blocks: Iterable[bytes], bits: np.dtype[Any]) -> Iterator[Unsigned]:
    for block in blocks:
        elements: Unsigned = np.frombuffer(block, bits)
        step = CHUNK_BYTES // bits.itemsize
        for start in range(0, elements.size, step):
            yield elements[start : start + step]


_own = threading.local()


def _buffers(bits: np.dtype[Any]) -> tuple[Unsigned, NDArray[np.uint32], Float64]:
    """Return this thread's buffers for a chunk; new ones for each tensor measured 15 % slower, for their pages."""
    buffers: dict[np.dtype[Any], tuple[Unsigned, NDArray[np.uint32], Float64]] = _own.__dict__.setdefault("buffers", {})
    if bits not in buffers:
        elements = CHUNK_BYTES // bits.itemsize
        buffers[bits] = np.empty(elements, bits), np.empty(elements, np.uint32), np.empty(elements)
    return buffers[bits]


def count_before(
    blocks: Iterable[bytes],
    float_format: FloatFormat,
    *,
    magnitudes: Float64,
    tie_places: Int64,
    row_major: Callable[[Int64], Int64] = lambda places: places,
) -> Int64:
    """Return how many finite weights of a tensor rank before each of `magnitudes`.

    Before means larger, or as large and at a row-major place below the one in `tie_places`.
    """
    counts = np.zeros(magnitudes.size, np.int64)
    start = 0
    for chunk in _chunks(blocks, float_format.bits):
        weights = np.abs(float_format.decode(chunk))
        large = np.flatnonzero((weights >= magnitudes.min()) & np.isfinite(weights))
        places, weights = row_major(large + start), weights[large]
        for index, magnitude in enumerate(magnitudes):
            ties = (weights == magnitude) & (places < tie_places[index])
            counts[index] += np.count_nonzero(weights > magnitude) + np.count_nonzero(ties)
        start += chunk.size
    return counts
