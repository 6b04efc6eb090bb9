"""A down projection: where it is in the model, and the matrix that stores it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Coordinate, Place
from analyzer.numbers.floats import FORMATS
from analyzer.numbers.matrices import Matrix

MAIN_TOWERS = (None, "language", "text", "decoder")
"""What the stack that makes text is called, where a model has several."""


@dataclass(frozen=True, slots=True)
class DownProjection:
    """The down projection of one MLP, or of one expert of it; `name` is the tensor that stores it.

    `mlp` is null where its block has but one MLP beside experts; `layers` are the blocks that use the matrix, null
    where it is one; `writes` is "latent" where its rows are no channels of the residual stream, else null. `inputs`
    are the modules that project into its MLP, as far as their names are known.
    """

    tower: str | None
    layer: int
    mlp: int | None
    expert: int | None
    block: str
    module: str
    matrix: Matrix
    inputs: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    writes: str | None = None

    @property
    def stack(self) -> str:
        """The name of its stack of blocks."""
        return self.block.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.matrix.data.tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) = (output, input channels)."""
        return self.matrix.shape

    @property
    def quantization(self) -> str | None:
        """The name of its encoding, null where it is stored as plain floats."""
        name = self.matrix.encoding.name
        return None if name in FORMATS else name

    @property
    def place(self) -> Place:
        """Where it is, in order: see Coordinate.place."""
        return Coordinate(self.layer, self.expert, 0, 0, self.tower, self.mlp).place


def in_layers(model: str, projections: Sequence[DownProjection], layers: Sequence[range]) -> list[DownProjection]:
    """Return those of the projections in these ranges; raises ArchitectureError where a range names no layer."""
    present = {projection.layer for projection in projections}
    for wanted in layers:
        if wanted.start not in present or wanted.stop - 1 not in present:
            raise ArchitectureError(
                f"{model} has no down projection in layer "
                f"{wanted.start if wanted.start not in present else wanted.stop - 1}: "
                f"its layers go from {min(present)} to {max(present)}"
            )
    return [p for p in projections if any(p.layer in wanted for wanted in layers)]


def down_projection_bytes(projections: Collection[DownProjection]) -> int:
    """Return how many bytes of the checkpoint these are, scales included."""
    return sum(projection.matrix.stored_bytes for projection in projections)


def num_layers_of(projections: Iterable[DownProjection]) -> int:
    """Return how many layers a model has, as its down projections tell; those of `mtp` are not counted."""
    projections = list(projections)
    counted = [each for each in projections if each.tower != "mtp"] or projections
    return 1 + max((max(each.layers or (each.layer,)) for each in counted), default=-1)
