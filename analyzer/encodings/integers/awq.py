"""AWQ's 4-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.encodings.integers.packed import AWQ as GEMM
from analyzer.encodings.integers.packed import AWQ_GEMV as GEMV
from analyzer.encodings.integers.packed import find_packed
from analyzer.numbers.blocks import blocks
from analyzer.numbers.encoding import BYTE, INT32, Companions, Float32, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import StoredModule
from analyzer.numbers.packing import NIBBLES, floats, numbers


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
        values = _read(units)
        with np.errstate(invalid="ignore", over="ignore"):
            for part, down, along in blocks(values, tile.line, 8 * tile.first, (self.group, 1)):
                part -= _read(zeros[down, along.start // 8 : along.stop // 8])[..., None]
                part *= floats(scales[down, along])[..., None]
        return values.view(np.uint32)


@dataclass(frozen=True)
class AWQGemv:
    """4-bit integers, eight input channels an int32, the lowest first (version "gemv"); zeros are packed alike."""

    group: int
    name = "AWQ-4bit"
    unit = BYTE
    expand = (1, 2)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales [out, at least groups] and zeros [out, at least groups / 8]."""
        scales, zeros = companions
        values = NIBBLES.read(units, numbers("U4"))
        zero = NIBBLES.read(zeros[tile.line : tile.line + tile.lines].view(BYTE), numbers("U4"))  # [lines, groups]
        with np.errstate(invalid="ignore", over="ignore"):
            for part, down, along in blocks(values, tile.line, 2 * tile.first, (1, self.group)):
                part -= zero[:, along, None]
                part *= floats(scales[down, along])[..., None]
        return values.view(np.uint32)


def _read(words: NDArray[Any]) -> Float32:
    """Return the numbers of AWQ's int32, [lines, int32], in the order of the channels.

    The low half holds the channels 0, 2, 4, 6, the high half 1, 3, 5, 7: each half's nibbles are spread out.
    """
    low, high = words & np.uint32(0xFFFF), words >> np.uint32(16)
    both = []
    for half in (low, high):
        half |= half << np.uint32(8)
        half &= np.uint32(0x00FF00FF)
        half |= half << np.uint32(4)
        half &= np.uint32(0x0F0F0F0F)
        both.append(half)
    ordered = both[0] | both[1] << np.uint32(4)
    return NIBBLES.read(ordered.view(BYTE), numbers("U4"))


def find_awq(module: StoredModule) -> list[Matrix] | None:
    """Return AWQ's integers: [cols, rows / 8], or by gemv [rows, cols / 8]; null where the module has none."""
    packed = find_packed(module)
    if packed is None or packed.layout not in (GEMM, GEMV):
        return None
    companions = (module.whole(packed.scales), module.whole(packed.zeros))
    (first, second), (scales_first, scales_second) = packed.stored, packed.scales_shape
    if packed.layout == GEMM:
        cols, rows = first, 8 * second
        group = packed.group(cols, scales_first)
        fits = scales_second == rows and packed.zeros_shape == (scales_first, second)
    else:
        rows, cols = first, 8 * second
        group = cols if packed.told_group == -1 else packed.told_group
        groups = -(-cols // group) if group else 0
        fits = scales_first == rows and scales_second >= groups and packed.zeros_shape == (rows, scales_second / 8)
    if group is None or not fits:
        raise module.refused(
            packed.name,
            f"of shape {list(packed.stored)} with scales {list(packed.scales_shape)} and zeros "
            f"{list(packed.zeros_shape)} is not {packed.layout} of 4 bits in groups that config.json tells",
        )
    if packed.layout == GEMM:
        return [Matrix(module.whole(packed.name), companions, AWQ(group), (rows, cols), transposed=True)]
    [data] = module.parts(packed.name, 1, (rows, cols // 2), unit=BYTE)
    return [Matrix(data, companions, AWQGemv(group), (rows, cols), transposed=False)]
