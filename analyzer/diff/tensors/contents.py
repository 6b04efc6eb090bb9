"""What a checkpoint holds, by name: its tensors as numbers, or as the bytes that they are where these are not read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import ArchitectureError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.header import DTYPE_BITS
from analyzer.encodings.finding import STORED_AS, find_matrices
from analyzer.numbers.encoding import Companions, Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix, Part
from analyzer.numbers.module import StoredTensors
from analyzer.numbers.plain import Plain

PACKED_AS = tuple(end for end in STORED_AS if end not in ("", ".weight"))
INTEGERS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclass(frozen=True)
class Raw:
    """What is not read as numbers: whole integers, or single bytes of what is smaller."""

    name: str
    unit: np.dtype[Any]
    expand = (1, 1)
    decoded = FORMATS["F64"]  # which nobody asks for

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode: the bits as they are."""
        return units


@dataclass(frozen=True)
class Held:
    """What a checkpoint holds under a name: one matrix or, of quantized experts, one for each.

    `stored` are the tensors that it lies in. `why` says of what is compared by its bytes why that is, where it might
    have been read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    matrices: tuple[Matrix, ...]
    stored: tuple[str, ...]
    why: str | None = None

    @property
    def raw(self) -> bool:
        """Whether nothing but its bytes is known."""
        return any(isinstance(matrix.encoding, Raw) for matrix in self.matrices)

    @property
    def stored_bytes(self) -> int:
        """How many bytes of the checkpoint it is."""
        return sum(matrix.stored_bytes for matrix in self.matrices)

    def in_parts(self, count: int) -> tuple[Matrix, ...]:
        """Return its matrices, a stacked one cut into so many."""
        if count == 1 or len(self.matrices) > 1:
            return self.matrices
        (whole,) = self.matrices
        lines, cols = whole.data.shape
        if lines % count:
            return self.matrices
        size = (whole.data.stop - whole.data.start) // count
        data = [
            replace(whole.data, shape=(lines // count, cols), start=each * size, stop=(each + 1) * size)
            for each in range(count)
        ]
        return tuple(replace(whole, data=part, shape=(lines // count, cols)) for part in data)


def held_by(checkpoint: Checkpoint) -> dict[str, Held]:
    """Return all that a checkpoint's weight files hold, by name.

    A quantized matrix has the name that its plain tensor would have; what scales it is part of it. Raises SourceError
    where a tensor that describes others cannot be read.
    """
    shapes = checkpoint.shapes
    stored = StoredTensors(checkpoint.source.model, shapes, checkpoint.config, checkpoint.read_tensors)
    held: dict[str, Held] = {}
    why: dict[str, str] = {}
    taken: set[str] = set()
    for name, module in _quantized(checkpoint):
        try:
            matrices = find_matrices(stored, module)
        except ArchitectureError as error:
            why[name] = str(error)
            continue
        assert matrices  # the module's name comes from a tensor's
        one = matrices[0]
        shape: tuple[int, ...] = one.shape if len(matrices) == 1 else (len(matrices), *one.shape)
        parts = tuple(dict.fromkeys(part.tensor for matrix in matrices for part in matrix.parts))
        held[f"{module}.weight"] = Held(f"{module}.weight", shape, one.encoding.name, tuple(matrices), parts)
        taken.update(parts)
    for name, tensor in checkpoint.tensors.items():
        if name not in taken:
            dtype, dimensions = shapes[name]
            whole = _whole(name, dtype, dimensions, tensor.nbytes)
            held[name] = Held(name, dimensions, dtype, (whole,), (name,), why.get(name))
    return held


def _quantized(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield each tensor that looks like the numbers of a quantized matrix, and the name of its module."""
    for name, (dtype, shape) in checkpoint.shapes.items():
        end = next((end for end in PACKED_AS if name.endswith(end)), None)
        if end is None and name.endswith(".weight") and dtype not in FORMATS and dtype != "BOOL" and len(shape) > 1:
            end = ".weight"
        if end is not None:
            yield name, name.removesuffix(end)


def _whole(name: str, dtype: str, shape: tuple[int, ...], size: int) -> Matrix:
    """Return a tensor of `size` bytes as a matrix whose lines are its last dimension."""
    if dtype in FORMATS:
        encoding: Plain | Raw = Plain(dtype)
        cols = shape[-1] if shape else 1
        lines = math.prod(shape[:-1])
    else:
        width = DTYPE_BITS.get(dtype, 0) // 8
        encoding = Raw(dtype, INTEGERS.get(width, INTEGERS[1]))
        lines, cols = 1, size // encoding.unit.itemsize
    return Matrix(Part(name, dtype, (lines, cols), 0, size), (), encoding, (lines, cols), transposed=False)
