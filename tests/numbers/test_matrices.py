"""The geometry of tiles, on matrices small enough to number every weight by hand."""

import math

import numpy as np
import pytest

from analyzer.encodings.fp4 import MXFP4
from analyzer.encodings.integers.awq import AWQ
from analyzer.encodings.integers.bitnet import BitNet
from analyzer.encodings.integers.gptq import GPTQ
from analyzer.encodings.mlx import MLXAffine
from analyzer.numbers import matrices
from analyzer.numbers.matrices import Matrix, Part, turned
from analyzer.numbers.plain import Plain

GPTQ_4 = GPTQ(4, 5, 32, first_version=True)
GPTQ_3 = GPTQ(3, 2, 32, first_version=True)
TERNARY = BitNet(divided=True)


def make(encoding, lines, units, *, transposed):
    down, along = encoding.expand
    data = Part("w", "U8", (lines, units), 100, 100 + lines * units * encoding.unit.itemsize)
    shape = (lines * down, units * along)
    return Matrix(data, (), encoding, shape[::-1] if transposed else shape, transposed, apart=encoding == TERNARY)


MATRICES = [
    make(encoding, lines, units, transposed=transposed)
    for encoding in (Plain("BF16"), Plain("F64"), MXFP4, GPTQ_4, GPTQ_3, AWQ(32), MLXAffine(3, 64), TERNARY)
    for lines, units in ((3, 5), (1, 40), (40, 1), (7, 7))
    for transposed in (False, True)
]


@pytest.fixture(params=[8, 12, 64, 1 << 19])
def tile_numbers(request, monkeypatch):
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 4 * request.param)
    return request.param


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_tiles_follow_each_other_in_the_file_and_hold_every_weight_once(matrix, tile_numbers):
    rows, cols = matrix.shape
    places, end = [], matrix.data.start
    for tile in matrix.tiles():
        start, stop = matrix.span(tile)
        assert start == end
        end = stop
        lines, along = matrix.axes(tile)
        numbers = lines.size * (along.stop - along.start)
        assert numbers <= max(4 * tile_numbers, math.prod(matrix.encoding.expand))
        assert stop - start == tile.lines * tile.units * matrix.encoding.unit.itemsize
        # What a decoded tile holds, told from its slices of a matrix whose elements are their own places.
        stored = np.arange(rows * cols).reshape(rows, cols)
        stored = stored.T if matrix.transposed else stored
        found = matrix.row_major(tile, np.arange(numbers))
        assert found.tolist() == stored[lines, along].ravel().tolist()
        places += found.tolist()
    assert end == matrix.data.stop
    assert sorted(places) == list(range(rows * cols))


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_the_unit_of_a_weight(matrix):
    rows, cols = matrix.shape
    for row in range(rows):
        for col in range(cols):
            tile, index = matrix.tile_of(row, col)
            assert matrix.row_major(tile, np.array([index])).tolist() == [row * cols + col]


def test_turning_changes_the_sides_and_not_the_bytes():
    matrix = make(Plain("BF16"), 3, 5, transposed=False)
    assert (turned(matrix).shape, turned(matrix).transposed, turned(matrix).data) == ((5, 3), True, matrix.data)
    assert turned(turned(matrix)) == matrix
