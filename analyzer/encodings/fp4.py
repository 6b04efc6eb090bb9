"""4-bit floats (E2M1), two a byte, the low one first: MXFP4, as in gpt-oss, and NVFP4."""

from __future__ import annotations

import math
from collections.abc import Collection

from analyzer.base.config import quantization
from analyzer.base.errors import shown
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import FLOAT_SCALES, MAX_EXPERTS, POWERS, SCALES, StoredModule
from analyzer.numbers.packing import NIBBLES
from analyzer.numbers.plain import float_shape
from analyzer.numbers.scaled import Scaled

MXFP4 = Scaled("MXFP4", "E2M1", (1, 32), NIBBLES)
"""32 along a line share a power of two (OCP MX 1.0)."""
NVFP4 = Scaled("NVFP4", "E2M1", (1, 16), NIBBLES)
"""16 along a line share an 8-bit float, and all of these a factor (NVIDIA's ModelOpt: `weight_scale_2`)."""
NVFP4_DIVIDED = Scaled("NVFP4", "E2M1", (1, 16), NIBBLES, divided=True)
"""The same, where the factor is stored as its inverse (compressed-tensors: `weight_global_scale`)."""


def find_gpt_oss(module: StoredModule) -> list[Matrix] | None:
    """Return gpt-oss's experts: blocks [experts, rows, cols / 32, 16], scales [experts, rows, cols / 32]."""
    dot = next((dot for dot in ("_", ".") if module.has(f"{dot}blocks", ("U8",))), None)
    if dot is None:
        return None
    name = f"{module.name}{dot}blocks"
    shape = module.tensors[name][1]
    if len(shape) != 4 or shape[3] != 16 or 0 in shape or shape[0] > MAX_EXPERTS:
        raise module.refused(name, f"has the shape {shown(shape, 60)}, not [experts, rows, cols / 32, 16]")
    experts, rows, blocks, _ = shape
    scales = module.companion(f"{dot}scales", ("U8",), [shape[:3]])
    return [
        Matrix(data, (scale,), MXFP4, (rows, 32 * blocks), transposed=False)
        for data, scale in zip(
            module.parts(name, experts, (rows, 16 * blocks)),
            module.parts(scales, experts, (rows, blocks), dtype="F8_E8M0"),
            strict=True,
        )
    ]


def find_mxfp4(module: StoredModule) -> list[Matrix] | None:
    """Return pairs [rows, cols / 2] whose scales are powers of two: DeepSeek-V4's, or compressed-tensors'."""
    name = _pairs(module, ("U8", "I8"))
    end = next((end for end in SCALES if module.has(end, POWERS)), None)
    if name is None or end is None or str(quantization(module.config).get("data_type")).startswith("mx_int"):
        return None
    shape = _scales_shape(module, name, MXFP4)
    if module.has(end, ("U8",)) and module.shape(end) != shape:  # bytes may be anything else
        return None
    return _find(module, name, MXFP4, module.companion(end, POWERS, [shape]), None)


def find_nvfp4(module: StoredModule) -> list[Matrix] | None:
    """Return pairs [rows, cols / 2] whose scales are 8-bit floats and themselves scaled."""
    name = _pairs(module, ("U8",))
    if name is None or not module.has(".weight_scale", ("F8_E4M3",)):
        return None
    scales = module.companion(".weight_scale", ("F8_E4M3",), [_scales_shape(module, name, NVFP4)])
    encoding, end = (NVFP4, ".weight_scale_2")
    if module.has(".weight_global_scale"):
        encoding, end = (NVFP4_DIVIDED, ".weight_global_scale")
    each = module.tensors[name][1][:-2]
    factor = module.companion(end, FLOAT_SCALES, [each, (*each, 1), (*each, 1, 1), (), (1,)])
    return _find(module, name, encoding, scales, factor)


def _pairs(module: StoredModule, dtypes: Collection[str]) -> str | None:
    return next((module.name + end for end in (".weight_packed", ".weight", "") if module.has(end, dtypes)), None)


def _scales_shape(module: StoredModule, name: str, encoding: Scaled) -> tuple[int, ...]:
    *lines, pairs = module.tensors[name][1] or (0,)
    return (*lines, math.ceil(2 * pairs / encoding.block[1]))


def _find(module: StoredModule, name: str, encoding: Scaled, scales: str, factor: str | None) -> list[Matrix]:
    experts, rows, pairs = float_shape(module, name, module.tensors[name][1])
    dtype = "F8_E8M0" if encoding is MXFP4 else None
    companions = [module.parts(scales, experts, (rows, module.tensors[scales][1][-1]), dtype=dtype)]
    if factor is not None:
        companions.append(module.parts(factor, experts, (1, 1)))
    return [
        Matrix(data, tuple(scale), encoding, (rows, 2 * pairs), transposed=False)
        for data, *scale in zip(module.parts(name, experts, (rows, pairs)), *companions, strict=True)
    ]
