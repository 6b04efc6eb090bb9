"""Where tensors lie in a slab."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyzer.model.loading.layout import ALIGNMENT, lay_out


def test_each_begins_at_a_multiple_and_none_overlap():
    layout = lay_out({"a": 3, "b": 512, "c": 0, "d": 1, "e": 257})
    assert layout.places == {
        "a": slice(0, 3),
        "b": slice(256, 768),
        "c": slice(768, 768),
        "d": slice(768, 769),
        "e": slice(1024, 1281),
    }
    assert layout.size == 1281  # nothing after the last


def test_of_nothing():
    assert (lay_out({}).places, lay_out({}).size) == ({}, 0)


@given(st.lists(st.integers(0, 2000), max_size=12))
def test_of_any_sizes(sizes):
    layout = lay_out({str(number): size for number, size in enumerate(sizes)})
    stop = 0
    for place, size in zip(layout.places.values(), sizes, strict=True):
        assert place.start % ALIGNMENT == 0
        assert stop <= place.start < stop + ALIGNMENT
        stop = place.stop
        assert stop - place.start == size
    assert layout.size == stop


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_any_dtype_can_be_seen_there(dtype):
    values = torch.arange(5).to(dtype)
    layout = lay_out({"first": 1, "values": values.nbytes})
    slab = torch.zeros(layout.size, dtype=torch.uint8)
    slab[layout.places["values"]] = values.view(torch.uint8)
    assert torch.equal(slab[layout.places["values"]].view(dtype).float(), values.float())
