"""Pure: how a matrix's numbers are stored.

A file holds a matrix as lines of units, and a unit stands for one number or several: `expand` says for how many, down
the lines and along them. Plain floats pass through as bits. Quantized ones become float32, a tile at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from analyzer.numbers.floats import FloatFormat, Unsigned

Float32 = NDArray[np.float32]
Companions = tuple[NDArray[Any], ...]

# Numbers per pass, of a matrix's tiles. With fewer, the interpreter's lock costs more than the work (measured: at 2^16
# a second thread gains nothing); with more, the float64 buffer leaves the cache (measured: half the speed at 2^20).
TILE_NUMBERS = 1 << 19

BYTE = np.dtype(np.uint8)
INT32 = np.dtype("<u4")
NUMPY_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": BYTE,
    "I8": np.dtype(np.int8),
    "I32": INT32,
    "U32": INT32,
    "I64": np.dtype("<i8"),
}
"""Of what is read: packed data are taken as bits, scales and zeros as the numbers they are."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of a matrix's units as the file holds them: whole lines, or a part of one."""

    line: int
    lines: int
    first: int
    units: int


class Encoding(Protocol):
    """How a matrix's numbers are stored."""

    @property
    def name(self) -> str:
        """The name that results show."""
        ...

    @property
    def unit(self) -> np.dtype[Any]:
        """What the file holds."""
        ...

    @property
    def expand(self) -> tuple[int, int]:
        """How many numbers a unit stands for, down the lines and along them."""
        ...

    @property
    def decoded(self) -> FloatFormat:
        """The float whose bits `decode` returns."""
        ...

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """Return the bits of the numbers, [lines * expand[0], units * expand[1]].

        `units` are the tile's, [lines, units]; `companions` the tensors that scale them, whole. Raises
        CheckpointError where these contradict themselves.
        """
        ...
