"""MXFP4, as gpt-oss stores its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import shown
from analyzer.encodings.encoding import BYTE, Companions, Float32, Tile
from analyzer.encodings.floats import FORMATS, Unsigned
from analyzer.encodings.matrices import Matrix
from analyzer.encodings.module import MAX_EXPERTS, StoredModule


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


def find_mxfp4(module: StoredModule) -> list[Matrix] | None:
    """Return gpt-oss's experts: blocks [experts, rows, cols / 32, 16], scales [experts, rows, cols / 32]."""
    name = f"{module.name}_blocks"
    dtype, shape = module.tensors.get(name, ("", ()))
    if dtype != "U8":
        return None
    if len(shape) != 4 or shape[3] != 16 or 0 in shape or shape[0] > MAX_EXPERTS:
        raise module.refused(name, f"has the shape {shown(shape, 60)}, not [experts, rows, cols / 32, 16]")
    experts, rows, blocks, _ = shape
    scales = module.companion("_scales", ("U8",), [shape[:3]])
    return [
        Matrix(data, (scale,), MXFP4(), (rows, 32 * blocks), transposed=False)
        for data, scale in zip(
            module.parts(name, experts, (rows, 16 * blocks)),
            module.parts(scales, experts, (rows, blocks)),
            strict=True,
        )
    ]
