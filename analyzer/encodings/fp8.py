"""8-bit floats, with scales or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization, weight_schemes
from analyzer.numbers.encoding import BYTE, Companions, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import EIGHT_BIT_FLOATS, FLOAT_SCALES, POWERS, SCALES, StoredModule
from analyzer.numbers.packing import BYTES, numbers
from analyzer.numbers.plain import float_shape, float_tensor
from analyzer.numbers.scaled import Scaled, Sizes, find_scales

MX_BLOCK = (1, 32)  # of OCP MX 1.0


@dataclass(frozen=True)
class Unscaled8:
    """8-bit floats that nothing scales."""

    name: str
    unit = BYTE
    expand = (1, 1)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode."""
        return BYTES.read(units, numbers(self.name.removeprefix("F8_"))).view(np.uint32)


def find_fp8(module: StoredModule) -> list[Matrix] | None:
    """Return 8-bit floats with their scales, [rows, cols] or [experts, rows, cols]; null where there are none.

    Scales are of the tensor, of its rows, of blocks as of DeepSeek-V3 (arXiv 2412.19437, 3.3.2), or powers of two of
    each 32 along a row (MXFP8). Where no tensor of the checkpoint has any, the floats are taken as they are.
    """
    name = float_tensor(module, EIGHT_BIT_FLOATS)
    if name is None:
        return None
    dtype, shape = module.tensors[name]
    experts, rows, cols = float_shape(module, name, shape)
    data = module.parts(name, experts, (rows, cols))
    end = next((end for end in SCALES if module.has(end)), None)
    if end is None:
        if module.checkpoint.has_scaled_floats:
            raise module.refused(name, f"is stored as {dtype} without its scales, which others have: download it again")
        return [Matrix(part, (), Unscaled8(dtype), (rows, cols), transposed=False) for part in data]
    scales = find_scales(module, end, (*FLOAT_SCALES, *POWERS), shape, _block_sizes(module))
    powers = module.tensors[scales.name][0] in POWERS
    encoding = Scaled(
        "MXFP8" if powers and scales.block == MX_BLOCK else dtype, dtype.removeprefix("F8_"), scales.block
    )
    scale_parts = module.parts(scales.name, experts, scales.shape, dtype="F8_E8M0" if powers else None)
    return [
        Matrix(part, (scale,), encoding, (rows, cols), transposed=False)
        for part, scale in zip(data, scale_parts, strict=True)
    ]


def _block_sizes(module: StoredModule) -> list[Sizes]:
    """Return the sizes that blocks may have: what config.json tells, else what is usual."""
    told = [quantization(module.config).get("weight_block_size")]
    told += [scheme.get("block_structure") for scheme in weight_schemes(module.config)]
    known = [(size[0], size[1]) for size in told if _is_size(size)]
    return [*(known or [(128, 128)]), MX_BLOCK]


def _is_size(said: object) -> TypeGuard[list[int]]:
    return isinstance(said, list) and len(said) == 2 and all(type(n) is int and n > 0 for n in said)
