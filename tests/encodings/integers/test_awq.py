"""AWQ's second layout, for single tokens: along the input channels, filled up to whole words."""

import numpy as np
import pytest
from encoders import awq_gemv
from quantized import AWQ, DENSE, check, linears, open_folder, write

from analyzer.base.errors import ArchitectureError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def gemv(group):
    return {**AWQ, "version": "gemv", "group_size": group}


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_ranking_is_of_the_values(tmp_path, group):
    model = linears(awq_gemv(group), gemv(group), dtype="AWQ-4bit", rows=256, cols=640)
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


BROKEN = {
    "no groups in the config": ({}, {"group_size": None}),
    "more groups than scales": ({}, {"group_size": 4}),
    "zeros of other rows": ({"qzeros": np.ones((191, 2), np.int32)}, {}),
    "zeros of other groups": ({"qzeros": np.ones((192, 1), np.int32)}, {}),
    "scales of other rows": ({"scales": np.ones((191, 16), np.float16)}, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    changes, config = BROKEN[name]
    places = {(0, None): DENSE.format(0)}
    model = linears(awq_gemv(64), {**gemv(64), **config}, dtype="", places=places, rows=192, cols=640)
    for end, tensor in changes.items():
        model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)) as caught:
        open_folder(tmp_path)
    assert str(caught.value).isprintable()
