"""Quantized down projections rank by the values they stand for: FP8, MXFP4, GPTQ and AWQ.

The checkpoints here are packed by this file alone, and what they stand for is computed from the codes that were
packed, or by torch and transformers.
"""

import json
import math
import subprocess
import sys
import tracemalloc
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import DTYPES, LLAMA_DOWN, header_bytes, random_downs, tensor_ranges, write_config, write_tensors
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from analyzer.checkpoint import INDEX, Checkpoint
from analyzer.errors import AnalyzerError, ArchitectureError, CheckpointError
from analyzer.records import Coordinate
from analyzer.scan import down_projections, read_weights, scan, static_ranks
from analyzer.source import FolderSource

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

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


def linears(encode, quantization, *, dtype, rows=200, cols=328, places=None, seed=0, **more):
    """Return a model of one encoded down projection at each of the places, which are module names by place."""
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
        read |= set(named)
    return Model(tensors, quantization, downs, read, dtype, **more)


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


def magnitudes(down):
    """Return what the weights are ranked by: -1 for those that are not."""
    return np.where(np.isfinite(down), np.abs(down), -1)


def place_key(place):
    layer, expert = place
    return layer, -1 if expert is None else expert


def ranking(downs, top):
    """Return the largest weights of all, in order: by magnitude, then by layer, expert, row and column."""
    ranked = {place: magnitudes(down) for place, down in downs.items()}
    lowest = np.partition(np.concatenate([down.ravel() for down in ranked.values()]), -top)[-top]
    found = [
        (*place, int(row), int(col), float(downs[place][row, col]))
        for place, down in ranked.items()
        for row, col in np.argwhere(down >= lowest)
    ]
    return sorted(found, key=lambda entry: (-abs(entry[4]), place_key(entry[:2]), entry[2:4]))[:top]


def rank_of(ranked, weight):
    """Return the rank of a weight among these magnitudes by place."""
    own = weight.layer, weight.expert
    magnitude = ranked[own][weight.row, weight.col]
    before = 0
    for place, others in ranked.items():
        before += np.count_nonzero(others > magnitude)
        if place == own:
            before += np.count_nonzero(others.ravel()[: weight.row * others.shape[1] + weight.col] == magnitude)
        elif place_key(place) < place_key(own):
            before += np.count_nonzero(others == magnitude)
    return 1 + before


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


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)


@pytest.mark.parametrize("name", ["fp8, blocks", "fp8 fused experts", "mxfp4", "gptq, act order", "awq"])
def test_scales_in_other_shards(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model, shards=3)
    check(tmp_path, model)


ONE_LAYER = {"places": {(0, None): DENSE.format(0)}}
LARGE_MODELS = {
    "fp8, blocks": lambda: linears(fp8(), FP8, **E4M3, rows=1000, cols=3400, **ONE_LAYER),
    "fp8, scales of rows": lambda: linears(fp8(**ROW_SCALES), FP8, **E4M3, rows=1000, cols=3400, **ONE_LAYER),
    "fp8 fused experts": lambda: fused_fp8(fp8(), FP8, rows=800, cols=1500, experts=2, layers=1),
    "mxfp4": lambda: gpt_oss(rows=1300, cols=3232, experts=2, layers=1),
    "gptq": lambda: linears(gptq(), GPTQ_V1, dtype="GPTQ-4bit", rows=1000, cols=4640, **ONE_LAYER),
    "gptq, act order": lambda: linears(
        gptq(desc_act=True), {**GPTQ_V1, "desc_act": True}, dtype="GPTQ-4bit", rows=1000, cols=4640, **ONE_LAYER
    ),
    "awq": lambda: linears(awq(), AWQ, dtype="AWQ-4bit", rows=960, cols=4672, **ONE_LAYER),
}


