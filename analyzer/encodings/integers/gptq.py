"""GPTQ's integers of 2, 3, 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import CheckpointError
from analyzer.encodings.integers.packed import GPTQ as FIRST
from analyzer.encodings.integers.packed import GPTQ_V2 as SECOND
from analyzer.encodings.integers.packed import find_packed
from analyzer.numbers.encoding import BYTE, INT32, TILE_NUMBERS, Companions, Float32, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import StoredModule
from analyzer.numbers.packing import Packing, floats, numbers

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQ:
    """Integers of consecutive input channels in int32, the lowest bits first (arXiv 2210.17323, as AutoGPTQ has them).

    The value is scale * (number - zero), where the first version of the format stores zeros less 1, taken from the
    whole int32 except where a number may lie in two. `group` is the number of input channels that share a scale, null
    where g_idx names each one's. No int32 holds whole numbers of 3 bits: three lines of these, of `rows` each, are one
    unit.
    """

    bits: int
    rows: int
    group: int | None
    first_version: bool
    decoded = FORMATS["F32"]

    @property
    def name(self) -> str:
        """GPTQ, and how many bits."""
        return f"GPTQ-{self.bits}bit"

    @property
    def unit(self) -> np.dtype[Any]:
        """An int32, or three lines of these."""
        return np.dtype((np.void, 12 * self.rows)) if self.bits == 3 else INT32

    @property
    def expand(self) -> tuple[int, int]:
        """The numbers of an int32 lie across the lines."""
        return (32, self.rows) if self.bits == 3 else (32 // self.bits, 1)

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales [groups, out], zeros [groups, out * bits / 32], perhaps g_idx."""
        scales, zeros, *g_idx = companions
        down, along = self.expand
        inputs = np.arange(down * tile.line, down * (tile.line + tile.lines))
        outputs = slice(along * tile.first, along * (tile.first + tile.units))
        # Scales and zeros of the tile's groups first, then of each channel: groups are many channels long.
        if g_idx:
            groups: NDArray[Any] = g_idx[0][inputs].view(np.int32)
            if groups.min() < 0 or groups.max() >= scales.shape[0]:
                raise CheckpointError(f"names a group outside of its {scales.shape[0]} in g_idx: download it again")
            present, which = np.unique(groups, return_inverse=True)
        else:
            assert self.group is not None
            present = np.arange(inputs[0] // self.group, inputs[-1] // self.group + 1)
            which = inputs // self.group - present[0]
        codes = self._unpack(units.view(INT32).reshape(tile.lines, -1, outputs.stop - outputs.start))
        steps = codes.reshape(inputs.size, -1).astype(self._steps)
        steps -= self._zeros(zeros[present], outputs)[which]
        values: Float32 = steps.astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            values *= floats(scales[present, outputs])[which]
        return values.view(np.uint32)

    @property
    def _steps(self) -> type[np.signedinteger[Any]]:
        """The shortest integer that holds the difference of two numbers."""
        return np.int16 if self.bits == 8 else np.int8

    def _zeros(self, zeros: NDArray[Any], outputs: slice) -> NDArray[Any]:
        """Return the zeros of these output channels, [groups, out], from the int32 that hold them, a line a group."""
        packing, known = Packing(self.bits), numbers(f"U{self.bits}")
        held = 3 if self.bits == 3 else 1  # int32 that hold whole numbers
        first = outputs.start * self.bits // 32 // held * held
        last = -(-outputs.stop * self.bits // 32 // held) * held
        words = zeros[:, first:last]
        if self.first_version and held == 1:
            words = words + np.uint32(sum(1 << place for place in range(0, 32, self.bits)))
        elif self.first_version:
            known = np.roll(known, -1)
        found = packing.read(np.ascontiguousarray(words).view(BYTE).view(packing.unit), known)
        start = outputs.start - first * 32 // self.bits
        return found[:, start : start + outputs.stop - outputs.start].astype(self._steps)

    def _unpack(self, words: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the codes in int32, [lines, int32 that hold them, width], as [lines, codes, width]."""
        lines, count, width = words.shape
        # Byte by byte, which measured four times faster than int32 by int32.
        planes = np.ascontiguousarray(words).view(BYTE).reshape(lines, count, width, 4).transpose(0, 1, 3, 2)
        stream = np.ascontiguousarray(planes).reshape(lines, 4 * count, width)
        period = 3 if self.bits == 3 else 1  # bytes that hold whole codes
        codes = np.empty((lines, 32 * count // self.bits, width), np.uint8)
        held = 8 * period // self.bits
        for place in range(held):
            byte, shift = divmod(self.bits * place, 8)
            code = stream[:, byte::period] >> np.uint8(shift)
            if shift + self.bits > 8:
                code |= stream[:, byte + 1 :: period] << np.uint8(8 - shift)
            np.bitwise_and(code, np.uint8((1 << self.bits) - 1), out=codes[:, place::held])
        return codes


def find_gptq(module: StoredModule) -> list[Matrix] | None:
    """Return GPTQ's integers, [cols * bits / 32, rows]; null where the module has none.

    The shapes tell how many bits they have, which differs from module to module, whatever config.json says of it.
    """
    packed = find_packed(module)
    if packed is None or packed.layout not in (FIRST, SECOND):
        return None
    groups, rows = packed.scales_shape
    bits = next((bits for bits in BITS if packed.zeros_shape == (groups, rows * bits / 32)), None)
    if packed.stored[1] != rows or bits is None or packed.stored[0] * 32 % bits:
        raise module.refused(
            packed.name,
            f"of shape {list(packed.stored)} with scales {list(packed.scales_shape)} and zeros "
            f"{list(packed.zeros_shape)} is gptq of no number of bits that can be read",
        )
    cols = packed.stored[0] * 32 // bits
    names = [packed.scales, packed.zeros]
    group = None
    if module.has(".g_idx"):
        names.append(module.companion(".g_idx", ("I32",), [(cols,)]))
    else:
        group = packed.group(cols, groups)
        if group is None:
            raise module.refused(
                packed.scales, f"has {groups} groups of {cols} input channels: config.json tells no size"
            )
    encoding = GPTQ(bits, rows, group, first_version=packed.layout == FIRST)
    down, along = encoding.expand
    if bits == 3 and (cols % 32 or down * along > TILE_NUMBERS):
        raise module.refused(
            packed.name, f"is {rows} x {cols} in 3 bits, more than can be read at once, or no multiple of 32"
        )
    [data] = module.parts(packed.name, 1, (cols // down, rows // along), unit=encoding.unit)
    return [Matrix(data, tuple(map(module.whole, names)), encoding, (rows, cols), transposed=True)]
