"""compressed-tensors' integers: packed into int32, or a byte each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization, weight_schemes
from analyzer.base.errors import CheckpointError
from analyzer.numbers.blocks import blocks
from analyzer.numbers.encoding import BYTE, NUMPY_DTYPES, Companions, Float32, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix, Part
from analyzer.numbers.module import FLOAT_SCALES, StoredModule
from analyzer.numbers.packing import BYTES, PACKED_BITS, Packing, floats, numbers
from analyzer.numbers.plain import float_shape
from analyzer.numbers.scaled import BlockScales, Sizes, find_scales

ZEROS = (".zero", ".zeros", ".zero_point", ".zero_points", ".biases")  # of whoever scales by `.scale` or `.scales`


@dataclass(frozen=True)
class Integers:
    """Integers less half their range, or in two's complement; the value is scale * (integer - zero).

    Companions are the scales, [blocks down, blocks along], then zeros where `zeros` says how these are stored: "packed"
    down, as the integers are along a line, or "plain"; then where `named_groups` each input channel's group along.
    """

    name: str
    kind: str
    block: Sizes
    packing: Packing
    zeros: str | None
    named_groups: bool
    decoded = FORMATS["F32"]

    @property
    def unit(self) -> np.dtype[Any]:
        """See Packing.unit."""
        return self.packing.unit

    @property
    def expand(self) -> Sizes:
        """The integers of a unit lie along the line."""
        return 1, self.packing.per_unit

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode and Integers."""
        values = self.packing.read(units, numbers(self.kind))
        scales, *more = companions
        place = tile.first * self.packing.per_unit
        groups = self._groups(more[-1][place : place + values.shape[1]], scales.shape[1]) if self.named_groups else None
        lines = slice(tile.line, tile.line + tile.lines)
        with np.errstate(invalid="ignore", over="ignore"):
            if groups is not None:
                if self.zeros:
                    values -= np.take(self._zeros(more[0], lines), groups, axis=1)
                values *= np.take(floats(scales[lines]), groups, axis=1)
                return values.view(np.uint32)
            for part, down, along in blocks(values, tile.line, place, self.block):
                if self.zeros:
                    part -= self._zeros(more[0], down)[:, along, None]
                part *= floats(scales[down, along])[..., None]
        return values.view(np.uint32)

    def _groups(self, named: NDArray[Any], count: int) -> NDArray[np.int32] | None:
        """Return the group of each input channel; null where they are in order, which -1 stands for."""
        groups: NDArray[np.int32] = named.view(np.int32)
        if groups.max() >= count or groups.min() < -1:
            raise CheckpointError(f"names a group outside of its {count} in weight_g_idx: download it again")
        return groups if groups.min() >= 0 else None

    def _zeros(self, zeros: NDArray[Any], lines: slice) -> Float32:
        """Return the zeros of these lines, [lines, blocks along]."""
        if self.zeros == "plain":
            return zeros[lines].astype(np.float32)
        first, bits = lines.start // 32, self.packing.bits
        words = zeros[first * bits : -(-lines.stop // 32) * bits]  # 32 lines fill as many int32 as bits
        whole = np.zeros((words.shape[1], -(-words.shape[0] // bits) * bits), np.uint32)
        whole[:, : words.shape[0]] = words.T
        found = self.packing.read(whole.view(BYTE).view(self.unit), numbers(self.kind))  # [blocks along, lines]
        return found[:, lines.start - 32 * first : lines.stop - 32 * first].T


def find_pack_quantized(module: StoredModule) -> list[Matrix] | None:
    """Return integers of a few bits in int32, [rows, cols * bits / 32] or with experts before; null where none are."""
    if not module.has(".weight_packed", ("I32",)) or module.has(".meta"):  # that is 2:4 sparse
        return None
    name = f"{module.name}.weight_packed"
    shape = module.tensors[name][1]
    experts, rows, words = float_shape(module, name, shape)
    bits = _bits(module, name, words)
    stored = (*shape[:-1], 32 * words // bits)
    scales = find_scales(module, ".weight_scale", FLOAT_SCALES, stored, [])
    zeros, companions = _zeros(module, stored, scales, bits)
    named_groups = module.has(".weight_g_idx")
    if named_groups:
        channels = module.companion(".weight_g_idx", ("I32",), [(*shape[:-2], stored[-1])])
        companions.append(module.parts(channels, experts, stored[-1:]))
    encoding = Integers(f"INT{bits}", f"S{bits}", scales.block, Packing(bits), zeros, named_groups)
    data = module.parts(name, experts, (rows, 4 * words // encoding.unit.itemsize), unit=encoding.unit)
    return [
        Matrix(part, tuple(more), encoding, (rows, stored[-1]), transposed=False)
        for part, *more in zip(data, *companions, strict=True)
    ]


def find_int8(module: StoredModule) -> list[Matrix] | None:
    """Return integers of a byte each, [rows, cols] or with experts before; null where the module has none."""
    known = quantization(module.config).get("quant_method") in (None, "compressed-tensors", "modelopt")
    if not known or not module.has(".weight", ("I8",)):
        return None
    end = ".weight_scale" if module.has(".weight_scale", FLOAT_SCALES) else _sure_scale(module)
    if end is None:
        return None
    name = f"{module.name}.weight"
    shape = module.tensors[name][1]
    experts, rows, cols = float_shape(module, name, shape)
    scales = find_scales(module, end, FLOAT_SCALES, shape, [])
    zeros, companions = _zeros(module, shape, scales, 8)
    encoding = Integers("INT8", "I8", scales.block, BYTES, zeros, named_groups=False)
    return [
        Matrix(part, tuple(more), encoding, (rows, cols), transposed=False)
        for part, *more in zip(module.parts(name, experts, (rows, cols)), *companions, strict=True)
    ]


def _sure_scale(module: StoredModule) -> str | None:
    """Return the ending of a scale by another name whose shape alone tells that it is of all, or of each row.

    That is where config.json says nothing of quantization, there are no zeros, and rows cannot be columns.
    """
    shape = module.shape(".weight")
    if len(shape) < 2 or quantization(module.config) or any(module.has(end) for end in ZEROS):
        return None
    *experts, rows, cols = shape
    sure = [(), (1,), (*experts, rows, 1), *([(*experts, rows)] if rows != cols else [])]
    return next(
        (end for end in (".scale", ".scales") if module.has(end, FLOAT_SCALES) and module.shape(end) in sure), None
    )


def _bits(module: StoredModule, name: str, words: int) -> int:
    """Return how many bits the integers have.

    What config.json says of some group of modules is enough where it fits and leaves no doubt of padding; else
    weight_shape is read. So no pattern of a config need be matched.
    """
    scales = module.shape(".weight_scale")
    fitting = {
        bits
        for scheme in weight_schemes(module.config)
        if type(bits := scheme.get("num_bits")) is int
        and type(group := scheme.get("group_size")) is int
        and bits in PACKED_BITS
        and group * math.prod(scales[-1:]) * bits == 32 * words
    }
    if len(fitting) == 1:
        return fitting.pop()
    told = module.companion(".weight_shape", ("I64",), [(2,), (3,)])
    cols = int(np.frombuffer(module.checkpoint.content(told), NUMPY_DTYPES["I64"])[-1])
    exact = next((bits for bits in PACKED_BITS if cols * bits == 32 * words), None)
    if exact is None:
        raise module.refused(
            name, f"is compressed-tensors' pack-quantized with {words} words a row for {cols} numbers, which do not fit"
        )
    return exact


def _zeros(
    module: StoredModule, shape: tuple[int, ...], scales: BlockScales, bits: int
) -> tuple[str | None, list[list[Part]]]:
    """Return how a matrix's zeros are stored, null where it has none, and each expert's scales, and zeros."""
    experts = math.prod(shape[:-2])
    companions = [module.parts(scales.name, experts, scales.shape)]
    schemes = [scheme for scheme in weight_schemes(module.config) if scheme.get("num_bits") == bits]
    needed = bool(schemes) and all(scheme.get("symmetric") is False for scheme in schemes)
    if not needed and not module.has(".weight_zero_point"):
        return None, companions
    how = "packed" if module.has(".weight_zero_point", ("I32",)) else "plain"
    down, along = scales.shape
    counts = (-(-down * bits // 32), along) if how == "packed" else scales.shape
    stored = [(*shape[:-2], *counts)] if how == "packed" else [module.shape(".weight_scale")]
    zeros = module.companion(".weight_zero_point", ("I32" if how == "packed" else "I8",), stored)
    return how, [*companions, module.parts(zeros, experts, counts)]
