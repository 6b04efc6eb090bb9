"""Ranks of given weights, and the weights nearest to one, by brute force."""

import numpy as np
import pytest
from checkpoints import (
    random_downs,
    write_gpt2,
    write_llama,
)
from models import (
    load_plain,
    save_random,
)
from rankings import by_layer, sort_all

from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import down_projections
from analyzer.scan.ranks import group_ranks, nearest_weights, static_ranks
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource


@pytest.mark.parametrize("block_bytes", [100, 1 << 20])
@pytest.mark.parametrize(("name", "expert"), [("llama", None), ("gpt2", None), ("mixtral", 2), ("gpt_oss", 3)])
def test_nearest_weights_are_nearest(tmp_path, name, expert, block_bytes):
    """Of other rows, by brute force, whichever way round the matrix is stored; nearest of all is the weight itself."""
    plain = load_plain(name, save_random(name, tmp_path))
    source = FolderSource(tmp_path)
    source.block_bytes = block_bytes
    checkpoint = Checkpoint(source)
    (projection,) = [p for p in down_projections(checkpoint) if (p.layer, p.expert) == (1, expert)]
    down = plain.downs[1, expert].detach().abs()
    for row, col in ((0, 3), (5, 19), (11, 7)):
        distance = (down - down[row, col]).abs()
        distance[row] = float("inf")
        expected = [divmod(place, down.shape[1]) for place in distance.flatten().argsort()[:5].tolist()]
        found = nearest_weights(checkpoint, projection, Coordinate(1, expert, row, col), 5)
        assert {(c.layer, c.expert) for c in found} == {(1, expert)}
        assert [(c.row, c.col) for c in found] == expected


def open_folder(folder):
    return Checkpoint(FolderSource(folder))


@pytest.fixture
def tied_downs():
    """Down projections with the same largest magnitudes in several layers, rows and columns."""
    downs = random_downs(layers=12)
    for layer, row, col, value in [
        (11, 0, 0, 2),
        (2, 7, 19, -2),
        (2, 7, 3, 2),
        (2, 1, 19, -2),
        (10, 4, 4, 3),
        (0, 5, 5, 1),
    ]:
        downs[layer][row, col] = value
    return downs


@pytest.mark.parametrize("write", [write_llama, write_gpt2])
def test_static_ranks_by_brute_force(tmp_path, tied_downs, write):
    write(tmp_path, tied_downs)
    checkpoint = open_folder(tmp_path)
    projections = down_projections(checkpoint)
    order = [Coordinate(*entry[:4]) for entry in sort_all(by_layer(tied_downs))]
    wanted = [*order[:30], *order[100::97], order[-1]]
    ranks = static_ranks(checkpoint, projections, wanted)
    assert ranks == {coordinate: 1 + order.index(coordinate) for coordinate in wanted}
    outliers = scan(checkpoint, projections, top=30).outliers
    assert {o.coordinate: o.rank for o in outliers} == {c: rank for c, rank in ranks.items() if rank <= 30}
    assert static_ranks(checkpoint, projections, []) == {}


def test_a_weight_ranks_in_its_row_and_in_the_runs_that_divide_it():
    row = np.zeros(256)
    row[[3, 40, 200]] = 2.0, -3.0, 9.0
    assert group_ranks(row, 3) == {"row_rank": 3, "rank_in_128": 2, "rank_in_32": 1}
    assert group_ranks(row, 40) == {"row_rank": 2, "rank_in_128": 1, "rank_in_32": 1}
    assert group_ranks(row[:96], 3) == {"row_rank": 2, "rank_in_32": 1}
    assert group_ranks(row[:5], 3) == {"row_rank": 1}
