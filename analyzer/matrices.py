"""Pure: which stored tensors make up a module's matrix, how they are encoded, and the tiles it is read in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.encodings import AWQ, GPTQ, MXFP4, NUMPY_DTYPES, Encoding, Plain, Scaled8, Tile
from analyzer.errors import ArchitectureError, shown
from analyzer.outliers import FORMATS, TILE_NUMBERS

Int64 = NDArray[np.int64]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor of a checkpoint, by name."""

MAX_COMPANION_BYTES = 1 << 26  # scales are held whole; those of the largest known tensor are 15 MB
MAX_EXPERTS = 1 << 16
FLOAT_SCALES = ("F32", "F16", "BF16")

# What a module's own name is followed by in the name of the tensor that holds its matrix.
STORED_AS = (".weight", ".qweight", "_blocks", ".weight_packed", "")
FP8 = ("F8_E4M3", "F8_E5M2")
UNREADABLE = {  # what else tells a quantization, by the end of a tensor's name
    ".weight.absmax": "bitsandbytes (4-bit)",
    ".SCB": "bitsandbytes (int8)",
    ".weight_scale_2": "NVFP4",
    ".weight_packed": "compressed-tensors",
    ".codebooks": "aqlm",
    ".W_q": "hqq",
    ".weight._data": "quanto",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a stored tensor, from `start` to `stop` counted from its own beginning, as an array of this shape."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear map's matrix; `shape` is (rows, cols) = (output, input channels) whichever way round it is stored.

    `data` are its units, [lines, units]; `transposed` tells that a line holds one input channel's weights.
    """

    data: Part
    companions: tuple[Part, ...]
    encoding: Encoding
    shape: tuple[int, int]
    transposed: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that the checkpoint stores of it."""
        return (self.data, *self.companions)

    @property
    def stored_bytes(self) -> int:
        """How many bytes of the checkpoint it is, scales and all."""
        return sum(part.stop - part.start for part in self.parts)

    @property
    def most_units(self) -> int:
        """How many units a tile has at most."""
        numbers = TILE_NUMBERS if isinstance(self.encoding, Plain) else TILE_NUMBERS // 4  # decoding takes more memory
        return numbers // math.prod(self.encoding.expand)

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles in the order of the file; they depend on the matrix alone."""
        lines, units = self.data.shape
        if units <= self.most_units:
            step = self.most_units // units
            for line in range(0, lines, step):
                yield Tile(line, min(step, lines - line), 0, units)
        else:
            for line in range(lines):
                for first in range(0, units, self.most_units):
                    yield Tile(line, 1, first, min(self.most_units, units - first))

    def span(self, tile: Tile) -> tuple[int, int]:
        """Return where a tile's bytes start and stop in the tensor that stores it; they are contiguous."""
        size = self.encoding.unit.itemsize
        start = self.data.start + (tile.line * self.data.shape[1] + tile.first) * size
        return start, start + tile.lines * tile.units * size

    def tile_of(self, row: int, col: int) -> tuple[Tile, int]:
        """Return the tile of the one unit that holds a weight, and the weight's index in the decoded tile."""
        line, place = (col, row) if self.transposed else (row, col)
        down, along = self.encoding.expand
        tile = Tile(line // down, 1, place // along, 1)
        return tile, line % down * along + place % along

    def axes(self, tile: Tile) -> tuple[slice, slice]:
        """Return which lines, and which places along them, a decoded tile covers."""
        down, along = self.encoding.expand
        lines = slice(tile.line * down, (tile.line + tile.lines) * down)
        return lines, slice(tile.first * along, (tile.first + tile.units) * along)

    def row_major(self, tile: Tile, indices: Int64) -> Int64:
        """Return the indices into (rows, cols), row by row, of a decoded tile's flat indices."""
        lines, places = self.axes(tile)
        width = places.stop - places.start
        line, place = indices // width + lines.start, indices % width + places.start
        cols = self.shape[1]
        places_in_rows: Int64 = place * cols + line if self.transposed else line * cols + place
        return places_in_rows


def find_matrices(model: str, module: str, tensors: Shapes, config: Mapping[str, Any]) -> list[Matrix] | None:
    """Return a module's matrix or, for fused experts, one for each; null where the checkpoint has no such module.

    A matrix of fused experts is taken as [experts, rows, cols]; `turned` has it the other way round. Raises
    ArchitectureError where the matrix is stored in a way that cannot be read, by the name of its quantization, or
    where its scales are missing or do not fit it.
    """
    suffix = next((suffix for suffix in STORED_AS if module + suffix in tensors), None)
    if suffix is None:
        return None
    name = module + suffix
    found = _Finder(model, module, tensors, config)
    dtype, shape = tensors[name]
    if suffix == "_blocks" and dtype == "U8":
        matrices = found.mxfp4()
    elif suffix == ".qweight" and dtype == "I32":
        matrices = [found.packed_integers()]
    elif suffix in ("", ".weight") and (dtype in FORMATS or dtype in FP8):
        if len(shape) not in (2, 3):
            raise found.refused(name, f"has {len(shape)} dimensions, so is no matrix")
        matrices = found.floats(name)
    else:
        raise found.unreadable(name, dtype)
    for companion in matrices[0].companions:
        if companion.stop - companion.start > MAX_COMPANION_BYTES:
            raise found.refused(
                companion.tensor, f"of shape {shown(list(companion.shape), 60)} is too large for scales"
            )
    return matrices


def turned(matrix: Matrix) -> Matrix:
    """Return the matrix read the other way round: lines hold input channels where they held output channels."""
    return replace(matrix, shape=matrix.shape[::-1], transposed=not matrix.transposed)


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of quantization, of the model or of its text part; empty where it says nothing."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    found = (part.get("quantization_config") or part.get("compression_config") for part in parts)
    return next((said for said in found if isinstance(said, Mapping)), {})


def quantization_name(config: Mapping[str, Any]) -> str | None:
    """Return the name of the quantization that config.json names, with what says more about it."""
    said = quantization(config)
    groups = said.get("config_groups")
    formats = [group.get("format") for group in groups.values()] if isinstance(groups, Mapping) else []
    names = [said.get("quant_method"), said.get("quant_algo"), said.get("format"), *formats]
    kept = dict.fromkeys(shown(name, 40) for name in names if isinstance(name, str))
    return " ".join(kept) or None


class _Finder:
    """What `find_matrices` knows of one module."""

    def __init__(self, model: str, module: str, tensors: Shapes, config: Mapping[str, Any]) -> None:
        self.model, self.module, self.tensors, self.config = model, module, tensors, config

    def floats(self, name: str) -> list[Matrix]:
        """Plain floats and scaled 8-bit ones, [rows, cols] or [experts, rows, cols]."""
        dtype, shape = self.tensors[name]
        if 0 in shape or (len(shape) == 3 and shape[0] > MAX_EXPERTS):
            raise self.refused(name, f"has the shape {shown(shape, 60)}, which no down projection has")
        experts = shape[0] if len(shape) == 3 else 1
        rows, cols = shape[-2:]
        datas = self._parts(name, experts, (rows, cols))
        if dtype in FORMATS:
            return [Matrix(data, (), Plain(dtype), (rows, cols), transposed=False) for data in datas]
        scale, scale_shape, block = self._scale_of(name, shape)
        return [
            Matrix(data, (part,), Scaled8(dtype, block), (rows, cols), transposed=False)
            for data, part in zip(datas, self._parts(scale, experts, scale_shape), strict=True)
        ]

    def mxfp4(self) -> list[Matrix]:
        """gpt-oss's experts: blocks [experts, rows, cols / 32, 16], scales [experts, rows, cols / 32]."""
        name = f"{self.module}_blocks"
        _, shape = self.tensors[name]
        if len(shape) != 4 or shape[3] != 16 or 0 in shape or shape[0] > MAX_EXPERTS:
            raise self.refused(name, f"has the shape {shown(shape, 60)}, not [experts, rows, cols / 32, 16]")
        experts, rows, blocks, _ = shape
        scales = self._companion("_scales", ("U8",), [shape[:3]])
        return [
            Matrix(data, (scale,), MXFP4(), (rows, 32 * blocks), transposed=False)
            for data, scale in zip(
                self._parts(name, experts, (rows, 16 * blocks)),
                self._parts(scales, experts, (rows, blocks)),
                strict=True,
            )
        ]

    def packed_integers(self) -> Matrix:
        """GPTQ's or AWQ's 4-bit integers; config.json tells which, and how many channels make a group."""
        name = f"{self.module}.qweight"
        said = quantization(self.config)
        method, bits, group = said.get("quant_method"), said.get("bits", said.get("w_bit")), said.get("group_size")
        if method not in ("gptq", "awq"):
            raise self.refused(
                name, f"is packed, but config.json says {quantization_name(self.config)}, not gptq or awq"
            )
        if bits != 4 or type(group) is not int or not (group == -1 or group > 0):
            raise self.refused(
                name, f"is {method} of {shown(bits, 20)} bits in groups of {shown(group, 20)}; only 4 bits can be read"
            )
        _, shape = self.tensors[name]
        if len(shape) != 2 or 0 in shape:
            raise self.refused(name, f"has the shape {shown(shape, 60)}, not two dimensions")
        gptq = method == "gptq"
        cols, rows = (8 * shape[0], shape[1]) if gptq else (shape[0], 8 * shape[1])
        if rows % 8 or cols % 8:
            raise self.refused(name, f"is packed, but {rows} x {cols} is no multiple of 8")
        group = cols if group == -1 else group
        groups = -(-cols // group)
        scales = self._companion(".scales", FLOAT_SCALES, [(groups, rows)])
        zeros = self._companion(".qzeros", ("I32",), [(groups, rows // 8)])
        if not gptq:
            if str(said.get("version", "gemm")).lower() != "gemm":
                raise self.refused(name, f"is awq of the version {shown(said['version'], 20)}; only gemm can be read")
            encoding: Encoding = AWQ(group)
            names = [scales, zeros]
        else:
            first = said.get("checkpoint_format", said.get("format", "gptq"))
            if first not in ("gptq", "gptq_v2"):
                raise self.refused(name, f"is gptq in the format {shown(first, 20)}; only gptq and gptq_v2 can be read")
            named = f"{self.module}.g_idx" in self.tensors
            encoding = GPTQ(group, first_version=first == "gptq", named_groups=named)
            names = [scales, zeros, *([self._companion(".g_idx", ("I32",), [(cols,)])] if named else [])]
        companions = tuple(self._parts(each, 1, self.tensors[each][1])[0] for each in names)
        return Matrix(self._parts(name, 1, shape)[0], companions, encoding, (rows, cols), transposed=True)

    def refused(self, name: str, why: str) -> ArchitectureError:
        """Return the error that says why a tensor cannot be read."""
        return ArchitectureError(f"{self.model}: {shown(name)} {why}")

    def unreadable(self, name: str, dtype: str) -> ArchitectureError:
        """Return the error about a quantization that is not known here, by its name."""
        method = quantization_name(self.config) or next(
            (said for end, said in UNREADABLE.items() if self.module + end in self.tensors), "an unknown quantization"
        )
        return self.refused(
            name, f"is stored as {dtype} by {method}, which cannot be scanned: use the model that it was made from"
        )

    def _scale_of(self, name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, int], tuple[int, int]]:
        """Return the name of an 8-bit matrix's scales, their shape for one expert, and how much each covers."""
        rows, cols = shape[-2:]
        experts = shape[:-2]
        size = quantization(self.config).get("weight_block_size")
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
            if name + end in self.tensors:
                scale = self._companion(end, (*FLOAT_SCALES, "F8_E8M0"), allowed, of=name)
                return scale, *allowed[self.tensors[scale][1]]
        raise self.refused(
            name,
            f"is stored as {self.tensors[name][0]} without its scales ({shown(name)}_scale or _scale_inv): "
            "download it again",
        )

    def _companion(self, end: str, dtypes: tuple[str, ...], shapes: Any, *, of: str | None = None) -> str:
        """Return the name of a tensor that must be there, of one of these dtypes and shapes."""
        name = (of or self.module) + end
        if name not in self.tensors:
            raise self.refused(of or self.module, f"is quantized, but {shown(name)} is missing: download it again")
        dtype, shape = self.tensors[name]
        if dtype not in dtypes or shape not in shapes:
            wanted = " or ".join(shown(list(s), 40) for s in dict.fromkeys(shapes))
            raise self.refused(
                name, f"is {dtype} of shape {shown(list(shape), 60)}; expected {'/'.join(dtypes)} of shape {wanted}"
            )
        return name

    def _parts(self, name: str, experts: int, shape: tuple[int, ...]) -> list[Part]:
        """Return each expert's part of a tensor that holds them one after the other."""
        dtype = self.tensors[name][0]
        size = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        return [Part(name, dtype, shape, expert * size, (expert + 1) * size) for expert in range(experts)]
