"""A checkpoint's tensors as torch has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from analyzer.base.errors import CheckpointError, shown
from analyzer.checkpoint.checkpoint import Checkpoint

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
}

ChangeTensor = Callable[[str, torch.Tensor], torch.Tensor]
"""Makes of a stored tensor, by its name in the checkpoint, what the model gets in its place, of the same shape."""


class StoredWeights:
    """The tensors of one checkpoint, in the dtypes in which they are stored."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.source.model

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return whole tensors. Raises CheckpointError where one cannot be run, SourceError where it cannot be read."""
        dtypes = {name: self.dtype(name) for name in names}
        return {
            name: torch.frombuffer(data, dtype=dtypes[name]).reshape(self.shape(name))
            for name, data in self.checkpoint.read_tensors(names).items()
        }

    def read_rows(self, name: str, rows: Sequence[int]) -> dict[int, torch.Tensor]:
        """Return single rows of a matrix, [cols] each. Raises like `read`."""
        dtype = self.dtype(name)
        return {row: torch.frombuffer(data, dtype=dtype) for row, data in self.checkpoint.read_rows(name, rows).items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape as it is stored."""
        return self.checkpoint.tensors[name].record.shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype as it is stored. Raises CheckpointError where a model cannot be run from it."""
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
            f"{self.model}: {shown(name)} has the shape {list(stored)}, config.json says {list(wanted)}"
        )
