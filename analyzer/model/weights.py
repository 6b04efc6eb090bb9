"""A checkpoint's tensors as torch has them; what is quantized, as the floats that it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.config import model_types
from analyzer.base.errors import CheckpointError, shown
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.encodings.finding import STORED_AS, find_matrices
from analyzer.encodings.ggml import PREFIX
from analyzer.model.layouts.mlx import stock_modules
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import FORMATS, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import StoredTensors
from analyzer.projections.architectures import INPUTS_FIRST_EXPERTS
from analyzer.projections.weights import read_rows
from analyzer.source.streaming import Want, stream

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
PACKED = frozenset({"I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2"})
"""The dtypes of what quantized matrices are stored in."""
OF_MLX = "U32"  # what MLX packs into
# The last words of tensors' names that say how activations are quantized, which is not done here, or nothing at all.
OF_ACTIVATIONS = frozenset({
    "input_scale", "input_global_scale", "input_scale_ub", "output_scale", "activation_scale", "q_scale", "k_scale",
    "v_scale", "prob_scale", "g_idx", "weight_shape", "weight_format", "inv_freq", "position_ids", "masked_bias",
})  # fmt: skip

ChangeTensor = Callable[[str, torch.Tensor], torch.Tensor]
"""Makes of a tensor, by its name, what the model gets in its place, of the same shape."""


@dataclass(frozen=True)
class Decoded:
    """A quantized module's tensor as a float model has it: its matrix, or those of its experts, [experts, …]."""

    matrices: Sequence[Matrix]
    fused: bool = False
    inputs_first: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        rows, cols = self.matrices[0].shape
        shape = (cols, rows) if self.inputs_first else (rows, cols)
        return (len(self.matrices), *shape) if self.fused else shape

    def laid(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of the matrices, [experts, rows, cols], as the tensor has them."""
        values = values.transpose(1, 2).contiguous() if self.inputs_first else values
        return values if self.fused else values[0]


class StoredWeights:
    """The tensors of one checkpoint, in the dtypes in which they are stored, or as float32 where they are quantized."""

    said_by = "config.json says"

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises ArchitectureError where a module is quantized in a way that is not read, or not run."""
        self.checkpoint = checkpoint
        self.model = checkpoint.source.model
        self._decoded: dict[str, Decoded] = {}
        self.called: dict[str, str] = {}
        """What the tensor, or the first of them, is called here of which a stored one holds the quantized data."""
        hidden: set[str] = set()
        stored = StoredTensors(self.model, checkpoint.shapes, checkpoint.config, checkpoint.read_tensors)
        first = bool(model_types(checkpoint.config) & INPUTS_FIRST_EXPERTS)
        for module, suffix in _quantized(checkpoint):
            matrices = [] if module + suffix in hidden else find_matrices(stored, module) or []
            if not matrices or matrices[0].encoding.name in FORMATS:
                continue
            record = checkpoint.tensors[module + suffix].record
            fused = suffix.endswith("blocks") or len(record.shape) == 3
            if record.dtype == OF_MLX:
                modules = stock_modules(self.model, checkpoint.model_type, module, len(matrices) if fused else None)
                found = {f"{each}.weight": Decoded([one]) for each, one in zip(modules, matrices, strict=True)}
            else:
                name = module if suffix in ("", "_blocks", ".blocks") else f"{module}.weight"
                # MXFP4's blocks are [experts, out, in] whatever the parameter is; others lie as the parameter does.
                found = {name: Decoded(matrices, fused, suffix.endswith("blocks") and first)}
            self._decoded |= found
            self.called[matrices[0].data.tensor] = next(iter(found))
            hidden |= {part.tensor for matrix in matrices for part in matrix.parts}
        self.names = tuple(name for name in checkpoint.tensors if name not in hidden) + tuple(self._decoded)
        self.encodings = tuple(sorted({each.matrices[0].encoding.name for each in self._decoded.values()}))
        """How what is quantized is stored."""

    def unclaimed(self, used: Collection[str]) -> list[str]:
        """Return the tensors beside `used` ones that no encoding and no parameter has a use for, of a quantized model.

        A scale among them, or a rotation, would change what the model computes.
        """
        if not self._decoded:
            return []
        above = {name[: match.start()] for name in used for match in re.finditer(r"\.", name)}
        return [
            name
            for name in self.names
            if name not in used
            and name.rpartition(".")[2] not in OF_ACTIVATIONS
            and {name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]} & above
        ]

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return whole tensors. Raises CheckpointError where one cannot be run, SourceError where it cannot be read."""
        plain = [name for name in names if name not in self._decoded]
        dtypes = {name: self.dtype(name) for name in plain}
        found = {
            name: (torch.frombuffer(data, dtype=dtypes[name]) if data else torch.empty(0)).reshape(self.shape(name))
            for name, data in self.checkpoint.read_tensors(plain).items()
        }
        return found | self._decode([name for name in names if name in self._decoded])

    def are_plain(self, names: Sequence[str]) -> bool:
        """Tell whether these are read as they are stored, so that `read_into` can read them."""
        return all(name in self.checkpoint.tensors and name not in self._decoded for name in names)

    def read_into(self, into: Mapping[str, torch.Tensor]) -> None:
        """Read whole tensors straight into memory of theirs, bytes of the CPU's. Raises SourceError like `read`."""
        self.checkpoint.read_into({name: each.numpy().data for name, each in into.items()})

    def read_rows(self, name: str, rows: Sequence[int]) -> dict[int, torch.Tensor]:
        """Return single rows of a matrix, [cols] each. Raises like `read`."""
        name = self.stored_as(name)
        if name in self._decoded:
            found = read_rows(self.checkpoint, self._decoded[name].matrices[0], rows)
            return {row: torch.from_numpy(values).float() for row, values in found.items()}
        dtype = self.dtype(name)
        return {row: torch.frombuffer(data, dtype=dtype) for row, data in self.checkpoint.read_rows(name, rows).items()}

    def read_slice(self, name: str, rows: range) -> torch.Tensor | None:
        """Return a slice of a quantized matrix, [rows, cols]; null where no slice of it can be decoded on its own.

        Raises like `read`.
        """
        decoded = self._decoded.get(self.stored_as(name))
        if decoded is None or decoded.fused or decoded.matrices[0].transposed:
            return None
        matrix = decoded.matrices[0]
        if matrix.apart or matrix.encoding.expand[0] != 1:
            return None
        tiles = [tile for tile in matrix.tiles() if tile.line < rows.stop and tile.line + tile.lines > rows.start]
        first, stop = tiles[0].line, tiles[-1].line + tiles[-1].lines
        values = np.empty((stop - first, matrix.shape[1]), np.float32)

        def use(number: int, tile: Tile, bits: Unsigned) -> None:
            lines, places = matrix.axes(tile)
            values[lines - first, places] = matrix.encoding.decoded.decode(bits)

        stream(self.checkpoint.source, self.checkpoint.read_matrix(matrix, use, only=tiles))
        return torch.from_numpy(values[rows.start - first : rows.stop - first])

    def stored_as(self, name: str) -> str:
        """Return what the tensor, or the first of them, is called that a parameter of this name is read from."""
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        name = self.stored_as(name)
        return self._decoded[name].shape if name in self._decoded else self.checkpoint.tensors[name].record.shape

    def stored_bytes(self, names: Sequence[str]) -> int:
        """Return how many bytes the checkpoint has for these tensors."""
        return sum(
            sum(matrix.stored_bytes for matrix in self._decoded[name].matrices)
            if name in self._decoded
            else self.checkpoint.tensors[name].nbytes
            for name in names
        )

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype as it is read. Raises CheckpointError where a model cannot be run from it."""
        name = self.stored_as(name)
        if name in self._decoded:
            return torch.float32
        stored = self.checkpoint.tensors[name].record.dtype
        if stored not in DTYPES:
            raise CheckpointError(
                f"{self.model}: {shown(name)} is stored as {stored}, which can be scanned, but not yet verified: "
                "use the model that it was made from"
            )
        return DTYPES[stored]

    def check_shape(self, name: str, wanted: Sequence[int]) -> None:
        """Raise CheckpointError where a tensor does not have the shape that config.json describes."""
        if self.shape(name) != tuple(wanted):
            raise self.wrong_shape(name, self.shape(name), wanted)

    def wrong_shape(self, name: str, stored: Sequence[int], wanted: Sequence[int]) -> CheckpointError:
        """Return the error that a tensor or parameter is stored in another shape than config.json describes."""
        return CheckpointError(
            f"{self.model}: {shown(name)} has the shape {list(stored)}, {self.said_by} {list(wanted)}"
        )

    def _decode(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the floats of modules, all of whose matrices are read in one go and decoded a tile at a time."""
        found = {name: self._decoded[name] for name in names}
        values = {
            name: np.empty((len(each.matrices), *each.matrices[0].shape), np.float32) for name, each in found.items()
        }

        def wants() -> Iterator[Want]:
            for name, each in found.items():
                for matrix, into in zip(each.matrices, values[name], strict=True):
                    yield from self.checkpoint.read_matrix(matrix, partial(_take, matrix, into))

        stream(self.checkpoint.source, wants())
        return {name: each.laid(torch.from_numpy(values[name])) for name, each in found.items()}


def _take(matrix: Matrix, into: NDArray[np.float32], _: int, tile: Tile, bits: Unsigned) -> None:
    """Put a decoded tile where it is in [rows, cols]."""
    lines, places = matrix.axes(tile)
    values = matrix.encoding.decoded.decode(bits)
    if matrix.transposed:
        into[places, lines] = values.T
    else:
        into[lines, places] = values


def _quantized(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return the modules whose matrix may be quantized, each with what follows its name in that of its data.

    Those without a suffix come last: what belongs to one of the others is known by then.
    """
    found = []
    for name, tensor in checkpoint.tensors.items():
        packed = tensor.record.dtype in PACKED or tensor.record.dtype.startswith(PREFIX)
        if packed and len(tensor.record.shape) > 1:
            suffix = next((each for each in STORED_AS if each and name.endswith(each)), "")
            if suffix or len(tensor.record.shape) == 3:
                found.append((name.removesuffix(suffix), suffix))
    return sorted(found, key=lambda each: not each[1])
