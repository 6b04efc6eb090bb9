"""Codes in bytes, of every number of bits, and what they stand for."""

import ml_dtypes
import numpy as np
import pytest
from encoders import pack_stream
from quantized import E2M1

from analyzer.numbers.packing import PACKED_BITS, Packing, floats, numbers


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_codes_come_back_from_a_stream_of_bits(bits):
    packing = Packing(bits)
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 8 * packing.per_unit), np.uint8)
    units = pack_stream(codes, bits).view(packing.unit)
    assert units.shape == (3, 8)
    np.testing.assert_array_equal(packing.read(units, numbers(f"U{bits}")), codes)


def test_where_the_bits_of_a_code_are():
    """The bytes 0b11010001, 0b01011000, 0b11111010 are the numbers 1, 2, 3, 4, 5, 4, 6, 7 of 3 bits."""
    units = np.array([[0b11010001, 0b01011000, 0b11111010]], np.uint8).view(Packing(3).unit)
    assert Packing(3).read(units, numbers("U3")).tolist() == [[1, 2, 3, 4, 5, 4, 6, 7]]
    byte = np.array([[0x21]], np.uint8)
    assert Packing(4).read(byte, numbers("U4")).tolist() == [[1, 2]]
    assert Packing(4, high_first=True).read(byte, numbers("U4")).tolist() == [[2, 1]]


def test_what_codes_stand_for():
    assert numbers("E2M1").tolist() == list(E2M1)
    assert numbers("U2").tolist() == [0, 1, 2, 3]
    assert numbers("S2").tolist() == [-2, -1, 0, 1]
    assert numbers("I8").tolist() == np.arange(256, dtype=np.uint8).view(np.int8).tolist()
    assert numbers("E4M3")[0x7E] == 448
    assert np.isnan(numbers("E4M3")[0x7F])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu])
def test_scales_of_every_bit_pattern(dtype):
    size = np.dtype(dtype).itemsize
    stored = np.arange(1 << 8 * size, dtype=f"u{size}").view(dtype)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(floats(stored), stored.astype(np.float32))
        finite = stored[np.isfinite(stored.astype(np.float32))]
        np.testing.assert_array_equal(floats(finite), finite.astype(np.float32))


def test_no_scales_at_all():
    assert floats(np.empty((2, 0), np.float16)).shape == (2, 0)
