"""The blocks of GGUF files, decoded by the gguf library's own tables and functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import is_gguf
from analyzer.base.errors import UnreadableError, shown
from analyzer.numbers.encoding import Companions, Float32, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix, Part
from analyzer.numbers.module import StoredModule
from analyzer.numbers.plain import float_shape

PREFIX = "GGML_"  # of a dtype that safetensors does not have
AS_IN_SAFETENSORS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8")

# Numbers that the library is handed at once. Its intermediate arrays then stay below what the allocator maps anew each
# time (measured over all types: half the speed at four times as many, and at an eighth, for the calls).
NUMBERS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class GGML:
    """Blocks of `numbers` along a line, each of `size` bytes, as ggml's type of this `name` packs them.

    The companion, where there is one, is a factor for the whole matrix.
    """

    name: str
    numbers: int
    size: int
    decoded = FORMATS["F32"]

    @property
    def unit(self) -> np.dtype[Any]:
        """One block, as bytes."""
        return np.dtype((np.void, self.size))

    @property
    def expand(self) -> tuple[int, int]:
        """See Encoding.expand."""
        return 1, self.numbers

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; the companion is [1]."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        blocks = units.view(np.uint8).reshape(-1, self.size)  # [lines * units, bytes]
        values: Float32 = np.empty((blocks.shape[0], self.numbers), np.float32)
        step = max(1, NUMBERS_AT_ONCE // self.numbers)
        with np.errstate(all="ignore"):  # NaN stays NaN
            for start in range(0, blocks.shape[0], step):
                some = blocks[start : start + step]
                some_values = dequantize(some.reshape(1, -1), GGMLQuantizationType[self.name])
                values[start : start + step] = some_values.reshape(-1, self.numbers)
            for factor in companions:
                values *= factor
        return values.reshape(tile.lines, -1).view(np.uint32)


@cache
def ggml_type(number: int) -> tuple[str, GGML | None]:
    """Return the dtype that records of a type's tensors have, and how it is packed.

    The latter is null where the library does not know the type.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(number)
    except ValueError:
        return f"{PREFIX}{number}", None
    name = known.name if known.name in AS_IN_SAFETENSORS else PREFIX + known.name
    return name, GGML(known.name, *GGML_QUANT_SIZES[known])


def find_ggml(module: StoredModule) -> list[Matrix] | None:
    """Return a GGUF file's blocks, [rows, cols] or [experts, rows, cols]; null where there are none.

    Plain floats with a factor beside them are blocks of one number.
    """
    name, scale = f"{module.name}.weight", f"{module.name}.scale"
    if not is_gguf(module.config) or name not in module.tensors:
        return None
    dtype, shape = module.tensors[name]
    if dtype in FORMATS and scale not in module.tensors:
        return None
    encoding = _encoding(dtype)
    if encoding is None:
        raise UnreadableError(
            f"{module.checkpoint.model}: {shown(name)} is stored as {dtype}, which the gguf library cannot decode: use "
            "the model that it was made from",
            dtype,
        )
    experts, rows, cols = float_shape(module, name, shape)
    units = (rows, cols // encoding.numbers)
    size = rows * units[1] * encoding.size
    factors: list[tuple[Part, ...]] = [()] * experts
    if scale in module.tensors:
        module.companion(".scale", ("F32",), [(experts,)])
        factors = [(part,) for part in module.parts(scale, experts, (1,))]
    return [
        Matrix(Part(name, dtype, units, n * size, (n + 1) * size), factor, encoding, (rows, cols), transposed=False)
        for n, factor in enumerate(factors)
    ]


@cache
def _encoding(dtype: str) -> GGML | None:
    """Return how tensors of a dtype are decoded, null where the library cannot."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    name = dtype.removeprefix(PREFIX)
    if name not in GGMLQuantizationType.__members__:
        return None
    encoding = GGML(name, *GGML_QUANT_SIZES[GGMLQuantizationType[name]])
    try:
        dequantize(np.zeros((1, encoding.size), np.uint8), GGMLQuantizationType[name])
    except NotImplementedError:
        return None
    return encoding
