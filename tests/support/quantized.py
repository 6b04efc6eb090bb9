"""Quantized checkpoints, packed by this file alone, and what they stand for: from the codes packed, or by torch."""

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import DTYPES, header_bytes, tensor_ranges, write_config, write_tensors
from rankings import magnitudes, place_key, rank_of, ranking
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX
from analyzer.projections.down_projections import down_projections
from analyzer.projections.weights import read_weights
from analyzer.scan.ranks import static_ranks
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource
from analyzer.source.streaming import stream

FLOAT8 = {
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    "F8_E5M2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    "F8_E8M0": (ml_dtypes.float8_e8m0fnu, torch.float8_e8m0fnu),
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
IN_ORDER = range(8)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
DENSE = "model.layers.{}.mlp.down_proj"
EXPERTS = "model.layers.{}.mlp.experts.down_proj"
EXPERT = "model.layers.{}.mlp.experts.{}.down_proj"


class Model(NamedTuple):
    """A checkpoint to write, what its down projections stand for by (layer, expert), and what a scan may read."""

    tensors: dict[str, np.ndarray]
    quantization: dict[str, Any] | None
    downs: dict[tuple[int, int | None], np.ndarray]
    read: set[str]
    dtype: str
    model_type: str = "llama"


# Encoders: each returns a function of (generator, rows, cols, size) that returns the tensors to store by the ends of
# their names, and what they stand for as float64. `size` is the order of magnitude of the values.


def fp8(dtype="F8_E4M3", *, scale="blocks", scale_dtype="F32", name="weight_scale_inv", block=(128, 128)):
    def encode(generator, rows, cols, size):
        shapes = {
            "blocks": (math.ceil(rows / block[0]), math.ceil(cols / block[1])),
            "scalar": (),
            "one": (1,),
            "rows": (rows, 1),
            "flat rows": (rows,),
        }
        codes = generator.integers(0, 256, (rows, cols), np.uint8)
        if scale_dtype == "F8_E8M0":
            exponents = generator.integers(110, 125, shapes[scale]).astype(np.uint8) + np.uint8(math.log2(size))
            stored, factors = float8(exponents, scale_dtype)
        else:
            stored = np.asarray(size * generator.uniform(0.001, 0.002, shapes[scale])).astype(DTYPES[scale_dtype])
            factors = stored.astype(np.float32)
        if scale == "blocks":
            factors = np.repeat(np.repeat(factors, block[0], axis=0)[:rows], block[1], axis=1)[:, :cols]
        elif scale == "flat rows":
            factors = factors[:, None]
        weight, values = float8(codes, dtype)
        return {"weight": weight, name: stored}, (values * factors).astype(np.float64)

    return encode


def float8(codes, dtype):
    """Return bytes as the float8 that safetensors calls `dtype`, and as torch reads them."""
    stored, read = FLOAT8[dtype]
    return codes.view(stored), torch.from_numpy(codes).view(read).float().numpy()


def gptq(group_size=128, *, desc_act=False, g_idx=True, offset=1):
    def encode(generator, rows, cols, size):
        width = cols if group_size == -1 else group_size
        group_of = np.arange(cols, dtype=np.int32) // width
        if desc_act:
            group_of = generator.permutation(group_of)
        codes, zeros, scales = random_groups(generator, rows, cols, int(group_of.max()) + 1, size, lowest_zero=offset)
        stored = {
            "qweight": np.ascontiguousarray(pack_nibbles(codes).T),
            "qzeros": pack_nibbles(zeros - offset),
            "scales": scales,
        }
        if g_idx:
            stored["g_idx"] = group_of
        return stored, dequantize(codes, zeros, scales, group_of)

    return encode


def awq(group_size=64):
    def encode(generator, rows, cols, size):
        width = cols if group_size == -1 else group_size
        codes, zeros, scales = random_groups(generator, rows, cols, math.ceil(cols / width), size, lowest_zero=0)
        stored = {
            "qweight": pack_nibbles(np.ascontiguousarray(codes.T), AWQ_ORDER),
            "qzeros": pack_nibbles(zeros, AWQ_ORDER),
            "scales": scales,
        }
        return stored, dequantize(codes, zeros, scales, np.arange(cols) // width)

    return encode


def random_groups(generator, rows, cols, groups, size, *, lowest_zero):
    codes = generator.integers(0, 16, (rows, cols), np.uint8)
    zeros = generator.integers(lowest_zero, 16, (groups, rows), np.uint8)
    scales = (size * generator.uniform(0.01, 0.02, (groups, rows))).astype(np.float16)
    return codes, zeros, scales


def dequantize(codes, zeros, scales, group_of):
    steps = codes.astype(np.float64) - zeros.astype(np.float64)[group_of].T
    return steps * scales.astype(np.float64)[group_of].T


def pack_nibbles(codes, order=IN_ORDER):
    """Pack each eight numbers of a row into an int32; nibble k, from the lowest, holds the one at order[k]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for nibble, place in enumerate(order):
        words |= codes[:, place::8].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def mxfp4(generator, experts, rows, cols, size):
    """Return the tensors of all experts of a layer by the ends of their names, and what they stand for."""
    blocks = generator.integers(0, 256, (experts, rows, cols // 32, 16), np.uint8)
    scales = generator.integers(110, 125, (experts, rows, cols // 32)).astype(np.uint8) + np.uint8(math.log2(size))
    return {"_blocks": blocks, "_scales": scales}, mxfp4_values(blocks, scales)


def mxfp4_values(blocks, scales):
    values = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    return values.transpose(1, 2).double().numpy()  # they come as [experts, in, out]


# Models around them


def decoys(layers, rows):
    """Return tensors of other kinds, larger than any down projection."""
    tensors = {"model.embed_tokens.weight": np.full((16, rows), 90_000, DTYPES["BF16"])}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.full(rows, 90_000, DTYPES["BF16"])
    return tensors


def linears(encode, quantization, *, dtype, rows=200, cols=328, places=None, seed=0, unread=(), **more):
    """Return a model of one encoded down projection at each of the places, which are module names by place.

    `unread` names the ends of tensors that a scan needs not.
    """
    generator = np.random.default_rng(seed)
    places = places or {(layer, None): DENSE.format(layer) for layer in range(3)}
    tensors, downs, read = decoys(3, rows), {}, set()
    for place, module in places.items():
        for other in ("gate_proj", "up_proj"):
            stored, _ = encode(generator, cols, rows, 128)
            tensors |= {f"{module.replace('down_proj', other)}.{end}": tensor for end, tensor in stored.items()}
        stored, downs[place] = encode(generator, rows, cols, 1)
        named = {f"{module}.{end}": tensor for end, tensor in stored.items()}
        tensors |= named
        read |= {name for name in named if not name.endswith(unread)}
    return Model(tensors, quantization, downs, read, dtype, **more)


def fused_linears(encode, quantization, *, dtype, rows, cols, experts=3, layers=2, seed=0, unread=(), **more):
    """Return a model whose layers hold the down projections of all experts in one tensor each, [experts, ...]."""
    generator = np.random.default_rng(seed)
    tensors, downs, read = decoys(layers, rows), {}, set()
    for layer in range(layers):
        module = EXPERTS.format(layer)
        stored, values = zip(*(encode(generator, rows, cols, 1) for _ in range(experts)), strict=True)
        named = {f"{module}.{end}": np.stack([expert[end] for expert in stored]) for end in stored[0]}
        tensors |= named
        read |= {name for name in named if not name.endswith(unread)}
        downs |= {(layer, expert): values[expert] for expert in range(experts)}
    return Model(tensors, quantization, downs, read, dtype, **{"model_type": "qwen3_moe", **more})


def gpt_oss(*, rows=224, cols=352, experts=3, layers=2, seed=0):
    generator = np.random.default_rng(seed)
    tensors, downs, read = decoys(layers, rows), {}, set()
    for layer in range(layers):
        module = EXPERTS.format(layer)
        other, _ = mxfp4(generator, experts, 2 * cols, rows // 32 * 32, 128)
        tensors |= {module.replace("down", "gate_up") + end: tensor for end, tensor in other.items()}
        stored, values = mxfp4(generator, experts, rows, cols, 1)
        tensors |= {module + end: tensor for end, tensor in stored.items()}
        tensors[module + "_bias"] = np.full((experts, rows), 90_000, DTYPES["BF16"])
        read |= {module + end for end in stored}
        downs |= {(layer, expert): values[expert] for expert in range(experts)}
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return Model(tensors, quantization, downs, read, "MXFP4", "gpt_oss")


def fused_fp8(encode, quantization, *, rows=200, cols=328, experts=3, layers=2, seed=0):
    generator = np.random.default_rng(seed)
    tensors, downs, read = decoys(layers, rows), {}, set()
    for layer in range(layers):
        module = EXPERTS.format(layer)
        for name, *shape, size in [(module.replace("down", "gate_up"), 2 * cols, rows, 128), (module, rows, cols, 1)]:
            stored, values = zip(*(encode(generator, *shape, size) for _ in range(experts)), strict=True)
            tensors[name] = np.stack([expert["weight"] for expert in stored])
            tensors[name + "_scale_inv"] = np.stack([expert["weight_scale_inv"] for expert in stored])
        read |= {module, module + "_scale_inv"}
        downs |= {(layer, expert): values[expert] for expert in range(experts)}
    return Model(tensors, quantization, downs, read, "F8_E4M3", "qwen3_moe")


def write(folder, model, *, shards=1):
    config = {} if model.quantization is None else {"quantization_config": model.quantization}
    rows = next(iter(model.downs.values())).shape[0]
    write_tensors(folder, model.tensors, shards=shards)
    write_config(folder, model_type=model.model_type, hidden_size=rows, **config)


# What a scan of them must say


def expected_bytes(folder, names):
    """Return how many bytes the config, the index, the headers and these tensors are."""
    total = sum((folder / name).stat().st_size for name in ("config.json", INDEX) if (folder / name).exists())
    missing = set(names)
    for shard in folder.glob("*.safetensors"):
        total += header_bytes(shard)
        for name, (first, last) in tensor_ranges(shard).items():
            if name in missing:
                total += last - first + 1
                missing.remove(name)
    assert not missing
    return total


def open_folder(folder, *, block_bytes=None):
    source = FolderSource(folder)
    if block_bytes is not None:
        source.block_bytes = block_bytes
    checkpoint = Checkpoint(source)
    return checkpoint, down_projections(checkpoint)


def found(result):
    return [(o.layer, o.expert, o.row, o.col, o.value) for o in result.outliers]


def dense(folder):
    """Return the whole down projections, [rows, cols] float64, by (layer, expert)."""
    checkpoint, projections = open_folder(folder)
    found = {}
    for projection in projections:
        matrix, values = projection.matrix, np.full(projection.shape, np.nan)
        stored = values.T if matrix.transposed else values

        def use(_, tile, bits, *, matrix=matrix, stored=stored):
            lines, places = matrix.axes(tile)
            stored[lines, places] = matrix.encoding.decoded.decode(bits)

        stream(checkpoint.source, checkpoint.read_matrix(matrix, use))
        found[projection.layer, projection.expert] = values
    return found


def check(folder, model, *, block_bytes=None):
    """Compare a scan with what the model stands for, and return it."""
    checkpoint, projections = open_folder(folder, block_bytes=block_bytes)
    result = scan(checkpoint, projections, top=50)
    best = ranking(model.downs, 50)
    assert found(result) == best
    assert result.bytes_read == expected_bytes(folder, model.read)
    assert [(t.layer, t.expert) for t in result.tensors] == sorted(model.downs, key=place_key)
    for tensor in result.tensors:
        down = model.downs[tensor.layer, tensor.expert]
        finite = np.abs(down[np.isfinite(down)])
        assert (tensor.shape, tensor.dtype, tensor.nonfinite) == (down.shape, model.dtype, down.size - finite.size)
        assert tensor.mean_abs == pytest.approx(finite.mean(), rel=1e-6)
        assert tensor.std == pytest.approx(finite.std(), rel=1e-6)
        assert tensor.max_abs == pytest.approx(finite.max(), rel=1e-6)
    check_coordinates(checkpoint, projections, model, best)
    return result


def check_coordinates(checkpoint, projections, model, best):
    """Read and rank some of the best weights, the corners and others on their own."""
    generator = np.random.default_rng(1)
    wanted = [Coordinate(*entry[:4]) for entry in best[::7]]
    for place, down in model.downs.items():
        rows, cols = down.shape
        corners = [(0, 0), (0, cols - 1), (rows - 1, 0), (rows - 1, cols - 1)]
        others = np.stack([generator.integers(0, rows, 3), generator.integers(0, cols, 3)], axis=1).tolist()
        wanted += [Coordinate(*place, row, col) for row, col in [*corners, *others]]
    values = {c: float(model.downs[c.layer, c.expert][c.row, c.col]) for c in wanted}
    read = read_weights(checkpoint, projections, wanted)
    assert list(read) == list(values)
    np.testing.assert_array_equal(list(read.values()), list(values.values()))
    finite = [c for c, value in values.items() if math.isfinite(value)][:12]
    ranked = {place: magnitudes(down) for place, down in model.downs.items()}
    assert static_ranks(checkpoint, projections, finite) == {c: rank_of(ranked, c) for c in finite}


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FP8_PER_TENSOR = {"quant_method": "fp8", "weight_block_size": None}
MODELOPT_FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}
COMPRESSED_FP8 = {"quant_method": "compressed-tensors", "format": "float-quantized"}
FBGEMM_FP8 = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
GPTQ_V1 = {**GPTQ, "checkpoint_format": "gptq"}
GPTQ_V2 = {**GPTQ, "checkpoint_format": "gptq_v2", "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}

ONE_SCALE = {"scale": "one", "name": "weight_scale"}
SCALAR = {"scale": "scalar", "name": "weight_scale"}
ROW_SCALES = {"scale": "rows", "name": "weight_scale"}
DEEPSEEK = {(0, None): DENSE.format(0)} | {
    (layer, expert): EXPERT.format(layer, expert) for layer in (1, 2) for expert in (0, 1, 10, 2)
}
E4M3, E5M2 = {"dtype": "F8_E4M3"}, {"dtype": "F8_E5M2"}
GPTQ_4BIT = {"dtype": "GPTQ-4bit", "rows": 200, "cols": 352}
AWQ_4BIT = {"dtype": "AWQ-4bit", "rows": 192, "cols": 320}

MODELS = {
    "fp8, blocks": lambda: linears(fp8(), FP8, **E4M3),
    "fp8, blocks and no config": lambda: linears(fp8(), None, **E4M3),
    "fp8, blocks of a multiple": lambda: linears(fp8(), FP8, **E4M3, rows=256, cols=384),
    "fp8, one block": lambda: linears(fp8(), FP8, **E4M3, rows=40, cols=72),
    "fp8, blocks of 64 x 32": lambda: linears(fp8(block=(64, 32)), {**FP8, "weight_block_size": [64, 32]}, **E4M3),
    "fp8, blocks of 1 x 32": lambda: linears(fp8(block=(1, 32)), {**FP8, "weight_block_size": [1, 32]}, **E4M3),
    "fp8, blocks, bf16 scales": lambda: linears(fp8(scale_dtype="BF16"), FP8, **E4M3),
    "fp8, blocks, f16 scales": lambda: linears(fp8(scale_dtype="F16"), FP8, **E4M3),
    "fp8, blocks, e8m0 scales": lambda: linears(fp8(scale_dtype="F8_E8M0"), {**FP8, "scale_fmt": "ue8m0"}, **E4M3),
    "fp8, blocks in weight_scale": lambda: linears(fp8(name="weight_scale"), FP8, **E4M3),
    "fp8, weight_scale_inv of the tensor": lambda: linears(fp8(scale="scalar"), FP8_PER_TENSOR, **E4M3),
    "fp8, weight_scale_inv of the tensor, 1-D": lambda: linears(fp8(scale="one"), FP8_PER_TENSOR, **E4M3),
    "fp8, scale of the tensor": lambda: linears(fp8(**SCALAR), MODELOPT_FP8, **E4M3),
    "fp8, scale of the tensor, 1-D": lambda: linears(fp8(**ONE_SCALE, scale_dtype="BF16"), COMPRESSED_FP8, **E4M3),
    "fp8, scales of rows": lambda: linears(fp8(**ROW_SCALES), FBGEMM_FP8, **E4M3),
    "fp8, scales of rows, bf16": lambda: linears(fp8(**ROW_SCALES, scale_dtype="BF16"), COMPRESSED_FP8, **E4M3),
    "fp8, scales of rows, 1-D": lambda: linears(fp8(scale="flat rows", name="weight_scale"), COMPRESSED_FP8, **E4M3),
    "fp8 e5m2, blocks": lambda: linears(fp8("F8_E5M2"), FP8, **E5M2),
    "fp8 e5m2, scale of the tensor": lambda: linears(fp8("F8_E5M2", **SCALAR), FP8, **E5M2),
    "fp8 e5m2, scales of rows": lambda: linears(fp8("F8_E5M2", **ROW_SCALES, scale_dtype="F16"), FP8, **E5M2),
    "fp8 experts": lambda: linears(fp8(), FP8, **E4M3, places=DEEPSEEK, model_type="deepseek_v3"),
    "fp8 experts, e8m0": lambda: linears(fp8(scale_dtype="F8_E8M0"), FP8, **E4M3, places=DEEPSEEK),
    "fp8 fused experts": lambda: fused_fp8(fp8(), FP8),
    "fp8 fused experts, bf16 scales": lambda: fused_fp8(fp8(scale_dtype="BF16"), FP8, rows=128, cols=256),
    "fp8 fused experts, e8m0": lambda: fused_fp8(fp8(scale_dtype="F8_E8M0"), FP8),
    "mxfp4": gpt_oss,
    "mxfp4, one expert": lambda: gpt_oss(experts=1, layers=3),
    "mxfp4, one block a row": lambda: gpt_oss(rows=96, cols=32, experts=5),
    "gptq": lambda: linears(gptq(), GPTQ_V1, **GPTQ_4BIT),
    "gptq, no checkpoint_format": lambda: linears(gptq(), GPTQ, **GPTQ_4BIT),
    "gptq, no g_idx": lambda: linears(gptq(g_idx=False), GPTQ_V1, **GPTQ_4BIT),
    "gptq, act order": lambda: linears(gptq(desc_act=True), {**GPTQ_V1, "desc_act": True}, **GPTQ_4BIT),
    "gptq, groups of 32, act order": lambda: linears(
        gptq(32, desc_act=True), {**GPTQ_V1, "group_size": 32, "desc_act": True}, **GPTQ_4BIT
    ),
    "gptq, one group": lambda: linears(gptq(-1), {**GPTQ_V1, "group_size": -1}, **GPTQ_4BIT),
    "gptq, one group, no g_idx": lambda: linears(gptq(-1, g_idx=False), {**GPTQ_V1, "group_size": -1}, **GPTQ_4BIT),
    "gptq v2": lambda: linears(gptq(offset=0), GPTQ_V2, **GPTQ_4BIT),
    "gptq v2, act order": lambda: linears(gptq(desc_act=True, offset=0), {**GPTQ_V2, "desc_act": True}, **GPTQ_4BIT),
    "gptq experts": lambda: linears(gptq(), GPTQ_V1, **GPTQ_4BIT, places=DEEPSEEK, model_type="qwen2_moe"),
    "awq": lambda: linears(awq(), AWQ, **AWQ_4BIT),
    "awq, GEMM": lambda: linears(awq(), {**AWQ, "version": "GEMM"}, **AWQ_4BIT),
    "awq, no version": lambda: linears(awq(), {key: AWQ[key] for key in AWQ if key != "version"}, **AWQ_4BIT),
    "awq, groups of 32": lambda: linears(awq(32), {**AWQ, "group_size": 32}, **AWQ_4BIT),
    "awq, one group": lambda: linears(awq(-1), {**AWQ, "group_size": -1}, **AWQ_4BIT),
    "awq experts": lambda: linears(awq(), AWQ, **AWQ_4BIT, places=DEEPSEEK, model_type="qwen3_moe"),
}
