"""Two versions of a matrix, compared by tiles, against NumPy on the whole; every order, dtype and way round."""

import random
import threading

import numpy as np
import pytest
from checkpoints import DTYPES
from hypothesis import given
from hypothesis import strategies as st

from analyzer.diff.changes import Comparison, MatrixChange, comparable
from analyzer.encodings.integers.awq import AWQ
from analyzer.encodings.integers.gptq import GPTQ
from analyzer.numbers import matrices
from analyzer.numbers.encoding import Tile
from analyzer.numbers.matrices import Matrix, Part
from analyzer.numbers.plain import Plain
from analyzer.numbers.scaled import Scaled


def stored(dtype, shape, *, transposed=False):
    lines, units = shape[::-1] if transposed else shape
    return Matrix(Part("w", dtype, (lines, units), 0, lines * units * 2), (), Plain(dtype), shape, transposed)


def as_bits(values, matrix):
    """Return a matrix's numbers as the file has them, [lines, units]."""
    laid = np.ascontiguousarray(values.T if matrix.transposed else values)
    return laid.astype(DTYPES[matrix.encoding.name]).view(matrix.encoding.unit)


def tiles_of(values, matrix):
    bits = as_bits(values, matrix)
    for tile in matrix.tiles():
        lines, places = matrix.axes(tile)
        yield tile, bits[lines, places]


def change_of(old, new, *, dtypes=("F32", "F32"), transposed=False, order=None):
    sides = [stored(dtype, old.shape, transposed=transposed) for dtype in dtypes]
    comparison = Comparison(*sides)
    tiles = [
        (side, *tile)
        for side, (matrix, values) in enumerate(zip(sides, (old, new), strict=True))
        for tile in tiles_of(values, matrix)
    ]
    (order or (lambda tiles: None))(tiles)
    for each in tiles:
        comparison.take(*each)
    assert comparison._waiting == ({}, {})  # nothing is held once both versions went by
    return comparison.result()


def expected(old, new):
    change = np.abs(new.astype(np.float64) - old)
    change = np.where(np.isfinite(change), change, 0.0)
    place = int(change.argmax())
    return place, old.ravel()[place], new.ravel()[place], float((change**2).sum())


def two_versions(shape=(24, 40), seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    old = generator.normal(0, 1, shape).astype(dtype)
    return old, (old + generator.normal(0, 0.1, shape)).astype(dtype)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 64)  # three lines in two tiles, or a part of one


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(24, 40), (3, 200), (200, 3), (1, 1)])
def test_largest_change_and_sum_of_squares(shape, transposed):
    old, new = two_versions(shape)
    change = change_of(old, new, transposed=transposed)
    place, before, after, squares = expected(old, new)
    assert (change.same, change.place, change.old, change.new) == (False, place, before, after)
    assert change.squares == pytest.approx(squares, rel=1e-12)


@given(seed=st.integers(0, 1000), transposed=st.booleans())
def test_the_order_of_tiles_does_not_matter(seed, transposed):
    old, new = two_versions((9, 50), seed)
    in_order = change_of(old, new, transposed=transposed)
    assert change_of(old, new, transposed=transposed, order=random.Random(seed).shuffle) == in_order


def test_from_several_threads():
    old, new = two_versions((300, 40))
    matrix = stored("F32", old.shape)
    comparison = Comparison(matrix, matrix)
    work = [
        threading.Thread(target=lambda side, values: [comparison.take(side, *t) for t in tiles_of(values, matrix)],
                         args=(side, values))
        for side, values in enumerate((old, new))
    ]  # fmt: skip
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert comparison.result() == change_of(old, new)


