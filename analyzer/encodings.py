"""Pure NumPy: how a matrix's numbers are stored, and what they stand for.

A file holds a matrix as lines of units, and a unit stands for one number or several: `expand` says for how many, down
the lines and along them. Plain floats pass through as bits. Quantized ones become float32, a tile at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from analyzer.errors import CheckpointError
from analyzer.outliers import FORMATS, FloatFormat, Unsigned

Float32 = NDArray[np.float32]
Companions = tuple[NDArray[Any], ...]

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
    "I32": INT32,
}
"""Of what is read: data are taken as bits, scales as the floats they are."""

NIBBLES = np.arange(0, 32, 4, dtype=np.uint32)  # shifts of an int32's eight 4-bit numbers
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble k of AWQ's int32 is output channel 8 j + AWQ_ORDER[k]


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


@dataclass(frozen=True)
class Plain:
    """IEEE floats as they are."""

    name: str
    expand = (1, 1)

    @property
    def unit(self) -> np.dtype[Any]:
        """The unsigned integer of the float's width."""
        return self.decoded.bits

    @property
    def decoded(self) -> FloatFormat:
        """The float itself."""
        return FORMATS[self.name]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode."""
        return units


@dataclass(frozen=True)
class Scaled8:
    """8-bit floats, each multiplied by the scale of its block of `block` = (lines, units).

    One block may be the whole tensor, a line, or 128 x 128 as of DeepSeek-V3 (arXiv 2412.19437, 3.3.2).
    """

    name: str
    block: tuple[int, int]
    unit = BYTE
    expand = (1, 1)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; the companion is [blocks down, blocks along]."""
        (scales,) = companions
        table = np.arange(256, dtype=np.uint8).view(NUMPY_DTYPES[self.name]).astype(np.float32)
        values: Float32 = np.take(table, units)
        down = np.arange(tile.line, tile.line + tile.lines) // self.block[0]
        along = np.arange(tile.first, tile.first + tile.units) // self.block[1]
        if scales.shape[1] == 1:
            along = along[:1]
        with np.errstate(invalid="ignore", over="ignore"):  # NaN stays NaN
            values *= scales[np.ix_(down, along)].astype(np.float32)
        return values.view(np.uint32)


@dataclass(frozen=True)
class MXFP4:
    """4-bit floats (E2M1), two a byte, the low one first; 32 along a line share a power of two (OCP MX 1.0)."""

    name = "MXFP4"
    unit = BYTE
    expand = (1, 2)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; the companion is the powers' biased exponents, [lines, numbers / 32]."""
        (exponents,) = companions
        number = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        byte = np.arange(256)
        pair = np.stack((number[byte & 15], number[byte >> 4]), axis=1)  # [256, 2]
        values: Float32 = np.take(pair, units, axis=0).reshape(tile.lines, 2 * tile.units)
        along = np.arange(2 * tile.first, 2 * (tile.first + tile.units)) // 32
        power = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        lines = exponents[tile.line : tile.line + tile.lines]
        with np.errstate(invalid="ignore", over="ignore"):
            values *= power[lines[:, along]]
        return values.view(np.uint32)


@dataclass(frozen=True)
class GPTQ:
    """4-bit integers, eight consecutive input channels an int32 (arXiv 2210.17323, as AutoGPTQ stores them).

    The value is scale * (number - zero), where the first version of the format stores each int32 of zeros less
    0x11111111. `group` is the number of input channels that share a scale, where no g_idx names each one's.
    """

    group: int
    first_version: bool
    named_groups: bool
    name = "GPTQ-4bit"
    unit = INT32
    expand = (8, 1)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales [groups, out], zeros [groups, out / 8], perhaps g_idx [in]."""
        scales, zeros, *g_idx = companions
        inputs = slice(8 * tile.line, 8 * (tile.line + tile.lines))
        outputs = np.arange(tile.first, tile.first + tile.units)
        if self.named_groups:
            groups: NDArray[Any] = g_idx[0][inputs].view(np.int32)
            if groups.min() < 0 or groups.max() >= scales.shape[0]:
                raise CheckpointError(f"names a group outside of its {scales.shape[0]} in g_idx: download it again")
        else:
            groups = np.arange(inputs.start, inputs.stop) // self.group
        numbers = (units[:, None, :] >> NIBBLES[None, :, None]) & 15  # [lines, 8, units]
        # Scales and zeros of the tile's groups first, then of each channel: groups are many channels long.
        present, which = np.unique(groups, return_inverse=True)
        packed = zeros + np.uint32(0x11111111) if self.first_version else zeros
        zero = (packed[np.ix_(present, outputs // 8)] >> NIBBLES[outputs % 8]) & 15
        scale = scales[np.ix_(present, outputs)].astype(np.float32)
        values: Float32 = numbers.reshape(8 * tile.lines, tile.units).astype(np.float32)
        values -= zero.astype(np.float32)[which]
        values *= scale[which]
        return values.view(np.uint32)


@dataclass(frozen=True)
class AWQ:
    """4-bit integers, eight output channels an int32 in an order of its own (arXiv 2306.00978, version "gemm").

    The value is scale * (number - zero); `group` is the number of input channels that share a scale.
    """

    group: int
    name = "AWQ-4bit"
    unit = INT32
    expand = (1, 8)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales [groups, out] and zeros [groups, out / 8]."""
        scales, zeros = companions
        groups = np.arange(tile.line, tile.line + tile.lines) // self.group
        present, which = np.unique(groups, return_inverse=True)
        shifts = NIBBLES[np.argsort(AWQ_ORDER)]
        span = slice(tile.first, tile.first + tile.units)

        def unpack(packed: NDArray[Any]) -> Float32:
            numbers = (packed[:, :, None] >> shifts) & 15  # [lines, units, 8]
            return numbers.reshape(packed.shape[0], -1).astype(np.float32)

        scale = scales[present, 8 * span.start : 8 * span.stop].astype(np.float32)
        values = unpack(units)
        values -= unpack(zeros[present, span])[which]
        values *= scale[which]
        return values.view(np.uint32)
