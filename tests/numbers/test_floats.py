"""Floats as integers, against ml_dtypes and NumPy: every value of 16 bits, and many of 32 and 64."""

import ml_dtypes
import numpy as np
import pytest

from analyzer.numbers.floats import FORMATS

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def bits_of(name):
    """Return bits of every kind of number, as [numbers]: zeros, subnormals, infinities and NaNs of either sign."""
    bits = FORMATS[name].bits
    if bits.itemsize == 2:
        return np.arange(1 << 16, dtype=bits)
    special = np.array([0.0, 5e-324, 1e-40, 1.5, 3e38, 1e300, np.inf, np.nan]).astype(DTYPES[name]).view(bits)
    some = np.random.default_rng(0).integers(0, np.iinfo(bits).max, 10_000, bits)
    sign = bits.type(1 << (8 * bits.itemsize - 1))
    return np.concatenate([special, special | sign, some, some | sign])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", FORMATS)
class TestFormat:
    def test_values_are_exact(self, name):
        bits = bits_of(name)
        expected = bits.view(DTYPES[name]).astype(np.float64)
        np.testing.assert_array_equal(FORMATS[name].decode(bits), expected)
        numbers = ~np.isnan(expected)
        assert (np.signbit(FORMATS[name].decode(bits)) == np.signbit(expected))[numbers].all()

    def test_keys_order_as_magnitudes_do_and_infinity_parts_them_from_nan(self, name):
        bits = bits_of(name)
        keys, expected = FORMATS[name].keys(bits), np.abs(bits.view(DTYPES[name]).astype(np.float64))
        assert ((keys > FORMATS[name].infinity) == np.isnan(expected)).all()
        assert ((keys == FORMATS[name].infinity) == np.isinf(expected)).all()
        ordered = expected[np.argsort(keys)]  # NaNs last, as in NumPy's own order
        np.testing.assert_array_equal(ordered, np.sort(expected))

    def test_magnitudes_are_exact(self, name):
        keys = FORMATS[name].keys(bits_of(name))
        keys = keys[keys < FORMATS[name].infinity]
        found = FORMATS[name].magnitudes(keys, np.empty(len(keys)), np.empty(len(keys), np.uint32))
        np.testing.assert_array_equal(found, keys.view(DTYPES[name]).astype(np.float64))