def test_tiles_of_other_sizes_meet():
    old, new = two_versions((16, 40))
    plain = stored("F32", old.shape)
    # Half as many numbers a tile, as for all that has scales.
    scaled = Matrix(Part("w", "F8_E4M3", old.shape, 0, 640), (), Scaled("F8_E4M3", "E4M3", (1, 40)), old.shape, False)
    assert len(list(scaled.tiles())) >= 2 * len(list(plain.tiles()))
    for sides in ((plain, scaled), (scaled, plain)):
        comparison = Comparison(*sides)
        tiles = []
        for side, (matrix, values) in enumerate(zip(sides, (old, new), strict=True)):
            for tile in matrix.tiles():
                lines, places = matrix.axes(tile)
                tiles.append((side, tile, values[lines, places].view(np.uint32)))
        random.Random(1).shuffle(tiles)
        for each in tiles:
            comparison.take(*each)
        place, before, after, squares = expected(old, new)
        change = comparison.result()
        assert (change.place, change.old, change.new) == (place, before, after)
        assert change.squares == pytest.approx(squares, rel=1e-12)


@pytest.mark.parametrize("dtypes", [("BF16", "F32"), ("F32", "F16"), ("F16", "BF16"), ("F64", "BF16")])
def test_values_are_compared_across_dtypes(dtypes):
    old = np.array([[1.0, -2.0, 0.5], [0.0, 4.0, -0.25]])  # exact in all of them
    assert change_of(old, old, dtypes=dtypes) == MatrixChange(True, None, 0.0, 0.0, 0.0)
    new = old.copy()
    new[1, 1] = 4.5
    assert change_of(old, new, dtypes=dtypes) == MatrixChange(False, 4, 4.0, 4.5, 0.25)


def test_of_equal_changes_the_first_in_row_major_order_is_named():
    old = np.zeros((20, 30), np.float32)
    new = old.copy()
    new[7, 3], new[3, 7], new[12, 0] = 1.0, -1.0, 1.0
    for transposed in (False, True):
        change = change_of(old, new, transposed=transposed)
        assert (change.place, change.new) == (3 * 30 + 7, -1.0)


def test_what_is_not_finite_is_a_change_without_a_size():
    old = np.array([[1.0, np.nan, np.inf, 2.0]], np.float32)
    assert change_of(old, old.copy()).same
    new = np.array([[np.nan, np.nan, np.inf, 2.5]], np.float32)
    assert change_of(old, new) == MatrixChange(False, 3, 2.0, 2.5, 0.25, excluded=1.0)
    only = np.array([[np.nan, np.nan, 3.0, np.inf]], np.float32)
    assert change_of(old, only) == MatrixChange(False, None, 0.0, 0.0, 0.0, excluded=1.0 + 4.0)


def test_the_sign_of_a_zero_and_the_bits_of_a_nan_are_no_change():
    zeros = np.zeros((1, 4), np.float32)
    assert change_of(zeros, -zeros) == MatrixChange(True, None, 0.0, 0.0, 0.0)
    one, other = (np.array([[bits, 0x3F800000]], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FC00001))
    assert change_of(one, other) == MatrixChange(True, None, 0.0, 0.0, 0.0)


def test_waiting_tiles_do_not_hold_on_to_their_block():
    matrix = stored("F32", (2, 32))
    comparison = Comparison(matrix, matrix)
    block = np.ones((2, 32), np.uint32)
    comparison.take(0, Tile(0, 2, 0, 32), block)
    block[:] = 0  # as the buffer that the next read fills
    comparison.take(1, Tile(0, 2, 0, 32), np.ones((2, 32), np.uint32))
    assert comparison.result().same


def test_what_can_be_compared(monkeypatch):
    plain, turned = stored("F32", (16, 40)), stored("F32", (16, 40), transposed=True)
    awq = Matrix(Part("w", "I32", (40, 2), 0, 320), (), AWQ(8), (16, 40), True)
    assert comparable(plain, plain)
    assert comparable(turned, awq)
    assert not comparable(plain, turned)
    assert not comparable(plain, stored("F32", (40, 16)))
    # GPTQ's units are eight lines high: a tile of half such a line would not be one run of numbers.
    gptq = Matrix(Part("w", "I32", (5, 16), 0, 320), (), GPTQ(4, 16, 8, first_version=True), (16, 40), True)
    assert not comparable(turned, gptq)
    assert not comparable(gptq, turned)
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 4 * 16 * 8)
    assert comparable(turned, gptq)
