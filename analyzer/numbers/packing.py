"""Small numbers packed into bytes, and what their codes stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from analyzer.numbers.encoding import BYTE, Float32

# Of codes that no byte holds whole: bytes of a unit, and where its chunks of equal length begin, in bytes and bits.
CHUNKS = {3: (3, ((0, 0), (1, 4))), 5: (5, ((0, 0), (1, 2), (2, 4), (3, 6))), 6: (3, ((0, 0), (1, 4)))}
PACKED_BITS = (1, 2, 3, 4, 5, 6, 8)
FLOAT_CODES = {"E2M1": ml_dtypes.float4_e2m1fn, "E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2}


@dataclass(frozen=True)
class Packing:
    """Codes of this many bits, one after the other along a line: a stream of bits, the lowest of each byte first.

    `high_first` has the codes of a byte the other way round.
    """

    bits: int
    high_first: bool = False

    @property
    def unit(self) -> np.dtype[Any]:
        """The fewest bytes that hold whole codes; where these are several, as the 16-bit words its chunks begin in."""
        if self.bits not in CHUNKS:
            return BYTE
        size, chunks = CHUNKS[self.bits]
        starts = [start for start, _ in chunks]
        words = {"names": [str(start) for start in starts], "formats": ["<u2"] * len(starts), "offsets": starts}
        return np.dtype({**words, "itemsize": size})  # type: ignore[call-overload,no-any-return]

    @property
    def per_unit(self) -> int:
        """How many codes a unit holds."""
        return 8 * self.unit.itemsize // self.bits

    def read(self, units: NDArray[Any], numbers: Float32) -> Float32:
        """Return what the codes of units, [lines, units], stand for: [lines, codes], from `numbers`, [2^bits]."""
        lines, known = units.shape[0], numbers.tobytes()
        if self.bits not in CHUNKS:
            return np.take(_spread(self.bits, 8, self.high_first, known), units, axis=0).reshape(lines, -1)
        size, starts = CHUNKS[self.bits]
        width = 8 * size // len(starts)
        chunks = np.empty((*units.shape, len(starts)), np.uint16)
        for index, (start, shift) in enumerate(starts):
            np.right_shift(units[str(start)], shift, out=chunks[..., index])
        chunks &= np.uint16((1 << width) - 1)
        return np.take(_spread(self.bits, width, self.high_first, known), chunks, axis=0).reshape(lines, -1)


BYTES, NIBBLES = Packing(8), Packing(4)


@lru_cache(maxsize=64)
def _spread(bits: int, width: int, high_first: bool, numbers: bytes) -> Float32:
    """Return what the codes in each chunk of `width` bits stand for, [2^width, codes in it]."""
    shifts = np.arange(0, width, bits)
    codes = (np.arange(1 << width)[:, None] >> (shifts[::-1] if high_first else shifts)) & ((1 << bits) - 1)
    found: Float32 = np.frombuffer(numbers, np.float32)[codes]
    return found


def floats(stored: NDArray[Any]) -> Float32:
    """Return scales or biases as float32. NumPy's own casts from small floats measured three times slower."""
    if stored.dtype == np.float16:
        bits = stored.view(np.uint16)
        wide = (bits & np.uint16(0x7FFF)).astype(np.uint32)
        if wide.max(initial=0) < 0x7C00:  # finite: see FloatFormat.magnitudes
            wide <<= np.uint32(13)
            wide |= (bits & np.uint16(0x8000)).astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32) * np.float32(2.0**112)
    if stored.dtype == ml_dtypes.float8_e4m3fn:
        return np.take(numbers("E4M3"), stored.view(np.uint8))
    exact: Float32 = stored.astype(np.float32)
    return exact


@lru_cache
def numbers(kind: str) -> Float32:
    """Return the number that each code stands for, by the kind's name.

    A float ("E2M1", "E4M3", "E5M2"), an unsigned integer of so many bits ("U4"), one less half its range ("S4"), or one
    in two's complement ("I8").
    """
    if kind in FLOAT_CODES:
        codes = np.arange(16 if kind == "E2M1" else 256, dtype=np.uint8)
        floats: Float32 = codes.view(FLOAT_CODES[kind]).astype(np.float32)
        return floats
    bits = int(kind[1:])
    plain = np.arange(1 << bits)
    half = 1 << (bits - 1)
    meant = {"U": plain, "S": plain - half, "I": (plain ^ half) - half}
    return meant[kind[0]].astype(np.float32)
