"""Single weights and rows of down projections, each read on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import ArchitectureError, shown
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.projections.projection import DownProjection
from analyzer.source.streaming import Want, stream


def read_weights(
    checkpoint: Checkpoint, projections: Sequence[DownProjection], coordinates: Sequence[Coordinate]
) -> dict[Coordinate, float]:
    """Return these weights, each read on its own.

    Raises ArchitectureError where the tensors have no such weight, SourceError where bytes cannot be read.
    """
    by_place = {projection.place: projection for projection in projections}
    values: dict[Coordinate, float] = {}

    def wants() -> Iterator[Want]:
        for coordinate in coordinates:
            projection = by_place.get(coordinate.place)
            if projection is None or not _has(projection.shape, coordinate):
                raise ArchitectureError(
                    f"{checkpoint.source.model} has no weight {coordinate}{_where(projections, coordinate)}"
                )
            matrix = projection.matrix
            tile, index = matrix.tile_of(coordinate.row, coordinate.col)

            def use(_: int, __: Tile, bits: Unsigned, *, at=coordinate, index=index, matrix=matrix) -> None:  # type: ignore[no-untyped-def]
                values[at] = float(matrix.encoding.decoded.decode(bits.ravel()[index : index + 1])[0])

            yield from checkpoint.read_matrix(matrix, use, only=[tile])

    stream(checkpoint.source, wants())
    return {coordinate: values[coordinate] for coordinate in coordinates}


def _where(projections: Sequence[DownProjection], coordinate: Coordinate) -> str:
    """Return what these projections have in the place of a coordinate: towers, layers, experts, or rows and columns."""
    towers = {each.tower for each in projections}
    named = ", ".join(shown(each) for each in sorted(towers - {None}, key=str))
    if named and coordinate.tower not in towers:
        return f" here, where the tower is {named}"
    if shape := next((each.shape for each in projections if each.place == coordinate.place), None):
        return f": its rows are 0 to {shape[0] - 1}, its columns 0 to {shape[1] - 1}"
    layers = {each.layer for each in projections if each.tower == coordinate.tower}
    if coordinate.layer not in layers:
        return f": its layers are {min(layers)} to {max(layers)}" if layers else ""
    here = sorted(each.place for each in projections if each.place[:2] == coordinate.place[:2])
    first, last = (str(Coordinate.at(place, 0, 0)).removesuffix("0,0") + "ROW,COL" for place in (here[0], here[-1]))
    return f": of that layer it has {first}" + (f" to {last}" if here[1:] else "")


def _has(shape: tuple[int, int], coordinate: Coordinate) -> bool:
    at = (coordinate.row, coordinate.col)
    return all(isinstance(each, Integral) and 0 <= each < size for each, size in zip(at, shape, strict=True))


def read_row(checkpoint: Checkpoint, projection: DownProjection, row: int) -> NDArray[np.float64]:
    """Return the weights of one output channel, [cols]. Raises like read_rows."""
    return read_rows(checkpoint, projection.matrix, [row])[row]


def read_rows(checkpoint: Checkpoint, matrix: Matrix, rows: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """Return the rows of a matrix, [cols] each; reads all of one that is stored by input channels.

    Raises SourceError where bytes cannot be read.
    """
    found = {row: np.empty(matrix.shape[1]) for row in rows}

    def use(_: int, tile: Tile, bits: Unsigned) -> None:
        lines, places = matrix.axes(tile)
        values = matrix.encoding.decoded.decode(bits)
        if matrix.transposed:
            for row in range(places.start, places.stop):
                if row in found:
                    found[row][lines] = values[:, row - places.start]
            return
        for line, numbers in zip(lines.tolist(), values, strict=True):
            if line in found:
                found[line][places] = numbers

    whole = matrix.data.shape[1]
    only = None if matrix.transposed else {replace(matrix.tile_of(row, 0)[0], units=whole): None for row in rows}
    stream(checkpoint.source, checkpoint.read_matrix(matrix, use, only=only))
    return found
