"""Small numbers multiplied by the scale of their block: what most formats of 4 and 8 bits are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization
from analyzer.numbers.blocks import blocks
from analyzer.numbers.encoding import Companions, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.module import StoredModule
from analyzer.numbers.packing import BYTES, Packing, floats, numbers

Sizes = tuple[int, int]


@dataclass(frozen=True)
class Scaled:
    """Codes that stand for numbers of a `kind` (see packing.numbers), each times the scale of its block.

    `block` is (lines, numbers along them). A second companion is a number that multiplies all scales, or with `divided`
    divides them.
    """

    name: str
    kind: str
    block: Sizes
    packing: Packing = BYTES
    divided: bool = False
    decoded = FORMATS["F32"]

    @property
    def unit(self) -> np.dtype[Any]:
        """See Packing.unit."""
        return self.packing.unit

    @property
    def expand(self) -> Sizes:
        """The numbers of a unit lie along the line."""
        return 1, self.packing.per_unit

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are the scales, [blocks down, blocks along], and perhaps a number."""
        values = self.packing.read(units, numbers(self.kind))
        scales, *factors = companions
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # NaN stays NaN
            for part, down, along in blocks(values, tile.line, tile.first * self.packing.per_unit, self.block):
                scale = floats(scales[down, along])
                for factor in factors:
                    scale = scale / floats(factor) if self.divided else scale * floats(factor)
                part *= scale[..., None]
        return values.view(np.uint32)


@dataclass(frozen=True)
class BlockScales:
    """The tensor that holds a matrix's scales, how many there are down and along, and how much each covers."""

    name: str
    shape: Sizes
    block: Sizes


def find_scales(
    module: StoredModule, end: str, dtypes: Collection[str], shape: tuple[int, ...], blocks: Sequence[Sizes]
) -> BlockScales:
    """Return what the module's tensor of this ending scales of a matrix of this shape, or of one for each expert.

    That is all of it, each of its lines, blocks of one of the sizes given, or equal parts of lines. Raises
    ArchitectureError where the tensor has another dtype or shape.
    """
    *before, rows, cols = shape
    experts = tuple(before)
    sizes = {(-(-rows // down), -(-cols // along)): (down, along) for down, along in reversed(blocks)}
    allowed: dict[tuple[int, ...], tuple[Sizes, Sizes]] = {
        **{(*experts, *counts): (counts, block) for counts, block in sizes.items()},
        (*experts, rows): ((rows, 1), (1, cols)),
        (*experts, rows, 1): ((rows, 1), (1, cols)),
        (*experts, 1): ((1, 1), (rows, cols)),
        (*experts, 1, 1): ((1, 1), (rows, cols)),
        experts: ((1, 1), (rows, cols)),
        (): ((1, 1), (rows, cols)),
    }
    if experts and quantization(module.config).get("quant_method") == "fbgemm_fp8":  # Llama 4's are [in, out]
        allowed |= dict.fromkeys([(*experts, cols, 1), (*experts, 1, cols)], ((1, cols), (rows, 1)))
    stored = module.shape(end)
    count = stored[-1] if stored else 0
    if count and cols % count == 0:
        allowed.setdefault((*experts, rows, count), ((rows, count), (1, cols // count)))
    return BlockScales(module.companion(end, dtypes, allowed), *allowed[stored])
