"""Rounding against plain loops, and against torch's own fake quantization where it has the same."""

import math

import numpy as np
import pytest
import torch

from analyzer.base.errors import ForwardError
from analyzer.experiments.quantization.grid import FLAT, Group, Rounding, parse_bits, plan
from analyzer.experiments.quantization.rounding import (
    clipped,
    hold_out,
    in_groups,
    out_of_groups,
    place_in_groups,
    round_activations,
    round_matrix,
    smoothing,
)

GROUPS = [Group.parse(text) for text in ("tensor", "row", "4", "flat:24", "tile:4")]


@pytest.fixture
def matrix():
    torch.manual_seed(0)
    values = torch.randn(8, 12)
    values[2, 7] = 9.0
    return values


def members(group, rows, cols):
    """Return the places of each group, [(row, col), …], by a loop."""
    found = {}
    for row in range(rows):
        for col in range(cols):
            flat = row * cols + col
            key = {
                "tensor": 0,
                "row": row,
                "run": (row, col // max(group.size, 1)),
                "flat": flat // max(group.size, 1),
                "tile": (row // max(group.size, 1), col // max(group.size, 1)),
            }[group.kind]
            found.setdefault(key, []).append((row, col))
    return list(found.values())


def by_loop(values, bits, *, symmetric, z=None):
    """Return a group rounded, by Python's own floats."""
    if z is not None:
        magnitudes = [abs(value) for value in values]
        mean = sum(magnitudes) / len(magnitudes)
        spread = math.sqrt(sum((each - mean) ** 2 for each in magnitudes) / len(magnitudes))
        limit = mean + z * spread
        values = [max(-limit, min(limit, value)) for value in values]
    if symmetric:
        least, step = 0.0, max(map(abs, values)) / (2 ** (bits - 1) - 1)
    else:
        least = min(values)
        step = (max(values) - least) / (2**bits - 1)
    return [least + step * round((value - least) / step) for value in values]


@pytest.mark.parametrize("z", [None, 1.5])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_every_group_is_rounded_by_itself(matrix, group, bits, symmetric, z):
    found = round_matrix(matrix, Rounding(bits, group, symmetric, z))
    expected = np.empty(matrix.shape)
    for places in members(group, *matrix.shape):
        values = by_loop([matrix[place].item() for place in places], bits, symmetric=symmetric, z=z)
        for place, value in zip(places, values, strict=True):
            expected[place] = value
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_symmetric_rounding_is_torchs_fake_quantization(matrix, bits):
    top = 2 ** (bits - 1) - 1
    scales = matrix.abs().amax(dim=1) / top
    zeros = torch.zeros(8, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(matrix, scales, zeros, 0, -top, top)
    torch.testing.assert_close(round_matrix(matrix, Rounding(bits, Group("row"), symmetric=True)), expected)


def test_levels_and_extremes():
    values = torch.tensor([[-1.0, 0.2, 0.9, 3.0]])
    two = round_matrix(values, Rounding(2, Group("row")))
    torch.testing.assert_close(two, torch.tensor([[-1.0, 1 / 3, 1 / 3, 3.0]]))  # steps of 4/3, extremes as they are
    assert len(set(round_matrix(torch.randn(1, 999), Rounding(3, Group("row")))[0].tolist())) == 8


def test_equal_values_and_zeros_stay_as_they_are():
    for value in (0.0, 0.3, -2.0):
        same = torch.full((2, 8), value)
        for symmetric in (False, True):
            torch.testing.assert_close(round_matrix(same, Rounding(4, Group("row"), symmetric)), same)


def test_values_are_not_changed_in_place(matrix):
    before = matrix.clone()
    for group in GROUPS:
        round_matrix(matrix, Rounding(3, group, z=1.0))
    entered = matrix.clone()
    hold_out(entered, bits=8, per="token")
    assert torch.equal(matrix, before)
    assert torch.equal(entered, before)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_places_are_those_of_the_groups(matrix, group):
    groups = in_groups(matrix, group)
    for row in range(8):
        for col in range(12):
            assert groups[place_in_groups(row, col, group, (8, 12))] == matrix[row, col]
    assert torch.equal(out_of_groups(groups, group, (8, 12)), matrix)


def test_clipping_leaves_what_is_within(matrix):
    z = 3.0
    found = clipped(matrix.reshape(1, -1), z)[0]
    limit = matrix.abs().mean() + z * matrix.abs().std(correction=0)
    assert found.max() == pytest.approx(limit.item())
    within = matrix.reshape(-1).abs() <= limit
    assert int((~within).sum()) == 1
    assert torch.equal(found[within], matrix.reshape(-1)[within])


@pytest.mark.parametrize("per", ["token", "tensor"])
def test_activations_are_rounded_by_the_largest_of_a_token_or_of_all(matrix, per):
    found = round_activations(matrix, bits=8, per=per)
    for token in range(8):
        largest = (matrix[token] if per == "token" else matrix).abs().max().item()
        for channel in range(12):
            step = largest / 127
            assert found[token, channel].item() == pytest.approx(step * round(matrix[token, channel].item() / step))


@pytest.mark.parametrize("per", ["token", "tensor"])
def test_the_largest_activation_is_held_out(matrix, per):
    found = hold_out(matrix, bits=4, per=per)
    others = matrix.clone()
    others[2, 7] = matrix.median()
    expected = round_activations(others, bits=4, per=per)
    assert found[2, 7] == 9.0
    expected[2, 7] = 9.0
    assert torch.equal(found, expected)
    plain = round_activations(matrix, bits=4, per=per)
    assert (found - matrix)[2].abs().mean() < (plain - matrix)[2].abs().mean()


def test_zeros_as_activations_stay_zeros():
    assert torch.equal(round_activations(torch.zeros(3, 4), bits=8, per="token"), torch.zeros(3, 4))


def test_smoothing_by_its_definition():
    largest, weights = torch.tensor([8.0, 2.0, 0.0]), torch.tensor([0.5, 2.0, 1.0])
    found = smoothing(largest, weights, alpha=0.85)
    for channel in (0, 1):
        expected = largest[channel].item() ** 0.85 / weights[channel].item() ** 0.15
        assert found[channel].item() == pytest.approx(expected, rel=1e-6)
    assert found[2] == pytest.approx(1e-5)


@pytest.mark.parametrize("text", ["", "0", "-4", "flat", "flat:0", "tile:x", "rows", "flat:1e3", "128:4"])
def test_what_is_no_group_is_refused(text):
    with pytest.raises(ValueError, match="none of tensor, row, N, flat:N, tile:N"):
        Group.parse(text)


@pytest.mark.parametrize("text", ["1", "9", "four", "4.5"])
def test_what_is_no_number_of_bits_is_refused(text):
    with pytest.raises(ValueError, match=r"bits|invalid literal"):
        parse_bits(text)


def test_groups_have_the_names_that_they_are_parsed_from():
    for text in ("tensor", "row", "128", "flat:16384", "tile:64"):
        assert str(Group.parse(text)) == text


def test_a_group_that_does_not_divide_is_told_with_one_that_does():
    with pytest.raises(ForwardError, match=r"^--group 128 does not divide q, 576 x 576: 96 would$"):
        Group.parse("128").check("q", (576, 576))
    with pytest.raises(ForwardError, match=r"--group tile:128 does not divide k, 192 x 576: tile:96 would"):
        Group.parse("tile:128").check("k", (192, 576))
    with pytest.raises(ForwardError, match=r"--group flat:16384 does not divide q, 576 x 576: flat:13824 would"):
        Group.parse("flat:16384").check("q", (576, 576))
    with pytest.raises(ForwardError, match="row and tensor do"):
        Group.parse("4").check("odd", (3, 7))
    for text in ("tensor", "row", "64", "flat:13824", "tile:64"):
        Group.parse(text).check("q", (576, 576))


def test_a_grids_groups_are_made_to_fit_and_those_asked_for_are_not():
    shapes = [(576, 576), (192, 576), (576, 1536)]
    asked = plan(shapes, grid="quick", group=(), bits=(), activations=())
    groups = [str(each.group) for each in asked.roundings]
    # What of 16,384 … 1,048,576 divides all of them, and Table 3's.
    assert groups == ["flat:13824", "flat:55296", "flat:110592", "tensor"]
    assert asked.changed[0] == "flat:16384 to flat:13824"
    assert [(each.bits, each.symmetric) for each in asked.roundings] == [(4, False)] * 3 + [(8, True)]
    llama = plan([(4096, 4096), (4096, 11008)], grid="quick", group=(), bits=(), activations=())
    assert [each.group for each in llama.roundings] == [*FLAT, Group("tensor")]
    assert llama.changed == ()
    own = plan(shapes, grid="quick", group=(Group("run", 7),), bits=(3, 8), activations=("none",))
    assert [(each.bits, str(each.group)) for each in own.roundings] == [(3, "7"), (8, "7")]
    full = plan(shapes, grid="full", group=(), bits=(), activations=())
    assert {(each.bits, each.symmetric) for each in full.roundings} == {
        (b, s) for b in (8, 4, 3) for s in (True, False)
    }
    assert {"tensor", "row", "96", "flat:13824", "tile:96"} <= {str(each.group) for each in full.roundings}
