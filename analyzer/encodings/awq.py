"""AWQ's 4-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization
from analyzer.base.errors import shown
from analyzer.encodings.encoding import INT32, NIBBLES, Companions, Float32, Tile
from analyzer.encodings.floats import FORMATS, Unsigned
from analyzer.encodings.matrices import Matrix
from analyzer.encodings.module import StoredModule
from analyzer.encodings.packed import find_packed

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble k of AWQ's int32 is output channel 8 j + AWQ_ORDER[k]


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


def find_awq(module: StoredModule) -> list[Matrix] | None:
    """Return AWQ's integers, [cols, rows / 8]; null where the module has none."""
    packed = find_packed(module, "awq")
    if packed is None:
        return None
    version = quantization(module.config).get("version", "gemm")
    if str(version).lower() != "gemm":
        raise module.refused(packed.name, f"is awq of the version {shown(version, 20)}; only gemm can be read")
    companions = (module.whole(packed.scales), module.whole(packed.zeros))
    shape = (packed.rows, packed.cols)
    return [Matrix(module.whole(packed.name), companions, AWQ(packed.group), shape, transposed=True)]