@pytest.mark.parametrize("name", LARGE_MODELS)
def test_blocks_of_the_file_change_nothing(tmp_path, name):
    model = LARGE_MODELS[name]()
    # The others are not read, and would only have to be written.
    model = model._replace(tensors={name: model.tensors[name] for name in model.read})
    write(tmp_path, model)
    whole = check(tmp_path, model)
    small = scan(*open_folder(tmp_path, block_bytes=4096), top=50)
    assert found(small) == found(whole)
    assert small.bytes_read == whole.bytes_read
    for one, other in zip(small.tensors, whole.tensors, strict=True):
        assert (one.max_abs, one.nonfinite) == (other.max_abs, other.nonfinite)
        assert (one.mean_abs, one.std) == pytest.approx((other.mean_abs, other.std), rel=1e-9)


@pytest.mark.parametrize("block_bytes", [64, 1000, 4096])
@pytest.mark.parametrize("name", ["fp8, blocks", "fp8 fused experts", "mxfp4", "gptq, act order", "awq"])
def test_blocks_of_any_size_change_nothing(tmp_path, name, block_bytes):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model, block_bytes=block_bytes)


@pytest.mark.parametrize("name", ["fp8, blocks", "mxfp4", "gptq", "awq"])
def test_only_the_layers_asked_for_are_read(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    checkpoint = Checkpoint(FolderSource(tmp_path))
    result = scan(checkpoint, down_projections(checkpoint, [range(1, 2)]), top=50)
    assert found(result) == ranking({place: down for place, down in model.downs.items() if place[0] == 1}, 50)
    assert result.bytes_read == expected_bytes(tmp_path, {name for name in model.read if "layers.1." in name})


@pytest.mark.parametrize("name", ["fp8, blocks", "fp8 fused experts", "mxfp4", "gptq", "awq"])
def test_weights_that_the_tensor_lacks(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    checkpoint, projections = open_folder(tmp_path)
    place, down = next(iter(model.downs.items()))
    for row, col in [(down.shape[0], 0), (0, down.shape[1])]:
        with pytest.raises(ArchitectureError, match="has no weight"):
            read_weights(checkpoint, projections, [Coordinate(*place, row, col)])


def test_layers_of_several_encodings(tmp_path):
    """The first layers, say, are often left as they were, and config.json names one method all the same."""
    encoded = linears(fp8(), FP8, dtype="", places={(1, None): DENSE.format(1)})
    plain = random_downs(layers=1, hidden=200, intermediate=328)[0]
    rows = linears(fp8("F8_E5M2", **ROW_SCALES), FP8, dtype="", places={(2, None): DENSE.format(2)}, seed=1)
    downs = {(0, None): plain.astype(np.float64), **encoded.downs, **rows.downs}
    tensors = {**encoded.tensors, **rows.tensors, LLAMA_DOWN.format(0): plain}
    model = Model(tensors, FP8, downs, {LLAMA_DOWN.format(0)} | encoded.read | rows.read, "")
    write(tmp_path, model)
    checkpoint, projections = open_folder(tmp_path)
    result = scan(checkpoint, projections, top=50)
    best = ranking(downs, 50)
    assert found(result) == best
    assert [t.dtype for t in result.tensors] == ["BF16", "F8_E4M3", "F8_E5M2"]
    assert result.bytes_read == expected_bytes(tmp_path, model.read)
    check_coordinates(checkpoint, projections, model, best)


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [("F8_E4M3", [0x7F, 0xFF]), ("F8_E5M2", [0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF])],
)
def test_codes_that_are_no_number(tmp_path, dtype, codes):
    weight = np.full((40, 72), 0x7E if dtype == "F8_E4M3" else 0x7B, np.uint8)  # the largest number
    weight[5, : len(codes)] = codes
    stored, values = float8(weight, dtype)
    tensors = {"weight": stored, "weight_scale": np.array(0.5, np.float32)}
    model = linears(lambda *_: (tensors, values.astype(np.float64) / 2), FP8, dtype=dtype, rows=40, cols=72)
    write(tmp_path, model)
    result = check(tmp_path, model)
    assert [t.nonfinite for t in result.tensors] == [len(codes)] * 3
    checkpoint, projections = open_folder(tmp_path)
    wanted = [Coordinate(0, None, 5, col) for col in range(len(codes))]
    assert not any(math.isfinite(value) for value in read_weights(checkpoint, projections, wanted).values())


def test_e8m0_scales_that_are_no_number(tmp_path):
    generator = np.random.default_rng(0)
    weight, values = float8(generator.integers(0, 0x7F, (200, 328), np.uint8), "F8_E4M3")
    exponents = np.full((2, 3), 120, np.uint8)
    exponents[1, 2] = 255
    factors, _ = float8(exponents, "F8_E8M0")
    dense = values.astype(np.float64) * 2.0**-7
    dense[128:, 256:] = np.nan
    tensors = {"weight": weight, "weight_scale_inv": factors}
    model = linears(lambda *_: (tensors, dense), FP8, **E4M3)
    write(tmp_path, model)
    assert [t.nonfinite for t in check(tmp_path, model).tensors] == [72 * 72] * 3


def test_mxfp4_scales_at_both_ends(tmp_path):
    model = gpt_oss(experts=2, layers=1)
    blocks, scales = (model.tensors[EXPERTS.format(0) + end] for end in ("_blocks", "_scales"))
    scales[0, 3, 4] = 0  # float32 has such numbers, but not in full precision
    scales[1, 7, 8] = 250
    values = mxfp4_values(blocks, scales)
    model = model._replace(downs={(0, 0): values[0], (0, 1): values[1]})
    write(tmp_path, model)
    checkpoint, projections = open_folder(tmp_path)
    assert found(scan(checkpoint, projections, top=50)) == ranking(model.downs, 50)
    wanted = [Coordinate(0, 0, 3, col) for col in range(128, 160)]
    assert list(read_weights(checkpoint, projections, wanted).values()) == values[0, 3, 128:160].tolist()
    assert np.count_nonzero(values[0, 3, 128:160]) > 16


def test_gptq_zero_points_that_borrow(tmp_path):
    """GPTQModel takes 1 from each nibble by taking 0x11111111 from the word, and adds it when it reads.

    A zero point of 0 then borrows from the next nibble, which adding 1 to each nibble alone would not give back.
    """
    encode = gptq(g_idx=False, offset=0)

    def borrow(*arguments):
        stored, dense = encode(*arguments)
        words = stored["qzeros"].view(np.uint32) - np.uint32(0x11111111)
        return {**stored, "qzeros": words.view(np.int32)}, dense

    model = linears(borrow, {**GPTQ_V1, "sym": False}, **GPTQ_4BIT)
    write(tmp_path, model)
    check(tmp_path, model)


# The packers themselves


def test_what_an_int32_holds():
    codes = np.arange(8, dtype=np.uint8)[None]
    assert pack_nibbles(codes)[0, 0] == 0x76543210
    assert pack_nibbles(codes, AWQ_ORDER)[0, 0] == 0x75316420
    assert pack_nibbles(codes + np.uint8(8))[0, 0] == 0xFEDCBA98 - (1 << 32)


def nibble(word, index):
    return int(word) >> 4 * index & 15  # Python's shift of a negative number keeps its sign: the mask drops it


@pytest.mark.parametrize(
    ("encode", "offset"),
    [(gptq(32), 1), (gptq(32, desc_act=True), 1), (gptq(32, offset=0), 0), (gptq(-1), 1)],
)
def test_gptq_weight_by_weight(encode, offset):
    stored, dense = encode(np.random.default_rng(0), 16, 72, 1)
    for (row, col), value in np.ndenumerate(dense):
        group = stored["g_idx"][col]
        zero = nibble(stored["qzeros"][group, row // 8], row % 8) + offset
        step = nibble(stored["qweight"][col // 8, row], col % 8) - zero
        assert value == float(stored["scales"][group, row]) * step


def test_awq_weight_by_weight():
    stored, dense = awq(32)(np.random.default_rng(0), 16, 64, 1)
    for (row, col), value in np.ndenumerate(dense):
        index = AWQ_ORDER.index(row % 8)
        zero = nibble(stored["qzeros"][col // 32, row // 8], index)
        step = nibble(stored["qweight"][col, row // 8], index) - zero
        assert value == float(stored["scales"][col // 32, row]) * step


def test_mxfp4_weight_by_weight():
    stored, dense = mxfp4(np.random.default_rng(0), 2, 5, 64, 1)
    assert dense.shape == (2, 5, 64)
    for (expert, row, col), value in np.ndenumerate(dense):
        byte = int(stored["_blocks"][expert, row, col // 32, col % 32 // 2])
        exponent = int(stored["_scales"][expert, row, col // 32]) - 127
        assert value == E2M1[byte >> 4 if col % 2 else byte & 15] * 2.0**exponent


@pytest.mark.parametrize("scale_dtype", ["F32", "F8_E8M0"])
def test_fp8_weight_by_weight(scale_dtype):
    stored, dense = fp8(scale_dtype=scale_dtype)(np.random.default_rng(0), 130, 140, 1)
    weights, scales = (stored[end].astype(np.float32) for end in ("weight", "weight_scale_inv"))
    for row, col in [(0, 0), (127, 127), (127, 128), (128, 127), (128, 128), (129, 139)]:
        assert dense[row, col] == weights[row, col] * scales[row // 128, col // 128]


# What cannot be read


def tiny(encode, quantization):
    return linears(encode, quantization, dtype="", rows=64, cols=192, places={(0, None): DENSE.format(0)})


def tiny_fused():
    return fused_fp8(fp8(), FP8, rows=200, cols=300, experts=2, layers=1)


def tiny_mxfp4():
    return gpt_oss(rows=64, cols=96, experts=2, layers=1)


def of_shape(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def g_idx_with(group):
    groups = np.arange(192, dtype=np.int32) // 128
    groups[77] = group
    return groups


# Which model, the ends of tensor names that are changed (null: removed), and what is changed in the config.
BROKEN = {
    "fp8, no scale": (lambda: tiny(fp8(), FP8), {".weight_scale_inv": None}, {}),
    "fp8, no scale and no config": (lambda: tiny(fp8(), None), {".weight_scale_inv": None}, {}),
    "fp8 e5m2, no scale": (lambda: tiny(fp8("F8_E5M2"), FP8), {".weight_scale_inv": None}, {}),
    "fp8, too many blocks": (lambda: tiny(fp8(), FP8), {".weight_scale_inv": of_shape(1, 3)}, {}),
    "fp8, blocks the other way round": (lambda: tiny(fp8(), FP8), {".weight_scale_inv": of_shape(2, 1)}, {}),
    "fp8, blocks of another size": (lambda: tiny(fp8(), FP8), {}, {"weight_block_size": [32, 32]}),
    "fp8, scales of columns": (lambda: tiny(fp8(**SCALAR), FP8), {".weight_scale": of_shape(192)}, {}),
    "fp8, too many scales of rows": (lambda: tiny(fp8(**ROW_SCALES), FP8), {".weight_scale": of_shape(65, 1)}, {}),
    "fp8, scales in three dimensions": (lambda: tiny(fp8(), FP8), {".weight_scale_inv": of_shape(1, 1, 2)}, {}),
    "fp8, no scale in the tensor": (lambda: tiny(fp8(), FP8), {".weight_scale_inv": of_shape(0)}, {}),
    "fp8, integer scales": (lambda: tiny(fp8(), FP8), {".weight_scale_inv": of_shape(1, 2, dtype=np.int32)}, {}),
    "fp8, integer scale": (lambda: tiny(fp8(**SCALAR), FP8), {".weight_scale": of_shape(dtype=np.int64)}, {}),
    "fused fp8, no scales": (tiny_fused, {"_scale_inv": None}, {}),
    "fused fp8, scales of one expert": (tiny_fused, {"_scale_inv": of_shape(2, 3)}, {}),
    "fused fp8, scales of three experts": (tiny_fused, {"_scale_inv": of_shape(3, 2, 3)}, {}),
    "fused fp8, too many blocks": (tiny_fused, {"_scale_inv": of_shape(2, 3, 3)}, {}),
    "fused fp8, integer scales": (tiny_fused, {"_scale_inv": of_shape(2, 2, 3, dtype=np.int32)}, {}),
    "mxfp4, no scales": (tiny_mxfp4, {"_scales": None}, {}),
    "mxfp4, scales of other rows": (tiny_mxfp4, {"_scales": of_shape(2, 65, 3, dtype=np.uint8)}, {}),
    "mxfp4, scales of other blocks": (tiny_mxfp4, {"_scales": of_shape(2, 64, 4, dtype=np.uint8)}, {}),
    "mxfp4, scales of other experts": (tiny_mxfp4, {"_scales": of_shape(3, 64, 3, dtype=np.uint8)}, {}),
    "mxfp4, scales in floats": (tiny_mxfp4, {"_scales": of_shape(2, 64, 3)}, {}),
    "mxfp4, blocks of 8 bytes": (tiny_mxfp4, {"_blocks": of_shape(2, 64, 3, 8, dtype=np.uint8)}, {}),
    "mxfp4, blocks in three dimensions": (tiny_mxfp4, {"_blocks": of_shape(2, 64, 48, dtype=np.uint8)}, {}),
    "mxfp4, blocks of int32": (tiny_mxfp4, {"_blocks": of_shape(2, 64, 3, 16, dtype=np.int32)}, {}),
    "gptq, no scales": (lambda: tiny(gptq(), GPTQ), {".scales": None}, {}),
    "gptq, no zeros": (lambda: tiny(gptq(), GPTQ), {".qzeros": None}, {}),
    "gptq, qweight alone": (lambda: tiny(gptq(), GPTQ), {".scales": None, ".qzeros": None, ".g_idx": None}, {}),
    "gptq, scales of other rows": (lambda: tiny(gptq(), GPTQ), {".scales": of_shape(2, 72, dtype=np.float16)}, {}),
    "gptq, scales of other groups": (lambda: tiny(gptq(), GPTQ), {".scales": of_shape(3, 64, dtype=np.float16)}, {}),
    "gptq, scales in one dimension": (lambda: tiny(gptq(), GPTQ), {".scales": of_shape(128, dtype=np.float16)}, {}),
    "gptq, zeros of other rows": (lambda: tiny(gptq(), GPTQ), {".qzeros": of_shape(2, 9, dtype=np.int32)}, {}),
    "gptq, zeros of other groups": (lambda: tiny(gptq(), GPTQ), {".qzeros": of_shape(1, 8, dtype=np.int32)}, {}),
    "gptq, zeros not packed": (lambda: tiny(gptq(), GPTQ), {".qzeros": of_shape(2, 64, dtype=np.int32)}, {}),
    "gptq, zeros in floats": (lambda: tiny(gptq(), GPTQ), {".qzeros": of_shape(2, 8)}, {}),
    "gptq, weights in floats": (lambda: tiny(gptq(), GPTQ), {".qweight": of_shape(24, 64)}, {}),
    "gptq, weights in three dimensions": (
        lambda: tiny(gptq(), GPTQ),
        {".qweight": of_shape(1, 24, 64, dtype=np.int32)},
        {},
    ),
    "gptq, integer scales": (lambda: tiny(gptq(), GPTQ), {".scales": of_shape(2, 64, dtype=np.int32)}, {}),
    "gptq, g_idx too long": (lambda: tiny(gptq(), GPTQ), {".g_idx": of_shape(193, dtype=np.int32)}, {}),
    "gptq, g_idx in floats": (lambda: tiny(gptq(), GPTQ), {".g_idx": of_shape(192)}, {}),
    "gptq, g_idx past the groups": (lambda: tiny(gptq(), GPTQ), {".g_idx": g_idx_with(2)}, {}),
    "gptq, g_idx far past the groups": (lambda: tiny(gptq(), GPTQ), {".g_idx": g_idx_with(2**31 - 1)}, {}),
    "gptq, g_idx below 0": (lambda: tiny(gptq(), GPTQ), {".g_idx": g_idx_with(-1)}, {}),
    "gptq, 8 bits": (lambda: tiny(gptq(), GPTQ), {}, {"bits": 8}),
    "gptq, 3 bits": (lambda: tiny(gptq(), GPTQ), {}, {"bits": 3}),
    "awq, no scales": (lambda: tiny(awq(), AWQ), {".scales": None}, {}),
    "awq, no zeros": (lambda: tiny(awq(), AWQ), {".qzeros": None}, {}),
    "awq, scales of other rows": (lambda: tiny(awq(), AWQ), {".scales": of_shape(3, 72, dtype=np.float16)}, {}),
    "awq, scales of other groups": (lambda: tiny(awq(), AWQ), {".scales": of_shape(4, 64, dtype=np.float16)}, {}),
    "awq, zeros of other rows": (lambda: tiny(awq(), AWQ), {".qzeros": of_shape(3, 9, dtype=np.int32)}, {}),
    "awq, zeros of other groups": (lambda: tiny(awq(), AWQ), {".qzeros": of_shape(2, 8, dtype=np.int32)}, {}),
    "awq, packed as gptq": (lambda: tiny(awq(), AWQ), {".qweight": of_shape(24, 64, dtype=np.int32)}, {}),
    "awq, 8 bits": (lambda: tiny(awq(), AWQ), {}, {"bits": 8}),
    "awq, 3 bits": (lambda: tiny(awq(), AWQ), {}, {"bits": 3}),
    "awq, gemv": (lambda: tiny(awq(), AWQ), {}, {"version": "gemv"}),
    "awq, gemv_fast": (lambda: tiny(awq(), AWQ), {}, {"version": "gemv_fast"}),
}


def refusal(folder, errors=AnalyzerError):
    """Return the one line that a scan fails with."""
    with pytest.raises(errors) as caught:
        scan(*open_folder(folder))
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tensors_are_named(tmp_path, name):
    build, changes, config = BROKEN[name]
    model = build()
    module = EXPERTS.format(0) if "experts" in next(iter(model.read)) else DENSE.format(0)
    for end, tensor in changes.items():
        assert model.tensors.pop(module + end) is not None
        if tensor is not None:
            model.tensors[module + end] = tensor
    if config:
        model = model._replace(quantization={**model.quantization, **config})
    write(tmp_path, model)
    # What is wrong with the groups' numbers shows in the data alone.
    errors = AnalyzerError if "g_idx" in name else (ArchitectureError, CheckpointError)
    assert module in refusal(tmp_path, errors)


NONSENSE = [None, 0, -3, 2**70, 0.5, "4", "x\x1b", True, [], [0, 0], [-1, 128], [128], ["128", 1], [2**70, 1], {}]


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        (lambda: tiny(fp8(), FP8), ["weight_block_size", "quant_method"]),
        (tiny_fused, ["weight_block_size", "quant_method"]),
        (tiny_mxfp4, ["quant_method"]),
        (lambda: tiny(gptq(), GPTQ), ["bits", "group_size", "checkpoint_format", "desc_act", "quant_method"]),
        (lambda: tiny(gptq(g_idx=False), GPTQ), ["group_size"]),
        (lambda: tiny(awq(), AWQ), ["bits", "group_size", "version", "zero_point", "quant_method"]),
    ],
    ids=["fp8", "fused fp8", "mxfp4", "gptq", "gptq, no g_idx", "awq"],
)
def test_nonsense_in_the_config_is_no_crash(tmp_path, build, keys):
    """Whether nonsense is refused or passed over, nothing but an error of the analyzer's own may come of it."""
    model = build()
    write(tmp_path, model)
    configs = [{**model.quantization, key: value} for key in keys for value in NONSENSE]
    for quantization in [*configs, *NONSENSE]:
        write_config(tmp_path, model_type=model.model_type, quantization_config=quantization)
        try:
            scan(*open_folder(tmp_path))
        except AnalyzerError as error:
            assert str(error).isprintable()


def u8(*shape):
    return of_shape(*shape, dtype=np.uint8)


def i8(*shape):
    return of_shape(*shape, dtype=np.int8)


def i32(*shape):
    return of_shape(*shape, dtype=np.int32)


def bf16(*shape):
    return of_shape(*shape, dtype=DTYPES["BF16"])


def f16(*shape):
    return of_shape(*shape, dtype=np.float16)


# What a module's tensors are called there, what config.json says, and the name that the refusal must have. The weights
# are 64 x 192.
REFUSED = {
    "bitsandbytes, 4 bits": (
        {
            "weight": u8(64 * 192 // 2, 1),
            "weight.absmax": u8(192),
            "weight.quant_map": of_shape(16),
            "weight.nested_absmax": of_shape(1),
            "weight.quant_state.bitsandbytes__nf4": u8(80),
        },
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes",
    ),
    "bitsandbytes, 8 bits": (
        {"weight": i8(64, 192), "SCB": of_shape(64), "weight_format": u8()},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "bitsandbytes",
    ),
    "compressed-tensors, packed": (
        {"weight_packed": i32(64, 24), "weight_scale": bf16(64, 2), "weight_shape": of_shape(2, dtype=np.int64)},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "pack-quantized",
    ),
    "compressed-tensors, integers": (
        {"weight": i8(64, 192), "weight_scale": bf16(64, 1)},
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        "int-quantized",
    ),
    "compressed-tensors, nvfp4": (
        {
            "weight_packed": u8(64, 96),
            "weight_scale": u8(64, 12).view(ml_dtypes.float8_e4m3fn),
            "weight_global_scale": of_shape(1),
        },
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        "nvfp4-pack-quantized",
    ),
    "modelopt, nvfp4": (
        {
            "weight": u8(64, 96),
            "weight_scale": u8(64, 12).view(ml_dtypes.float8_e4m3fn),
            "weight_scale_2": of_shape(),
            "input_scale": of_shape(),
        },
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "NVFP4",
    ),
    "hqq": (
        {"W_q": u8(32, 192), "scale": f16(192, 1), "zero": f16(192, 1), "nbits": of_shape(1)},
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        "hqq",
    ),
    "aqlm": (
        {"codes": i8(64, 24, 2), "codebooks": f16(2, 256, 1, 8), "scales": f16(64, 1, 1, 1)},
        {"quant_method": "aqlm", "in_group_size": 8, "nbits_per_codebook": 8, "num_codebooks": 2},
        "aqlm",
    ),
    "eetq": ({"weight": i8(192, 64), "weight_scales": f16(64)}, {"quant_method": "eetq", "weights": "int8"}, "eetq"),
    "quanto": (
        {"weight._data": i8(64, 192), "weight._scale": bf16(64, 1), "input_scale": bf16()},
        {"quant_method": "quanto", "weights": "int8"},
        "quanto",
    ),
    "torchao": (
        {"_weight_qdata": i8(64, 192), "_weight_scale": bf16(64, 1)},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        "torchao",
    ),
    "bitnet": ({"weight": u8(16, 192), "weight_scale": bf16(1)}, {"quant_method": "bitnet"}, "bitnet"),
    "vptq": (
        {"indices": i32(1, 24, 10), "centroids.weight": f16(1, 2048), "weight_scale": f16(192)},
        {"quant_method": "vptq"},
        "vptq",
    ),
    "auto-round": (
        {"qweight": i32(24, 64), "qzeros": i32(2, 8), "scales": f16(2, 64)},
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"},
        "auto-round",
    ),
    "marlin": ({"B": i32(12, 128), "s": f16(2, 64)}, {"quant_method": "marlin", "bits": 4}, "marlin"),
    "something new": ({"weight": u8(64, 96), "scale": of_shape(64)}, {"quant_method": "newquant"}, "newquant"),
    "something hostile": ({"weight": i8(64, 192)}, {"quant_method": "new\x1b[2J\nquant"}, "new\\x1b[2J\\nquant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_encodings_are_refused_by_their_names(tmp_path, name):
    stored, quantization, said = REFUSED[name]
    tensors = decoys(1, 64)
    for module in ("down_proj", "up_proj"):
        tensors |= {f"model.layers.0.mlp.{module}.{end}": tensor for end, tensor in stored.items()}
    write_tensors(tmp_path, tensors)
    write_config(tmp_path, model_type="llama", hidden_size=64, quantization_config=quantization)
    assert said in refusal(tmp_path, (ArchitectureError, CheckpointError))


@pytest.mark.parametrize(
    "quantization",
    [quantization for _, quantization, _ in REFUSED.values()] + [FP8, GPTQ, GPTQ_V2, {**GPTQ, "bits": 8}, AWQ],
    ids=lambda quantization: repr(quantization["quant_method"]),
)
def test_plain_down_projections_of_a_quantized_model(tmp_path, quantization):
    downs = dict(enumerate(random_downs(layers=2, hidden=64, intermediate=192)))
    tensors = {LLAMA_DOWN.format(layer): down for layer, down in downs.items()} | decoys(2, 64)
    for layer in downs:
        up = f"model.layers.{layer}.mlp.up_proj"
        tensors |= {f"{up}.weight": i8(192, 64), f"{up}.weight_scale": bf16(192, 1), f"{up}.qweight": i32(8, 192)}
    write_tensors(tmp_path, tensors)
    excluded = {"modules_to_not_convert": ["down_proj"], "ignore": ["re:.*down_proj"]}
    write_config(tmp_path, model_type="llama", hidden_size=64, quantization_config={**quantization, **excluded})
    values = {(layer, None): down.astype(np.float64) for layer, down in downs.items()}
    check(tmp_path, Model(tensors, quantization, values, set(map(LLAMA_DOWN.format, downs)), "BF16"))


# What it costs


def write_zeros(folder, tensors, **config):
    """Write tensors, given as dtype and shape, that are all zeros: a sparse file, so that the disk does not matter."""
    sizes = {"F8_E4M3": 1, "U8": 1, "I32": 4, "F16": 2, "F32": 4}
    header, stop = {}, 0
    for name, (dtype, *shape) in tensors.items():
        start, stop = stop, stop + sizes[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + stop)
    write_config(folder, **config)


@pytest.mark.parametrize(
    ("module", "tensors", "quantization"),
    [
        (DENSE, {".weight": ("F8_E4M3", 4096, 4096), ".weight_scale_inv": ("F32", 32, 32)}, FP8),
        (EXPERTS, {"_blocks": ("U8", 1, 4096, 128, 16), "_scales": ("U8", 1, 4096, 128)}, {"quant_method": "mxfp4"}),
        (
            DENSE,
            {
                ".qweight": ("I32", 512, 4096),
                ".qzeros": ("I32", 32, 512),
                ".scales": ("F16", 32, 4096),
                ".g_idx": ("I32", 4096),
            },
            GPTQ,
        ),
        (
            DENSE,
            {".qweight": ("I32", 4096, 512), ".qzeros": ("I32", 64, 512), ".scales": ("F16", 64, 4096)},
            AWQ,
        ),
    ],
    ids=["fp8", "mxfp4", "gptq", "awq"],
)
def test_memory_does_not_grow_with_the_tensor(tmp_path, module, tensors, quantization):
    # All equal is the worst for the ranking: every weight ties.
    named = {module.format(0) + end: tensor for end, tensor in tensors.items()}
    write_zeros(tmp_path, named, model_type="llama", hidden_size=4096, quantization_config=quantization)
    checkpoint, projections = open_folder(tmp_path)
    checkpoint.source.readers = 1  # each has buffers of its own, and machines differ in how many there are
    tracemalloc.start()
    result = scan(checkpoint, projections)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expert = 0 if module == EXPERTS else None
    assert found(result) == [(0, expert, 0, col, 0.0) for col in range(20)]
    assert peak < 60 << 20  # of 64 MiB as float32


def test_decoding_imports_no_torch(tmp_path):
    names = ["fp8, blocks", "fp8, blocks, e8m0 scales", "fp8 fused experts", "mxfp4", "gptq, act order", "awq"]
    for number, name in enumerate(names):
        write(tmp_path / str(number), MODELS[name]())
    program = (
        "import sys; from analyzer.checkpoint import Checkpoint; from analyzer.source import open_source\n"
        "from analyzer.scan import scan, down_projections\n"
        "for folder in sys.argv[1:]:\n"
        "    checkpoint = Checkpoint(open_source(folder)); scan(checkpoint, down_projections(checkpoint))\n"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / str(number)) for number in range(len(names)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
