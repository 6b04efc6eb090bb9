"""Single weights and rows of down projections, each read on its own."""

import numpy as np
import pytest
from checkpoints import random_downs, write_config, write_gpt2, write_llama, write_tensors

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import down_projections
from analyzer.projections.weights import read_row, read_weights
from analyzer.source.folder import FolderSource

ROWS, COLS = 8, 20
DOWNS = random_downs(hidden=ROWS, intermediate=COLS)
WEIGHTS = [Coordinate(2, None, 7, 19), Coordinate(0, None, 0, 0), *(Coordinate(1, None, 3, col) for col in (11, 12))]


@pytest.fixture(params=[write_llama, write_gpt2], ids=["by rows", "by columns"])
def opened(request, tmp_path):
    request.param(tmp_path, DOWNS)
    checkpoint = Checkpoint(FolderSource(tmp_path))
    return checkpoint, down_projections(checkpoint)


def test_weights_come_in_the_order_asked_for_and_nothing_else_is_read(opened):
    checkpoint, projections = opened
    before = checkpoint.bytes_read
    values = read_weights(checkpoint, projections, WEIGHTS)
    assert list(values) == WEIGHTS
    assert list(values.values()) == [float(DOWNS[c.layer][c.row, c.col]) for c in WEIGHTS]
    assert checkpoint.bytes_read - before == 2 * len(WEIGHTS)
    assert read_weights(checkpoint, projections, []) == {}


@pytest.mark.parametrize(
    "coordinate",
    [
        Coordinate(1, None, ROWS, 0),
        Coordinate(1, None, 0, COLS),
        Coordinate(1, None, -1, 11),
        Coordinate(1, None, 3, -1),
        Coordinate(1, None, 3, None),
        Coordinate(1, None, 3.0, 11),
        Coordinate(3, None, 0, 0),
        Coordinate(-1, None, 0, 0),
        Coordinate(1, 0, 0, 0),
        Coordinate(1, None, 0, 0, "vision"),
    ],
    ids=str,
)
def test_a_weight_that_is_nowhere_is_one_line(opened, coordinate):
    checkpoint, projections = opened
    with pytest.raises(ArchitectureError) as caught:
        read_weights(checkpoint, projections, [WEIGHTS[0], coordinate])
    assert str(caught.value).startswith(f"{checkpoint.source.model} has no weight {coordinate}")


@pytest.mark.parametrize(
    ("coordinate", "said"),
    [
        (Coordinate(1, None, ROWS, 0), f": its rows are 0 to {ROWS - 1}, its columns 0 to {COLS - 1}"),
        (Coordinate(9, None, 0, 0), ": its layers are 0 to LAST"),
        (Coordinate(1, 0, 0, 0), ": of that layer it has 1,ROW,COL"),
    ],
)
def test_what_there_is_in_its_place_is_told(opened, coordinate, said):
    checkpoint, projections = opened
    last = max(each.layer for each in projections)
    with pytest.raises(ArchitectureError) as caught:
        read_weights(checkpoint, projections, [coordinate])
    named = f"{checkpoint.source.model} has no weight {coordinate}"
    assert str(caught.value) == named + said.replace("LAST", str(last))


def test_the_experts_of_a_layer_are_told(tmp_path):
    name = "model.layers.0.mlp.experts.{}.down_proj.weight"
    write_tensors(tmp_path, {name.format(n): DOWNS[0] for n in range(4)})
    write_config(tmp_path, model_type="qwen3_moe")
    checkpoint = Checkpoint(FolderSource(tmp_path))
    for coordinate in (Coordinate(0, None, 0, 0), Coordinate(0, 4, 0, 0)):
        with pytest.raises(ArchitectureError, match=r"of that layer it has 0,0,ROW,COL to 0,3,ROW,COL$"):
            read_weights(checkpoint, down_projections(checkpoint), [coordinate])


@pytest.mark.parametrize("row", [0, 3, ROWS - 1])
def test_a_row_is_read_whichever_way_it_is_stored(opened, row):
    checkpoint, projections = opened
    np.testing.assert_array_equal(read_row(checkpoint, projections[1], row), DOWNS[1][row].astype(np.float64))
