"""GPTQ's integers of 2, 3, 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import CheckpointError
from analyzer.encodings.encoding import INT32, TILE_NUMBERS, Companions, Float32, Tile
from analyzer.encodings.floats import FORMATS, Unsigned
from analyzer.encodings.matrices import Matrix
from analyzer.encodings.module import StoredModule
from analyzer.encodings.packed import GPTQ as FIRST
from analyzer.encodings.packed import GPTQ_V2 as SECOND
from analyzer.encodings.packed import find_packed

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
        if g_idx:
            groups: NDArray[Any] = g_idx[0][inputs].view(np.int32)
            if groups.min() < 0 or groups.max() >= scales.shape[0]:
                raise CheckpointError(f"names a group outside of its {scales.shape[0]} in g_idx: download it again")
        else:
            assert self.group is not None
            groups = inputs // self.group
        # Scales and zeros of the tile's groups first, then of each channel: groups are many channels long.
        present, which = np.unique(groups, return_inverse=True)
        zero = self._zeros(zeros, present, outputs)
        scale = scales[present, outputs].astype(np.float32)
        words = units.view(INT32).reshape(tile.lines, -1, outputs.stop - outputs.start)  # [lines, int32 a unit, out]
        values = self._unpack(words).reshape(inputs.size, -1).astype(np.float32)
        values -= zero[which]
        values *= scale[which]
        return values.view(np.uint32)

    def _zeros(self, zeros: NDArray[Any], groups: NDArray[Any], outputs: slice) -> Float32:
        """Return the zeros of these groups and output channels, [groups, out]."""
        words, held = (3, 32) if self.bits == 3 else (1, 32 // self.bits)
        first, last = outputs.start // held, -(-outputs.stop // held)
        packed = zeros[groups, first * words : last * words].reshape(groups.size, -1, words)
        if self.first_version and words == 1:
            packed = packed + np.uint32(sum(1 << self.bits * place for place in range(held)))
        unpacked = self._unpack(packed.transpose(0, 2, 1))  # [groups, held, int32 or three]
        if self.first_version and words == 3:
            unpacked = (unpacked + np.uint32(1)) & np.uint32(7)
        found = unpacked.transpose(0, 2, 1).reshape(groups.size, -1)
        return found[:, outputs.start - first * held : outputs.stop - first * held].astype(np.float32)

    def _unpack(self, words: NDArray[Any]) -> NDArray[np.uint32]:
        """Return the numbers in int32, [lines, int32 that hold them, width], as [lines, numbers, width]."""
        lines, count, width = words.shape
        numbers = np.empty((lines, 32 * count // self.bits, width), np.uint32)
        for place in range(numbers.shape[1]):
            word, shift = divmod(self.bits * place, 32)
            np.right_shift(words[:, word], np.uint32(shift), out=numbers[:, place])
            if shift + self.bits > 32:
                numbers[:, place] |= words[:, word + 1] << np.uint32(32 - shift)
        numbers &= np.uint32((1 << self.bits) - 1)
        return numbers


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
