"""IEEE floats as integers: their order, their magnitudes, their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Unsigned = NDArray[np.unsignedinteger[Any]]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class FloatFormat:
    """A float as safetensors stores it; little-endian, with IEEE infinities."""

    bits: np.dtype[Any]
    """The unsigned integer of the same width."""
    mantissa_bits: int
    exponent_bits: int

    @property
    def infinity(self) -> int:
        """The bits of infinity; every larger magnitude is a NaN."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    def keys(self, bits: Unsigned, out: Unsigned | None = None) -> Unsigned:
        """Return the bits without their sign: integers in the order of the magnitudes."""
        mask = np.asarray((1 << (self.mantissa_bits + self.exponent_bits)) - 1, self.bits)
        keys: Unsigned = np.bitwise_and(bits, mask, out=out)
        return keys

    def magnitudes(self, keys: Unsigned, out: Float64, scratch: NDArray[np.uint32]) -> Float64:
        """Fill `out` with the exact float64 magnitudes of finite numbers' keys; `scratch` has their length too."""
        if self.bits.itemsize > 2:
            out[...] = keys.view(f"<f{self.bits.itemsize}")
            return out
        # A 16-bit float's exponent and mantissa, moved to where float32 has them, are that float32 but for the
        # exponent's bias, which a power of two makes up. NumPy's own cast from float16 measured ten times slower.
        scratch[...] = keys
        np.left_shift(scratch, np.uint32(23 - self.mantissa_bits), out=scratch)
        narrow = scratch.view(np.float32)
        rebias = 127 - ((1 << (self.exponent_bits - 1)) - 1)
        if rebias:
            np.multiply(narrow, np.float32(2.0**rebias), out=narrow)
        out[...] = narrow
        return out

    def decode(self, bits: Unsigned) -> Float64:
        """Return the float64 values of the bits, exactly."""
        if self.bits.itemsize > 2:
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                return bits.view(f"<f{self.bits.itemsize}").astype(np.float64)
        wide = bits.astype(np.uint32)  # moved as in `magnitudes`, and the sign with it
        moved = (wide & np.uint32(0x7FFF)) << np.uint32(23 - self.mantissa_bits)
        narrow = (moved | (wide & np.uint32(0x8000)) << np.uint32(16)).view(np.float32)
        with np.errstate(invalid="ignore"):
            values = narrow.astype(np.float64)
        rebias = 127 - ((1 << (self.exponent_bits - 1)) - 1)
        if rebias:
            values *= 2.0**rebias
            keys = self.keys(bits)
            nonfinite = keys >= self.infinity
            if nonfinite.any():
                named = np.where(keys == self.infinity, np.inf, np.nan)
                values[nonfinite] = np.copysign(named, values)[nonfinite]
        return values


FORMATS = {
    "F64": FloatFormat(np.dtype("<u8"), mantissa_bits=52, exponent_bits=11),
    "F32": FloatFormat(np.dtype("<u4"), mantissa_bits=23, exponent_bits=8),
    "F16": FloatFormat(np.dtype("<u2"), mantissa_bits=10, exponent_bits=5),
    "BF16": FloatFormat(np.dtype("<u2"), mantissa_bits=7, exponent_bits=8),
}
