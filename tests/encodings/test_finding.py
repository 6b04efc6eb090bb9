"""Whatever has become of a module's tensors: a matrix within their bytes that can be decoded, or one line."""

import math

import numpy as np
import pytest
from encoders import (
    awq_gemv,
    bitnet,
    bnb_4bit,
    bnb_int8,
    gptq_bits,
    int_quantized,
    mlx,
    mlx_floats,
    mxfp4_pairs,
    mxfp8,
    nvfp4,
    pack_quantized,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import AWQ, FP8, GPTQ, GPTQ_V2, awq, fp8

from analyzer.base.errors import AnalyzerError
from analyzer.checkpoint.header import DTYPE_BITS
from analyzer.encodings.finding import find_matrices
from analyzer.numbers.encoding import NUMPY_DTYPES
from analyzer.numbers.module import StoredTensors

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def integers(bits, group, *, symmetric=True):
    weights = {"num_bits": bits, "group_size": group, "symmetric": symmetric}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


FORMS = {
    "fp8": (fp8(), FP8),
    "fp8, scales of rows": (fp8(scale="rows", name="weight_scale"), {}),
    "mxfp8": (mxfp8(), {}),
    "mxfp4": (mxfp4_pairs(), {}),
    "nvfp4": (nvfp4(), {}),
    "nvfp4, compressed": (nvfp4("compressed"), {}),
    "mlx, 3 bits": (mlx(3, 32), {"bits": 3, "group_size": 32}),
    "mlx, 5 bits": (mlx(5, 32), {"bits": 5, "group_size": 32}),
    "mlx, nvfp4": (mlx_floats("nvfp4"), {}),
    "4 bits": (pack_quantized(4, 32, zeros="packed", g_idx="named"), integers(4, 32, symmetric=False)),
    "3 bits": (pack_quantized(3, 32, zeros="packed"), integers(3, 32)),
    "8 bits, packed": (pack_quantized(8, None), {}),
    "8 bits": (int_quantized(zeros=True), integers(8, None)),
    "gptq, 2 bits": (gptq_bits(2, 32), GPTQ),
    "gptq, 3 bits": (gptq_bits(3, 32, g_idx=False), GPTQ),
    "gptq, 8 bits": (gptq_bits(8, 32, offset=0), GPTQ_V2),
    "awq": (awq(32), AWQ),
    "awq, gemv": (awq_gemv(32), {**AWQ, "version": "gemv", "group_size": 32}),
    "nf4": (bnb_4bit(), {}),
    "nf4, scales quantized": (bnb_4bit(nested=True), {}),
    "int8": (bnb_int8, {}),
    "bitnet": (bitnet(), {"quant_method": "bitnet"}),
}
DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in NUMPY_DTYPES.items()} | {
    np.dtype(np.int32): "I32",
    np.dtype(np.uint32): "U32",
}
NONSENSE = st.sampled_from([None, 0, 1, 2, 3, 4, 8, 16, 32, 64, -1, 2**70, "x\x1b", True, [1, 32], [], {}])
CHANGES = st.one_of(
    st.just(None),
    st.sampled_from(sorted(NUMPY_DTYPES)),
    st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 3, 31, 32, 48, 96, 1 << 40])),
    st.sampled_from(["longer", "shorter"]),
)


def changed(dtype, shape, change):
    """Return a tensor's dtype and shape with another dtype, a side of another length, or a side more or less."""
    if change in NUMPY_DTYPES:
        return change, shape
    if isinstance(change, tuple):
        side, length = change
        return dtype, tuple(length if number == side else size for number, size in enumerate(shape))
    return dtype, (2, *shape) if change == "longer" else shape[1:]


@settings(max_examples=300)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_found_within_the_bytes_or_refused_in_one_line(name, data):
    encode, told = FORMS[name]
    stored, _ = encode(np.random.default_rng(0), 64, 96, 1)
    shapes = {f"m.{end}": (DTYPE_NAMES[tensor.dtype], tensor.shape) for end, tensor in stored.items()}
    for tensor, change in data.draw(st.dictionaries(st.sampled_from(sorted(shapes)), CHANGES, max_size=2)).items():
        if change is None:
            del shapes[tensor]
        else:
            shapes[tensor] = changed(*shapes[tensor], change)
    config = {**told, **data.draw(st.dictionaries(st.sampled_from(sorted(told) or ["bits"]), NONSENSE, max_size=1))}

    def read(names):
        sizes = {tensor: math.prod(shapes[tensor][1]) * DTYPE_BITS[shapes[tensor][0]] // 8 for tensor in names}
        return {tensor: stored[tensor[2:]].tobytes().ljust(size)[:size] for tensor, size in sizes.items()}

    try:
        matrices = find_matrices(StoredTensors("model", shapes, {"quantization_config": config}, read), "m")
        for matrix in matrices or []:
            check(matrix, shapes)
    except AnalyzerError as error:
        assert str(error).isprintable()


def check(matrix, shapes):
    for part in matrix.parts:
        dtype, shape = shapes[part.tensor]
        assert 0 <= part.start < part.stop <= math.prod(shape) * DTYPE_BITS[dtype] // 8
    (lines, units), (down, along) = matrix.data.shape, matrix.encoding.expand
    unit = matrix.encoding.unit
    assert matrix.data.stop - matrix.data.start == lines * units * unit.itemsize
    assert sorted(matrix.shape) == sorted((lines * down, units * along))
    if math.prod(matrix.shape) > 1 << 20:
        return
    generator = np.random.default_rng(0)

    def some(shape, dtype):
        return np.frombuffer(generator.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)

    companions = tuple(some(part.shape, NUMPY_DTYPES[part.dtype]) for part in matrix.companions)
    for tile in [*matrix.tiles(), matrix.tile_of(matrix.shape[0] - 1, matrix.shape[1] - 1)[0]]:
        bits = matrix.encoding.decode(some((tile.lines, tile.units), unit), tile, companions)
        assert bits.shape == (tile.lines * down, tile.units * along)
        assert bits.dtype == matrix.encoding.decoded.bits


@pytest.mark.parametrize("name", FORMS)
def test_as_they_are_they_are_found(name):
    encode, told = FORMS[name]
    stored, values = encode(np.random.default_rng(0), 64, 96, 1)
    shapes = {f"m.{end}": (DTYPE_NAMES[tensor.dtype], tensor.shape) for end, tensor in stored.items()}
    contents = {f"m.{end}": tensor.tobytes() for end, tensor in stored.items()}
    checkpoint = StoredTensors("model", shapes, {"quantization_config": told}, lambda names: contents)
    [matrix] = find_matrices(checkpoint, "m")
    assert matrix.shape == values.shape


def test_a_module_that_is_not_there():
    assert find_matrices(StoredTensors("model", {}, {}), "m") is None
