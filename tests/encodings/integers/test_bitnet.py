"""BitNet's ternary weights: a quarter of the rows apart, ranked, read and compared by the rows that they are."""

import numpy as np
import pytest
import torch
from checkpoints import random_downs, write_llama
from encoders import bitnet
from quantized import DENSE, check, dense, linears, open_folder, write
from transformers.integrations.bitnet import pack_weights

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Coordinate
from analyzer.diff.changes import comparable
from analyzer.projections.weights import read_row
from analyzer.scan.ranks import nearest_weights

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

BITNET = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
AUTO = {**BITNET, "linear_class": "autobitlinear"}
SHAPE = {"rows": 200, "cols": 328}


@pytest.mark.parametrize("divided", [True, False])
def test_the_ranking_is_of_the_values(tmp_path, divided):
    model = linears(bitnet(divided=divided), BITNET if divided else AUTO, dtype="BitNet", **SHAPE)
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


def test_lines_longer_than_a_tile(tmp_path, monkeypatch):
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 512)
    model = linears(bitnet(), BITNET, dtype="BitNet", rows=8, cols=1000, places={(0, None): DENSE.format(0)})
    model = model._replace(tensors={name: model.tensors[name] for name in model.read})
    write(tmp_path, model)
    check(tmp_path, model)


def test_as_transformers_packs_them(tmp_path):
    ternary = np.random.default_rng(0).integers(-1, 2, (64, 96)).astype(np.int8)
    model = linears(bitnet(), BITNET, dtype="BitNet", rows=64, cols=96, places={(0, None): DENSE.format(0)})
    model.tensors[f"{DENSE.format(0)}.weight"] = pack_weights(torch.from_numpy(ternary.copy())).numpy()
    model.tensors[f"{DENSE.format(0)}.weight_scale"] = np.array([4], np.float32)
    write(tmp_path, model)
    np.testing.assert_array_equal(dense(tmp_path)[0, None], ternary / 4)


def test_rows_of_every_quarter(tmp_path):
    model = linears(bitnet(), BITNET, dtype="BitNet", **SHAPE)
    write(tmp_path, model)
    checkpoint, projections = open_folder(tmp_path)
    for row in (0, 49, 50, 120, 199):
        np.testing.assert_array_equal(read_row(checkpoint, projections[1], row), model.downs[1, None][row])


def test_the_nearest_weights_are_of_other_rows(tmp_path):
    """All that are not 0 are as large as each other: the first of other rows are the nearest."""
    model = linears(bitnet(), BITNET, dtype="BitNet", **SHAPE)
    write(tmp_path, model)
    checkpoint, projections = open_folder(tmp_path)
    down = model.downs[0, None]
    for row in (0, 120):
        col = int(np.flatnonzero(down[row])[0])
        near = nearest_weights(checkpoint, projections[0], Coordinate(0, None, row, col), 400)
        expected = [(r, c) for r, c in np.argwhere(down).tolist() if r != row][:400]
        assert [(weight.row, weight.col) for weight in near] == expected


def test_a_packed_version_is_not_compared_tile_by_tile(tmp_path):
    write(tmp_path / "packed", linears(bitnet(), BITNET, dtype="BitNet", **SHAPE))
    write_llama(tmp_path / "plain", random_downs(hidden=200, intermediate=328))
    packed, plain = (open_folder(tmp_path / name)[1][0].matrix for name in ("packed", "plain"))
    assert packed.shape == plain.shape
    assert not comparable(packed, plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_scale": None},
        {"weight_scale": np.ones(200, np.float32)},
        {"weight_scale": np.ones(1, np.int32)},
        {"weight": np.ones((2, 25, 328), np.uint8)},
        {"weight": np.ones((0, 328), np.uint8)},
    ],
    ids=["no scale", "scales of rows", "an integer", "three dimensions", "nothing"],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, changes):
    model = linears(bitnet(), BITNET, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    for end, tensor in changes.items():
        del model.tensors[f"{DENSE.format(0)}.{end}"]
        if tensor is not None:
            model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)):
        open_folder(tmp_path)
