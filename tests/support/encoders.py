"""Encoders of the formats that people's quantized files have, packed by this file alone.

Each returns a function of (generator, rows, cols, size) that returns the tensors to store by the ends of their names,
and what they stand for as float64. `size` is the order of magnitude of the values. See quantized.linears.
"""

import json
import math

import ml_dtypes
import numpy as np
from checkpoints import DTYPES
from quantized import E2M1, float8

NF4 = (  # QLoRA, arXiv 2305.14314, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
FP4 = tuple(np.float32(value) for value in (*FP4, *(-value for value in FP4)))


def pack_stream(codes, bits):
    """Return codes, [rows, cols], as bytes of each row: a stream of bits, the lowest first."""
    stream = np.unpackbits(np.ascontiguousarray(codes, np.uint8)[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(stream.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def words(codes, bits, dtype=np.int32):
    """Return codes, [rows, cols], in 32-bit words along each row, filled up with zeros."""
    stream = pack_stream(codes, bits)
    filled = np.zeros((*stream.shape[:-1], -(-stream.shape[-1] // 4) * 4), np.uint8)
    filled[..., : stream.shape[-1]] = stream
    return filled.view("<u4").astype(np.uint32).view(dtype)


def random_codes(generator, rows, cols, bits):
    return generator.integers(0, 1 << bits, (rows, cols), np.uint8)


def random_scales(generator, shape, size, dtype):
    return (size * generator.uniform(0.01, 0.02, shape)).astype(DTYPES[dtype])


def spread(scales, group, cols):
    """Return scales of groups, [rows, groups], for each number of a row, as float32."""
    return np.repeat(scales.astype(np.float32), group, axis=1)[:, :cols]


def e2m1(codes):
    return np.array(E2M1, np.float32)[codes]


def mlx(bits, group=64, dtype="BF16"):
    def encode(generator, rows, cols, size):
        codes = random_codes(generator, rows, cols, bits)
        scales = random_scales(generator, (rows, cols // group), size, dtype)
        biases = (scales.astype(np.float32) * generator.integers(-(1 << bits), 0, scales.shape)).astype(DTYPES[dtype])
        dense = codes.astype(np.float32) * spread(scales, group, cols) + spread(biases, group, cols)
        return {"weight": words(codes, bits, np.uint32), "scales": scales, "biases": biases}, dense.astype(np.float64)

    return encode


def mlx_floats(mode):
    def encode(generator, rows, cols, size):
        bits, group = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}[mode]
        codes = random_codes(generator, rows, cols, bits)
        codes &= np.uint8(0xF7)  # two codes of 8 bits are no number
        values = e2m1(codes) if bits == 4 else float8(codes, "F8_E4M3")[1]
        scales = generator.integers(110, 120, (rows, cols // group)).astype(np.uint8) + np.uint8(math.log2(size))
        if mode == "nvfp4":
            scales = (size * generator.uniform(0.1, 0.2, scales.shape)).astype(ml_dtypes.float8_e4m3fn)
            factors = scales.astype(np.float32)
        else:
            factors = float8(scales, "F8_E8M0")[1]
        dense = values * spread(factors, group, cols)
        return {"weight": words(codes, bits, np.uint32), "scales": scales.view(np.uint8)}, dense.astype(np.float64)

    return encode


def pack_quantized(bits=4, group=32, *, zeros=None, g_idx=None, dtype="BF16"):
    """`group` is null for scales of rows, 0 for one; `zeros` "packed" or "plain" or null; `g_idx` "named", "unused"."""

    def encode(generator, rows, cols, size):
        half = 1 << (bits - 1)
        codes = random_codes(generator, rows, cols, bits)
        shape = (rows, -(-cols // group)) if group else ((rows, 1) if group is None else (1,))
        scales = random_scales(generator, shape, size, dtype)
        stored = {"weight_packed": words(codes, bits), "weight_scale": scales, "weight_shape": np.array([rows, cols])}
        group_of = np.arange(cols) // group if group else np.zeros(cols, int)
        if g_idx == "named":
            group_of = generator.permutation(group_of)
        if g_idx:
            stored["weight_g_idx"] = (group_of if g_idx == "named" else np.full(cols, -1)).astype(np.int32)
        steps = codes.astype(np.float32) - half
        if zeros:
            taken = generator.integers(-half, half, (rows, shape[-1]))
            packed = np.ascontiguousarray(words((taken + half).astype(np.uint8).T, bits).T)
            stored["weight_zero_point"] = packed if zeros == "packed" else taken.astype(np.int8)
            steps -= taken.astype(np.float32)[:, group_of]
        factors = np.broadcast_to(scales.astype(np.float32), (rows, shape[-1]))
        return stored, (steps * factors[:, group_of]).astype(np.float64)

    return encode


def int_quantized(group=None, *, zeros=False, dtype="BF16"):
    def encode(generator, rows, cols, size):
        codes = generator.integers(-128, 128, (rows, cols)).astype(np.int8)
        scales = random_scales(generator, (rows, cols // group if group else 1), size, dtype)
        stored = {"weight": codes, "weight_scale": scales}
        steps = codes.astype(np.float32)
        if zeros:
            stored["weight_zero_point"] = generator.integers(-128, 128, scales.shape).astype(np.int8)
            steps -= spread(stored["weight_zero_point"], group or cols, cols)
        return stored, (steps * spread(scales, group or cols, cols)).astype(np.float64)

    return encode


def nvfp4(spelling="modelopt", shape=()):
    def encode(generator, rows, cols, size):
        codes = random_codes(generator, rows, cols, 4)
        scales = generator.uniform(0.1, 0.2, (rows, -(-cols // 16))).astype(ml_dtypes.float8_e4m3fn)
        factor = np.full(shape, 0.037 * size if spelling == "modelopt" else 1 / (0.037 * size), np.float32)
        both = scales.astype(np.float32) * factor if spelling == "modelopt" else scales.astype(np.float32) / factor
        names = {
            "modelopt": ("weight", "weight_scale_2", "input_scale"),
            "compressed": ("weight_packed", "weight_global_scale", "input_global_scale"),
        }[spelling]
        stored = {names[0]: pack_stream(codes, 4), "weight_scale": scales, names[1]: factor, names[2]: factor}
        return stored, (e2m1(codes) * spread(both, 16, cols)).astype(np.float64)

    return encode


def mxfp4_pairs(name="weight", dtype=np.int8, scale="scale", scale_dtype="F8_E8M0"):
    def encode(generator, rows, cols, size):
        codes = random_codes(generator, rows, cols, 4)
        exponents = generator.integers(110, 125, (rows, cols // 32)).astype(np.uint8) + np.uint8(math.log2(size))
        stored, factors = float8(exponents, "F8_E8M0")
        stored = stored if scale_dtype == "F8_E8M0" else exponents
        dense = e2m1(codes) * spread(factors, 32, cols)
        return {name: pack_stream(codes, 4).view(dtype), scale: stored}, dense.astype(np.float64)

    return encode


def mxfp8(scale="weight_scale", scale_dtype="U8"):
    def encode(generator, rows, cols, size):
        weight, values = float8(random_codes(generator, rows, cols, 8), "F8_E4M3")
        exponents = generator.integers(110, 120, (rows, -(-cols // 32))).astype(np.uint8) + np.uint8(math.log2(size))
        stored, factors = float8(exponents, "F8_E8M0")
        stored = stored if scale_dtype == "F8_E8M0" else exponents
        return {"weight": weight, scale: stored}, (values * spread(factors, 32, cols)).astype(np.float64)

    return encode


def gptq_bits(bits, group=64, *, desc_act=False, g_idx=True, offset=1):
    def encode(generator, rows, cols, size):
        group_of = np.arange(cols, dtype=np.int32) // group
        if desc_act:
            group_of = generator.permutation(group_of)
        codes = random_codes(generator, rows, cols, bits)
        zeros = generator.integers(offset, 1 << bits, (-(-cols // group), rows), np.uint8)
        scales = random_scales(generator, zeros.shape, size, "F16")
        stored = {
            "qweight": np.ascontiguousarray(words(codes, bits).T),
            "qzeros": words(zeros - np.uint8(offset), bits),
            "scales": scales,
        }
        if g_idx:
            stored["g_idx"] = group_of
        steps = codes.astype(np.float64) - zeros.astype(np.float64)[group_of].T
        return stored, steps * scales.astype(np.float64)[group_of].T

    return encode


def awq_gemv(group=64):
    def encode(generator, rows, cols, size):
        codes, groups = random_codes(generator, rows, cols, 4), cols // group
        width = -(-groups // 8) * {128: 1, 64: 2, 32: 4}[group]  # zeros, and scales eight times as wide, are filled up
        zeros = np.full((rows, 8 * width), 7, np.uint8)
        zeros[:, :groups] = random_codes(generator, rows, groups, 4)
        scales = np.zeros((rows, 8 * width), np.float16)
        scales[:, :groups] = random_scales(generator, (rows, groups), size, "F16")
        steps = codes.astype(np.float32) - spread(zeros, group, cols)
        stored = {"qweight": words(codes, 4), "qzeros": words(zeros, 4), "scales": scales}
        return stored, (steps * spread(scales, group, cols)).astype(np.float64)

    return encode


def bnb_4bit(kind="nf4", block=64, *, nested=False):
    def encode(generator, rows, cols, size):
        known = np.array({"nf4": NF4, "fp4": FP4}[kind], np.float32)
        codes = random_codes(generator, 1, rows * cols, 4)[0]
        scales = (size * generator.uniform(0.01, 0.02, -(-codes.size // block))).astype(np.float32)
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [rows, cols]}
        stored = {"weight": (codes[0::2] << 4 | codes[1::2])[:, None], "weight.quant_map": known}
        if nested:
            numbers = np.sort(generator.uniform(-1, 1, 256)).astype(np.float32)
            inner = generator.integers(0, 256, scales.size, np.uint8)
            outer = (size * generator.uniform(0.001, 0.002, -(-scales.size // 256))).astype(np.float32)
            offset = 0.0150000001 * size
            scales = numbers[inner] * np.repeat(outer, 256)[: inner.size] + np.float32(offset)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            stored |= {"weight.absmax": inner, "weight.nested_absmax": outer, "weight.nested_quant_map": numbers}
        else:
            stored["weight.absmax"] = scales
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        stored[f"weight.quant_state.bitsandbytes__{kind}"] = text
        dense = known[codes] * np.repeat(scales, block)[: codes.size]
        return stored, dense.reshape(rows, cols).astype(np.float64)

    return encode


def bnb_int8(generator, rows, cols, size):
    codes = generator.integers(-127, 128, (rows, cols)).astype(np.int8)
    scales = (size * generator.uniform(1, 2, rows)).astype(np.float32)
    dense = codes.astype(np.float32) * (scales * np.float32(1 / 127))[:, None]
    return {"weight": codes, "SCB": scales, "weight_format": np.array(0, np.uint8)}, dense.astype(np.float64)


def bitnet(*, divided=True):
    def encode(generator, rows, cols, size):
        ternary = generator.integers(-1, 2, (rows, cols)).astype(np.int8)
        scale = np.array([1 / (0.013 * size) if divided else 0.013 * size]).astype(DTYPES["BF16"])
        quarters = (ternary + 1).astype(np.uint8).reshape(4, rows // 4, cols)
        packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
        factor = scale.astype(np.float32)
        dense = ternary / factor if divided else ternary * factor
        return {"weight": packed, "weight_scale": scale}, dense.astype(np.float64)

    return encode
