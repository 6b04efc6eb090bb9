"""MLX's quantized weights: words of 32 bits that hold a stream of codes, the lowest bits first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantizations
from analyzer.encodings.fp4 import MXFP4, NVFP4
from analyzer.numbers.blocks import blocks
from analyzer.numbers.encoding import Companions, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import FLOAT_SCALES, StoredModule
from analyzer.numbers.packing import PACKED_BITS, Packing, floats, numbers
from analyzer.numbers.plain import float_shape
from analyzer.numbers.scaled import Scaled

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
    if not module.has(".weight", ("U32",)):
        return None
    name, shape = f"{module.name}.weight", module.shape(".weight")
    experts, rows, words = float_shape(module, name, shape)
    groups = max((1, *module.shape(".scales")[-1:]))
    counts = (*shape[:-2], rows, groups)
    encoding: MLXAffine | Scaled
    if module.has(".biases"):
        names = [module.companion(end, FLOAT_SCALES, [counts]) for end in (".scales", ".biases")]
        encoding, dtype = _integers(module, name, words, groups), None
    else:
        names = [module.companion(".scales", ("U8",), [counts])]
        if words % groups or words // groups not in FLOATS_BY_WORDS:
            raise module.refused(name, f"is packed by MLX in no known mode: {words} words and {groups} scales a row")
        encoding, dtype = FLOATS_BY_WORDS[words // groups]
    units = 4 * words // encoding.unit.itemsize
    data = module.parts(name, experts, (rows, units), unit=encoding.unit)
    companions = [module.parts(each, experts, (rows, groups), dtype=dtype) for each in names]
    return [
        Matrix(part, tuple(more), encoding, (rows, units * encoding.expand[1]), transposed=False)
        for part, *more in zip(data, *companions, strict=True)
    ]


def _integers(module: StoredModule, name: str, words: int, groups: int) -> MLXAffine:
    """Return the encoding that config.json tells and that fits so many words and groups a row."""

    def fitting(said: Iterable[Mapping[str, Any]]) -> list[MLXAffine]:
        told = ((each.get("bits"), each.get("group_size")) for each in said)
        return [
            MLXAffine(bits, group)
            for bits, group in dict.fromkeys((b, g) for b, g in told if type(b) is int and type(g) is int)
            if bits in PACKED_BITS and group > 0 and bits * group * groups == 32 * words
        ]

    of_module = fitting(module.checkpoint.said_of_modules.get(module.name, ()))
    if len(of_module) > 1:
        ways = " or ".join(f"{each.bits} bits in groups of {each.group}" for each in of_module)
        raise module.refused(name, f"is packed by MLX, and config.json leaves open whether as {ways}: name it there")
    found = of_module or fitting(quantizations(module.config))
    if not found:
        raise module.refused(name, "is packed by MLX, in bits and groups that config.json does not tell")
    return found[0]
