"""8-bit floats with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization
from analyzer.base.errors import shown
from analyzer.encodings.encoding import BYTE, NUMPY_DTYPES, Companions, Float32, Tile
from analyzer.encodings.floats import FORMATS, Unsigned
from analyzer.encodings.matrices import Matrix
from analyzer.encodings.module import FLOAT_SCALES, StoredModule
from analyzer.encodings.plain import float_shape, float_tensor

FP8 = ("F8_E4M3", "F8_E5M2")


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


def find_fp8(module: StoredModule) -> list[Matrix] | None:
    """Return 8-bit floats with their scales, [rows, cols] or [experts, rows, cols]; null where there are none."""
    name = float_tensor(module, FP8)
    if name is None:
        return None
    dtype, shape = module.tensors[name]
    experts, rows, cols = float_shape(module, name, shape)
    scale, scale_shape, block = _scale_of(module, name, shape)
    return [
        Matrix(data, (part,), Scaled8(dtype, block), (rows, cols), transposed=False)
        for data, part in zip(
            module.parts(name, experts, (rows, cols)), module.parts(scale, experts, scale_shape), strict=True
        )
    ]


def _scale_of(module: StoredModule, name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Return the name of an 8-bit matrix's scales, their shape for one expert, and how much each covers."""
    rows, cols = shape[-2:]
    experts = shape[:-2]
    size = quantization(module.config).get("weight_block_size")
    block = (128, 128)
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        block = (size[0], size[1])
    blocks = (-(-rows // block[0]), -(-cols // block[1]))
    allowed: dict[tuple[int, ...], tuple[tuple[int, int], tuple[int, int]]] = {
        (*experts, *blocks): (blocks, block),
        (*experts, rows): ((rows, 1), (1, cols)),
        (*experts, rows, 1): ((rows, 1), (1, cols)),
        (*experts, 1): ((1, 1), (rows, cols)),
        (*experts, 1, 1): ((1, 1), (rows, cols)),
        experts: ((1, 1), (rows, cols)),
    }
    stems = ["_scale_inv", "_scale"] if name.endswith(".weight") or experts else []
    for end in stems:
        if name + end in module.tensors:
            scale = module.companion(end, (*FLOAT_SCALES, "F8_E8M0"), allowed, of=name)
            return scale, *allowed[module.tensors[scale][1]]
    raise module.refused(
        name,
        f"is stored as {module.tensors[name][0]} without its scales ({shown(name)}_scale or _scale_inv): "
        "download it again",
    )
