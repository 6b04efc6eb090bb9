"""Where given weights rank, and which weights are nearest to one: passes over the down projections."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.records import Coordinate, Unit
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Int64, Unsigned
from analyzer.projections.projection import DownProjection
from analyzer.projections.weights import read_weights
from analyzer.scan.outliers import TopK, count_before
from analyzer.source.streaming import Want, stream

RUNS = (128, 32)  # how many weights of a row quantizers give one scale, beside all of them


def group_ranks(row: NDArray[np.float64], col: int) -> dict[str, int]:
    """Return how a weight of a row, [cols], ranks by magnitude among those it may share a scale with, 1 the largest.

    `row_rank` is that in the whole row, `rank_in_128` and `rank_in_32` those in its runs of so many, where these divide
    the row.
    """
    magnitudes = np.abs(row)
    groups = {"row_rank": magnitudes}
    groups |= {f"rank_in_{run}": magnitudes[col // run * run :][:run] for run in RUNS if len(row) % run == 0}
    return {name: 1 + int((group > magnitudes[col]).sum()) for name, group in groups.items()}


def static_ranks(
    checkpoint: Checkpoint, projections: Sequence[DownProjection], coordinates: Sequence[Coordinate]
) -> dict[Coordinate, int]:
    """Return the rank by |W| that each coordinate has among all weights of these tensors, 1 being the largest.

    Costs one more pass over the tensors. Raises SourceError where bytes cannot be read.
    """
    if not coordinates:
        return {}
    magnitudes = np.abs(np.array(list(read_weights(checkpoint, projections, coordinates).values())))
    before = np.zeros(len(coordinates), np.int64)
    adding = threading.Lock()

    def wants() -> Iterator[Want]:
        for projection in projections:
            ties = _tie_places(projection, coordinates)
            matrix = projection.matrix

            def use(_: int, tile: Tile, bits: Unsigned, matrix=matrix, ties=ties) -> None:  # type: ignore[no-untyped-def]
                counts = count_before(
                    bits.ravel(),
                    lambda indices: matrix.row_major(tile, indices),
                    matrix.encoding.decoded,
                    magnitudes=magnitudes,
                    tie_places=ties,
                )
                with adding:
                    before[...] += counts

            yield from checkpoint.read_matrix(matrix, use)

    stream(checkpoint.source, wants())
    return {coordinate: 1 + int(count) for coordinate, count in zip(coordinates, before, strict=True)}


def _tie_places(projection: DownProjection, coordinates: Sequence[Coordinate]) -> Int64:
    """Return below which row-major place of this projection a weight as large ranks before each coordinate.

    Equal magnitudes rank by coordinate: all of an earlier projection's come first, none of a later one's.
    """
    rows, cols = projection.shape
    here = projection.place
    return np.array(
        [c.row * cols + c.col if c.place == here else (rows * cols if here < c.place else 0) for c in coordinates]
    )


def nearest_weights(
    checkpoint: Checkpoint, projection: DownProjection, coordinate: Coordinate, count: int
) -> list[Coordinate]:
    """Return the weights of other rows whose magnitudes are nearest to a weight's, nearest first.

    Costs one pass over the projection. Raises SourceError where bytes cannot be read.
    """
    matrix = projection.matrix
    magnitude = abs(read_weights(checkpoint, [projection], [coordinate])[coordinate])
    ranking = TopK(count)
    cols = projection.shape[1]

    def use(_: int, tile: Tile, bits: Unsigned) -> None:
        lines, places = matrix.axes(tile)
        values = np.abs(matrix.encoding.decoded.decode(bits))
        own = np.zeros(values.shape, np.bool_)
        if matrix.transposed:
            own[:, max(0, coordinate.row - places.start) : max(0, coordinate.row + 1 - places.start)] = True
        else:
            own[lines == coordinate.row] = True
        excluded = own | ~np.isfinite(values)
        nearness = 1.0 / (1e-30 + np.abs(np.where(excluded, 0.0, values) - magnitude))
        ranking.offer(nearness.ravel(), bits.ravel(), lambda indices: matrix.row_major(tile, indices), excluded.ravel())

    stream(checkpoint.source, checkpoint.read_matrix(matrix, use))
    return [coordinate._replace(row=int(place) // cols, col=int(place) % cols) for place in ranking.places]


def nearest_units(checkpoint: Checkpoint, projection: DownProjection, unit: Unit, count: int) -> list[Unit]:
    """Return the rows, or columns, of a projection whose norms are nearest to that of a unit, nearest first.

    Costs one pass over the projection. Raises SourceError where bytes cannot be read.
    """
    is_row = unit.row is not None
    squares = _squares(checkpoint, projection)[0 if is_row else 1]
    own = unit.row if unit.row is not None else unit.col
    away = np.abs(np.sqrt(squares) - np.sqrt(squares[own]))
    order = [int(place) for place in np.argsort(away, kind="stable") if place != own and np.isfinite(away[place])]
    return [unit._replace(row=place) if is_row else unit._replace(col=place) for place in order[:count]]


def _squares(checkpoint: Checkpoint, projection: DownProjection) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared norms of a projection's rows and of its columns.

    Whoever reads what first, they are summed up in the order of the tiles.
    """
    matrix = projection.matrix
    found: dict[tuple[int, int], tuple[Any, NDArray[np.float64], Any, NDArray[np.float64]]] = {}

    def use(_: int, tile: Tile, bits: Unsigned) -> None:
        lines, places = matrix.axes(tile)
        squares = np.square(matrix.encoding.decoded.decode(bits).astype(np.float64))
        at = slice(places.start, places.stop)
        found[int(lines[0]), places.start] = lines, squares.sum(axis=1), at, squares.sum(axis=0)

    stream(checkpoint.source, checkpoint.read_matrix(matrix, use))
    by_line, by_place = (np.zeros(size) for size in (matrix.shape[::-1] if matrix.transposed else matrix.shape))
    for _, (lines, of_lines, at, of_places) in sorted(found.items(), key=lambda item: item[0]):
        by_line[lines] += of_lines
        by_place[at] += of_places
    return (by_place, by_line) if matrix.transposed else (by_line, by_place)
