"""MLX's quantized weights: words of 32 bits that hold a stream of codes, the lowest bits first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import parts_of
from analyzer.encodings.blocks import blocks
from analyzer.encodings.encoding import Companions, Tile
from analyzer.encodings.floats import FORMATS, Unsigned
from analyzer.encodings.fp4 import MXFP4, NVFP4
from analyzer.encodings.matrices import Matrix
from analyzer.encodings.module import FLOAT_SCALES, StoredModule
from analyzer.encodings.packing import PACKED_BITS, Packing, floats, numbers
from analyzer.encodings.plain import float_shape
from analyzer.encodings.scaled import Scaled

# Without biases the codes are floats, and how many words share a scale tells which, and what the scales are.
FLOATS_BY_WORDS = {
    4: (MXFP4, "F8_E8M0"),
    8: (Scaled("MXFP8", "E4M3", (1, 32)), "F8_E8M0"),
    2: (NVFP4, "F8_E4M3"),
}


@dataclass(frozen=True)
class MLXAffine:
    """Integers of `bits` bits; the value is scale * integer + bias, one of each for a `group` along a line."""

    bits: int
    group: int
    decoded = FORMATS["F32"]

    @property
    def name(self) -> str:
        """MLX, and how many bits."""
        return f"MLX-{self.bits}bit"

    @property
    def unit(self) -> np.dtype[Any]:
        """See Packing.unit."""
        return Packing(self.bits).unit

    @property
    def expand(self) -> tuple[int, int]:
        """The integers of a unit lie along the line."""
        return 1, Packing(self.bits).per_unit

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales and biases, [lines, groups] each."""
        scales, biases = companions
        values = Packing(self.bits).read(units, numbers(f"U{self.bits}"))
        with np.errstate(invalid="ignore", over="ignore"):
            for part, down, along in blocks(values, tile.line, tile.first * self.expand[1], (1, self.group)):
                part *= floats(scales[down, along])[..., None]
                part += floats(biases[down, along])[..., None]
        return values.view(np.uint32)


def find_mlx(module: StoredModule) -> list[Matrix] | None:
    """Return MLX's words, [rows, cols * bits / 32] or with experts before; null where the module has none."""
    name = f"{module.name}.weight"
    if not module.has(".weight", ("U32",)):
        return None
    shape = module.tensors[name][1]
    experts, rows, words = float_shape(module, name, shape)
    groups = max((1, *module.shape(".scales")[-1:]))
    counts = (rows, groups)
    biased = module.has(".biases")
    scales = module.companion(".scales", FLOAT_SCALES if biased else ("U8",), [(*shape[:-2], *counts)])
    encoding: MLXAffine | Scaled
    if biased:
        companions = [module.parts(scales, experts, counts)]
        biases = module.companion(".biases", FLOAT_SCALES, [(*shape[:-2], *counts)])
        companions.append(module.parts(biases, experts, counts))
        fitting = [
            MLXAffine(bits, group)
            for bits, group in _told(module)
            if bits in PACKED_BITS and group > 0 and bits * group * groups == 32 * words
        ]
        if not fitting:
            raise module.refused(name, "is packed by MLX, in bits and groups that config.json does not tell")
        encoding = fitting[0]
    else:
        shared = words // groups
        if shared * groups != words or shared not in FLOATS_BY_WORDS:
            raise module.refused(
                name, f"is packed by MLX with {words} words a row and {groups} scales, in no known mode"
            )
        encoding, dtype = FLOATS_BY_WORDS[shared]
        companions = [module.parts(scales, experts, counts, dtype=dtype)]
    unit, (_, along) = encoding.unit, encoding.expand
    units = 4 * words // unit.itemsize
    return [
        Matrix(data, tuple(scale), encoding, (rows, units * along), transposed=False)
        for data, *scale in zip(module.parts(name, experts, (rows, units), unit=unit), *companions, strict=True)
    ]


def _told(module: StoredModule) -> Iterator[tuple[int, int]]:
    """Yield bits and group sizes that config.json tells: of the module, then of the model."""
    said = [
        part[key]
        for part in parts_of(module.config)
        for key in ("quantization", "quantization_config")
        if isinstance(part.get(key), Mapping)
    ]
    for one in [*(each.get(module.name) for each in said), *said]:
        if isinstance(one, Mapping):
            bits, group = one.get("bits"), one.get("group_size")
            if type(bits) is int and type(group) is int:
                yield bits, group
