"""BitNet's ternary weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization
from analyzer.numbers.encoding import BYTE, Companions, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import FLOAT_SCALES, StoredModule


@dataclass(frozen=True)
class BitNet:
    """-1, 0 or 1, stored plus 1; four output channels a byte, a quarter of the matrix apart (arXiv 2402.17764).

    Each is divided by the one scale, or multiplied where the model's linear layers do that.
    """

    divided: bool
    name = "BitNet"
    unit = BYTE
    expand = (4, 1)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; the companion is the scale, [1]. A tile's lines of the first quarter come first."""
        values = np.empty((4, *units.shape), np.float32)
        scale = companions[0].astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            factor = 1 / scale if self.divided else scale
            for quarter in range(4):
                values[quarter] = ((units >> np.uint8(2 * quarter)) & np.uint8(3)).view(np.int8) - np.int8(1)
            values *= factor
        return values.reshape(4 * tile.lines, tile.units).view(np.uint32)


def find_bitnet(module: StoredModule) -> list[Matrix] | None:
    """Return BitNet's packed weights, [rows / 4, cols]; null where the module has none."""
    said = quantization(module.config)
    if said.get("quant_method") != "bitnet" or not module.has(".weight", ("U8",)):
        return None
    name, shape = f"{module.name}.weight", module.shape(".weight")
    if len(shape) != 2 or 0 in shape:
        raise module.refused(name, f"has the shape {list(shape)}, which no down projection of BitNet has")
    scale = module.whole(module.companion(".weight_scale", FLOAT_SCALES, [(1,), ()]))
    encoding = BitNet(divided=said.get("linear_class") != "autobitlinear")
    return [Matrix(module.whole(name), (scale,), encoding, (4 * shape[0], shape[1]), transposed=False, apart=True)]
