"""Numbers that share a scale: the blocks of a stored matrix that a decoded tile is made of."""

from __future__ import annotations

from collections.abc import Iterator

from analyzer.numbers.encoding import Float32


def blocks(values: Float32, line: int, place: int, block: tuple[int, int]) -> Iterator[tuple[Float32, slice, slice]]:
    """Yield views of a tile's numbers, [lines, blocks, numbers], and which blocks down and along these are.

    The tile starts at this line of the stored matrix, and place in it. A block has so many lines and numbers along
    them, fewer at the matrix's end. `view *= scales[down, along, None]`, for scales of [blocks down, blocks along],
    changes the tile.
    """
    for top, bottom, down in _lines(line, line + values.shape[0], block[0]):
        for left, right, along in _places(place, place + values.shape[1], block[1]):
            part = values[top - line : bottom - line, left - place : right - place]
            yield part.reshape(bottom - top, along.stop - along.start, -1), down, along


def _lines(start: int, stop: int, size: int) -> Iterator[tuple[int, int, slice]]:
    """Yield runs of lines and the blocks down that they are in: one, or as many as lines where each is its own."""
    if size == 1:
        yield start, stop, slice(start, stop)
        return
    for number in range(start // size, -(-stop // size)):
        yield max(start, number * size), min(stop, (number + 1) * size), slice(number, number + 1)


def _places(start: int, stop: int, size: int) -> Iterator[tuple[int, int, slice]]:
    """Yield runs of places and the blocks along that they are in: whole ones together, a part of one on its own."""
    first, last = -(-start // size), stop // size
    if first > last:  # within one block
        yield start, stop, slice(last, last + 1)
        return
    if start < first * size:
        yield start, first * size, slice(first - 1, first)
    if first < last:
        yield first * size, last * size, slice(first, last)
    if last * size < stop:
        yield last * size, stop, slice(last, last + 1)
