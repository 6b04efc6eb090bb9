"""bitsandbytes' NF4 and FP4, with its scales quantized again or not, and its int8."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.numbers.blocks import blocks
from analyzer.numbers.encoding import BYTE, Companions, Float32, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import StoredModule
from analyzer.numbers.packing import BYTES, Packing, numbers

PAIRS = Packing(4, high_first=True)
NAMES = {".weight.quant_state.bitsandbytes__nf4": "NF4", ".weight.quant_state.bitsandbytes__fp4": "FP4"}
INT8_STEP = np.float32(1 / 127)


@dataclass(frozen=True)
class Bits4:
    """4-bit codes of 16 numbers that the file tells, two a byte, the high one first (QLoRA, arXiv 2305.14314).

    Each `block` of a matrix, whose lines of `cols` numbers follow each other, has a scale. Where `nested_block` is not
    null, the scales are codes of 256 numbers themselves, each times its own block's scale, plus `offset`.
    """

    name: str
    cols: int
    block: int
    nested_block: int | None
    offset: float
    unit = BYTE
    expand = (1, 2)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales [blocks], numbers [16], perhaps nested scales and numbers."""
        scales, known, *nested = companions
        start = tile.line * self.cols + 2 * tile.first  # a tile's numbers follow each other in the file
        values = PAIRS.read(units.reshape(1, -1), known)
        with np.errstate(invalid="ignore", over="ignore"):
            for part, _, along in blocks(values, 0, start, (1, self.block)):
                part *= self._scales(scales, along, nested)[None, :, None]
        return values.reshape(tile.lines, -1).view(np.uint32)

    def _scales(self, scales: NDArray[Any], along: slice, nested: list[NDArray[Any]]) -> Float32:
        if self.nested_block is None:
            plain: Float32 = scales[along]
            return plain
        outer, known = nested
        factors = outer[np.arange(along.start, along.stop) // self.nested_block]
        found: Float32 = np.take(known, scales[along]) * factors + np.float32(self.offset)
        return found


@dataclass(frozen=True)
class Int8:
    """Integers of a byte; the value is the line's scale times a 127th of it (LLM.int8(), arXiv 2208.07339)."""

    name = "LLM.int8"
    unit = BYTE
    expand = (1, 1)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; the companion is the scales, [lines]."""
        values = BYTES.read(units, numbers("I8"))
        (scales,) = companions
        with np.errstate(invalid="ignore", over="ignore"):
            values *= (scales[tile.line : tile.line + tile.lines] * INT8_STEP)[:, None]
        return values.view(np.uint32)


def find_4_bits(module: StoredModule) -> list[Matrix] | None:
    """Return bitsandbytes' 4-bit codes, [rows * cols / 2, 1]; null where the module has none.

    Their shape and blocks are told by a tensor that holds JSON.
    """
    end = next((end for end in NAMES if module.has(end, ("U8",))), None)
    if end is None or not module.has(".weight", ("U8",)):
        return None
    state = _State.of(module.checkpoint.content(module.name + end))
    size = math.prod(module.shape(".weight"))
    if state is None or state.rows * state.cols != 2 * size or state.cols % 2:
        raise module.refused(module.name + end, f"does not tell how {size} bytes of bitsandbytes are a matrix's rows")
    count = -(-2 * size // state.block)
    nested = module.has(".weight.nested_absmax")
    names = [
        module.companion(".weight.absmax", ("U8" if nested else "F32",), [(count,)]),
        module.companion(".weight.quant_map", ("F32",), [(16,)]),
    ]
    if nested:
        outer = -(-count // state.nested_block)
        names.append(module.companion(".weight.nested_absmax", ("F32",), [(outer,)]))
        names.append(module.companion(".weight.nested_quant_map", ("F32",), [(256,)]))
    shape = (state.rows, state.cols)
    [data] = module.parts(f"{module.name}.weight", 1, (state.rows, state.cols // 2))
    encoding = Bits4(NAMES[end], state.cols, state.block, state.nested_block if nested else None, state.nested_offset)
    return [Matrix(data, tuple(map(module.whole, names)), encoding, shape, transposed=False)]


def find_int8(module: StoredModule) -> list[Matrix] | None:
    """Return bitsandbytes' int8, [rows, cols], with scales of rows; null where the module has none."""
    if not module.has(".weight", ("I8",)) or not module.has(".SCB"):
        return None
    name, shape = f"{module.name}.weight", module.shape(".weight")
    if len(shape) != 2 or 0 in shape:
        raise module.refused(name, f"has the shape {list(shape)}, which no down projection of bitsandbytes has")
    if module.has(".weight_format", ("U8",)) and any(module.checkpoint.content(f"{module.name}.weight_format")):
        raise module.refused(name, "is bitsandbytes' int8 in an order for one kind of GPU: use another conversion")
    scales = module.whole(module.companion(".SCB", ("F32",), [shape[:1]]))
    return [Matrix(module.whole(name), (scales,), Int8(), (shape[0], shape[1]), transposed=False)]


@dataclass(frozen=True)
class _State:
    """What bitsandbytes says of its codes: their shape, and how many share a scale, and how many scales share one."""

    rows: int
    cols: int
    block: int
    nested_block: int
    nested_offset: float

    @classmethod
    def of(cls, text: bytes) -> _State | None:
        """Return what its JSON says, null where that makes no sense."""
        try:
            said = json.loads(text)
            rows, cols = said["shape"]
            block, nested_block = said["blocksize"], said.get("nested_blocksize", 1)
            offset = said.get("nested_offset", 0.0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        sensible = all(type(count) is int and 0 < count < 1 << 40 for count in (rows, cols, block, nested_block))
        if not sensible or type(offset) not in (int, float) or not math.isfinite(offset):
            return None
        return cls(rows, cols, block, nested_block, float(offset))
