"""A matrix on its way: every tile once, numbered, in blocks of bytes of about the size that is asked for."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import LLAMA_DOWN, write_config, write_tensors

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.reading import MatrixReading, blocks_of
from analyzer.projections.down_projections import down_projections
from analyzer.source.folder import FolderSource

DOWN = np.random.default_rng(0).standard_normal((2100, 1000), np.float32)  # in tiles of 524 lines


@pytest.fixture
def matrix(tmp_path):
    write_tensors(tmp_path, {LLAMA_DOWN.format(0): DOWN})
    write_config(tmp_path, model_type="llama", hidden_size=2100)
    (projection,) = down_projections(Checkpoint(FolderSource(tmp_path)))
    return projection.matrix


@pytest.mark.parametrize(("block_bytes", "lengths"), [(1, [1] * 5), (4_200_000, [2, 2, 1]), (10**9, [5])])
def test_blocks_are_runs_of_tiles_of_at_most_that_many_bytes(matrix, block_bytes, lengths):
    runs = list(blocks_of(matrix, block_bytes))
    assert [tile for run in runs for tile in run] == list(matrix.tiles())
    assert list(map(len, runs)) == lengths


def test_tiles_are_decoded_in_any_order_of_blocks_and_the_end_is_told_once(matrix):
    found, numbers, ended = np.zeros_like(DOWN), [], []

    def use(number, tile, bits):
        numbers.append(number)
        found[tile.line : tile.line + tile.lines] = bits.view(np.float32)
        assert ended == []

    reading = MatrixReading("model", matrix, use, lambda: ended.append(True))
    blocks = list(blocks_of(matrix, 4_200_000))
    firsts = np.cumsum([0, *map(len, blocks)])
    for number, run in reversed(list(zip(firsts.tolist(), blocks, strict=False))):
        start, stop = matrix.span(run[0])[0], matrix.span(run[-1])[1]
        reading.take(number, run, memoryview(DOWN.tobytes())[start:stop])
    np.testing.assert_array_equal(found, DOWN)
    assert numbers == [4, 2, 3, 0, 1]
    assert ended == [True]


def test_it_is_ready_when_all_that_scales_it_is_there(matrix):
    scaled = replace(matrix, companions=(matrix.data, matrix.data))
    reading = MatrixReading("model", scaled, print, print)
    reading.take_companion(1, DOWN)
    assert not reading.ready.is_set()
    reading.take_companion(0, DOWN)
    assert reading.ready.is_set()
