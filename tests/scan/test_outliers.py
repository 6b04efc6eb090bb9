"""torch's float64 arithmetic is the oracle: a full sort for the ranking, its own mean and std for the statistics."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from checkpoints import DTYPES
from hypothesis import example, given
from hypothesis import strategies as st

from analyzer.numbers.floats import FORMATS
from analyzer.scan.outliers import TILE_NUMBERS, Magnitudes, TopK, count_before

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's warnings of NaN would reach the user

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NORMAL = np.random.default_rng(0).normal(0, 0.02, 60_000)


def tiles_of(data, dtype, row_major, size=TILE_NUMBERS):
    """Yield the bits of data, tile by tile, and what turns their indices into places."""
    bits = np.frombuffer(data, FORMATS[dtype].bits)
    for start in range(0, bits.size, size):
        yield bits[start : start + size], lambda indices, start=start: row_major(indices + start)


def summarize(data, dtype, *, top, row_major=lambda places: places, size=TILE_NUMBERS):
    magnitudes = Magnitudes(FORMATS[dtype], top)
    for tile in tiles_of(data, dtype, row_major, size):
        magnitudes.add(*tile)
    return magnitudes.summary()


def to_bytes(values, dtype):
    return np.asarray(values).astype(DTYPES[dtype]).tobytes()


def to_float64(data, dtype):
    return torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).double()


def rank(values):
    """Return the places of the finite values, largest magnitude first, ties in order of place."""
    finite = torch.isfinite(values).nonzero().flatten()
    return finite[torch.sort(values[finite].abs(), descending=True, stable=True).indices]


def assert_ranked(summary, values, top):
    places = rank(values)[:top]
    assert summary.places.tolist() == places.tolist()
    # As bits: 0.0 and -0.0 are equal.
    assert summary.values.tobytes() == values[places].numpy().tobytes()


def assert_statistics(summary, values, *, std_slack=0.0):
    finite = values[torch.isfinite(values)].abs()
    assert summary.nonfinite == values.numel() - finite.numel()
    if finite.numel() == 0:
        assert all(math.isnan(figure) for figure in (summary.mean_abs, summary.std, summary.max_abs))
        return
    assert summary.max_abs == finite.max().item()
    assert summary.mean_abs == pytest.approx(finite.mean().item(), rel=1e-12, abs=0)
    assert summary.std == pytest.approx(finite.std(correction=0).item(), rel=1e-11, abs=std_slack)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("top", [1, 20, 500])
def test_normal_weights(dtype, top):
    data = to_bytes(NORMAL, dtype)
    summary = summarize(data, dtype, top=top)
    assert_ranked(summary, to_float64(data, dtype), top)
    assert_statistics(summary, to_float64(data, dtype))


@pytest.mark.parametrize("dtype", FORMATS)
def test_special_values(dtype):
    info = torch.finfo(TORCH[dtype])
    smallest = info.smallest_normal
    subnormal = smallest * info.eps  # the smallest of all
    values = [subnormal, -3 * subnormal, 0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, smallest, -1.0, 1.0]
    data = to_bytes(values, dtype)
    assert np.frombuffer(data, DTYPES[dtype])[0] != 0
    summary = summarize(data, dtype, top=20)
    assert summary.nonfinite == 4
    assert summary.places.tolist() == [9, 10, 8, 1, 0, 2, 3]
    assert summary.values.tolist() == [-1.0, 1.0, smallest, -3 * subnormal, subnormal, 0.0, -0.0]
    assert math.copysign(1, summary.values[-1]) == -1
    assert_statistics(summary, to_float64(data, dtype))


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_largest_numbers_are_numbers(dtype):
    largest = torch.finfo(TORCH[dtype]).max
    summary = summarize(to_bytes([1.0, -largest, math.inf], dtype), dtype, top=1)
    assert (summary.places.tolist(), summary.values.tolist()) == ([1], [-largest])
    assert (summary.max_abs, summary.nonfinite) == (largest, 1)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_number(dtype):
    data = np.arange(1 << 16, dtype=np.uint16).tobytes()
    values = to_float64(data, dtype)
    decoded = FORMATS[dtype].decode(np.frombuffer(data, np.uint16))
    assert np.array_equal(decoded, values.numpy(), equal_nan=True)
    assert np.array_equal(np.signbit(decoded), np.signbit(values.numpy()))
    summary = summarize(data, dtype, top=1 << 16)
    assert_ranked(summary, values, 1 << 16)
    # Their squares span 154 orders of magnitude, the sum of which the few largest make alone.
    assert_statistics(summary, values)


@pytest.mark.parametrize("dtype", FORMATS)
def test_nothing_but_nonfinite(dtype):
    data = to_bytes([math.nan, math.inf, -math.inf], dtype)
    summary = summarize(data, dtype, top=5)
    assert (summary.places.size, summary.values.size, summary.nonfinite) == (0, 0, 3)
    assert_statistics(summary, to_float64(data, dtype))


def test_no_weights_at_all():
    summary = summarize(b"", "BF16", top=5)
    assert (summary.places.size, summary.values.size, summary.nonfinite) == (0, 0, 0)
    assert math.isnan(summary.mean_abs)


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_equal_and_negative(dtype):
    summary = summarize(to_bytes(np.full(1000, -0.5), dtype), dtype, top=4)
    assert summary.places.tolist() == [0, 1, 2, 3]
    assert summary.values.tolist() == [-0.5] * 4
    assert (summary.mean_abs, summary.std, summary.max_abs) == (0.5, 0.0, 0.5)


@pytest.mark.parametrize("count", [1, 6, 7, 8])
def test_as_many_weights_as_are_kept_and_one_more_or_less(count):
    data = to_bytes(NORMAL[:count], "BF16")
    summary = summarize(data, "BF16", top=7)
    assert summary.places.size == min(count, 7)
    assert_ranked(summary, to_float64(data, "BF16"), 7)


def test_a_nonfinite_tile_does_not_hide_its_neighbours():
    size = TILE_NUMBERS
    values = np.full(3 * size, 0.01)
    values[size : 2 * size] = math.nan
    values[[size - 1, 2 * size]] = [0.5, -0.75]
    data = to_bytes(values, "BF16")
    summary = summarize(data, "BF16", top=3)
    assert summary.nonfinite == size
    assert_ranked(summary, to_float64(data, "BF16"), 3)


def tiles_with_ties():
    """Return weights of two tiles and a half, [1024, 1280], with equal ones on both sides of each boundary."""
    size = TILE_NUMBERS
    values = np.random.default_rng(1).normal(0, 0.02, 5 * size // 2)
    values[[7, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 9, -1]] = [0.5, -0.5] * 4
    return to_bytes(values, "BF16"), (1024, 1280)


def test_the_result_does_not_depend_on_the_order_of_the_tiles():
    data, _ = tiles_with_ties()
    whole = summarize(data, "BF16", top=5)
    tiles = list(tiles_of(data, "BF16", lambda places: places))
    for order in permutations(range(3)):
        magnitudes = Magnitudes(FORMATS["BF16"], 5)
        for index in order:
            magnitudes.add(*tiles[index])
        summary = magnitudes.summary()
        assert summary.places.tolist() == whole.places.tolist()
        assert summary.values.tolist() == whole.values.tolist()
        # To the last bit: a scan repeated must write the same catalog.
        assert (summary.mean_abs, summary.std, summary.max_abs) == (whole.mean_abs, whole.std, whole.max_abs)
    assert_ranked(whole, to_float64(data, "BF16"), 5)
    assert_statistics(whole, to_float64(data, "BF16"))


@pytest.mark.parametrize("top", [1, 5, 8, 30])
def test_ties_of_a_transposed_matrix_are_in_its_own_order(top):
    data, (cols, rows) = tiles_with_ties()
    summary = summarize(data, "BF16", top=top, row_major=lambda places: places % rows * cols + places // rows)
    assert_ranked(summary, to_float64(data, "BF16").view(cols, rows).T.reshape(-1), top)


BITS = {
    # Few numbers make ties; all bits make NaN, infinities and subnormals.
    "F16": st.sampled_from([0, 1, 0x8001, 0x3C00, 0xBC00, 0x3C01, 0x7BFF, 0x7C00, 0xFC01]) | st.integers(0, 2**16 - 1),
    "BF16": st.sampled_from([0, 1, 0x8001, 0x3F80, 0xBF80, 0x3F81, 0x7F80, 0xFF81]) | st.integers(0, 2**16 - 1),
    "F32": st.sampled_from([0, 1, 0x80000001, 0x3F800000, 0xBF800000, 0x7F800000]) | st.integers(0, 2**32 - 1),
    # Not beyond: the squares must be float64 themselves.
    "F64": st.floats(1e-100, 1e100).map(lambda x: int(np.float64(x).view(np.uint64))) | st.sampled_from([0, 1 << 63]),
}
TENSORS = st.sampled_from(list(BITS)).flatmap(
    lambda dtype: st.tuples(st.just(dtype), st.lists(BITS[dtype], min_size=1, max_size=40))
)


def bits_to_bytes(dtype, bits):
    return np.array(bits, FORMATS[dtype].bits).tobytes()


@given(TENSORS, st.integers(1, 12), st.integers(1, 7))
@example(("F16", [0x7C00, 0x3C00]), 1, 1)
def test_any_weights(tensor, top, tile_elements):
    dtype = tensor[0]
    data = bits_to_bytes(*tensor)
    summary = summarize(data, dtype, top=top, size=tile_elements)
    values = to_float64(data, dtype)
    assert_ranked(summary, values, top)
    # The variance is a difference of two sums: where it is nearly nothing, their rounding is what is left.
    assert_statistics(summary, values, std_slack=1e-7 * summary.mean_abs if summary.mean_abs > 0 else 0.0)


@given(TENSORS, st.integers(1, 7), st.data())
@example(("F16", [0x7C00, 0x7E00, 0x4000, 0x3C00]), 2, None)
def test_ranks_by_brute_force(tensor, cols, data):
    dtype, bits = tensor
    bits = bits[: max(len(bits) // cols, 1) * cols] if len(bits) >= cols else bits[:1] * cols
    stored = to_float64(bits_to_bytes(dtype, bits), dtype)
    rows = stored.numel() // cols
    finite = torch.isfinite(stored).nonzero().flatten().tolist()
    if not finite:
        return
    wanted = finite if data is None else data.draw(st.lists(st.sampled_from(finite), min_size=1, max_size=4))
    for transposed in (False, True):  # the file holds [rows, cols] or [cols, rows]
        places = [place % rows * cols + place // rows if transposed else place for place in range(stored.numel())]
        row_major = (lambda p: p % rows * cols + p // rows) if transposed else (lambda p: p)
        counts = sum(
            count_before(
                *tile,
                FORMATS[dtype],
                magnitudes=stored[wanted].abs().numpy(),
                tie_places=np.array([places[i] for i in wanted]),
            )
            for tile in tiles_of(bits_to_bytes(dtype, bits), dtype, row_major, size=2)
        )
        magnitudes = stored.abs().tolist()
        order = sorted(finite, key=lambda i: (-magnitudes[i], places[i]))
        assert counts.tolist() == [order.index(i) for i in wanted]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=30, unique_by=lambda pair: pair[1]), st.data()
)
def test_top_k_does_not_depend_on_how_it_is_pushed(entries, data):
    ranking = TopK(4)
    remaining = entries
    while remaining:
        cut = data.draw(st.integers(1, len(remaining)))
        scores, places = np.array(remaining[:cut]).T
        ranking.offer(scores, places.astype(np.uint16) + 100, lambda indices, places=places: places[indices])
        remaining = remaining[cut:]
    best = sorted(entries, key=lambda entry: (-entry[0], entry[1]))[:4]
    assert ranking.places.tolist() == [place for _, place in best]
    assert ranking.bits.tolist() == [place + 100 for _, place in best]
    assert ranking.lowest == (best[-1][0] if len(best) == 4 else None)
