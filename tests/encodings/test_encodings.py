"""Quantized down projections rank by the values they stand for: FP8, MXFP4, GPTQ and AWQ.

The checkpoints are packed by quantized.py alone, and what they stand for is computed from the codes that were
packed, or by torch and transformers.
"""

import json
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from checkpoints import LLAMA_DOWN, random_downs, write_config
from quantized import (
    AWQ,
    AWQ_ORDER,
    DENSE,
    E2M1,
    E4M3,
    EXPERTS,
    FP8,
    GPTQ,
    GPTQ_4BIT,
    GPTQ_V1,
    MODELS,
    ROW_SCALES,
    Model,
    awq,
    check,
    check_coordinates,
    dense,
    expected_bytes,
    float8,
    found,
    fp8,
    fused_fp8,
    gpt_oss,
    gptq,
    linears,
    mxfp4,
    mxfp4_values,
    open_folder,
    pack_nibbles,
    write,
)
from rankings import ranking

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import down_projections
from analyzer.projections.projection import in_layers
from analyzer.projections.weights import read_weights
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


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
    result = scan(checkpoint, in_layers("m", down_projections(checkpoint), [range(1, 2)]), top=50)
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


# What it costs


def write_zeros(folder, tensors, **config):
    """Write tensors, given as dtype and shape, that are all zeros: a sparse file, so that the disk does not matter."""
    sizes = {"F8_E4M3": 1, "U8": 1, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "F32": 4}
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
        (
            DENSE,
            {".qweight": ("I32", 384, 4096), ".qzeros": ("I32", 32, 384), ".scales": ("F16", 32, 4096)},
            GPTQ,
        ),
        (
            DENSE,
            {".weight": ("U32", 4096, 640), ".scales": ("BF16", 4096, 64), ".biases": ("BF16", 4096, 64)},
            {"bits": 5, "group_size": 64},
        ),
        (
            DENSE,
            {".weight": ("U8", 1024, 4096), ".weight_scale": ("BF16", 1)},
            {"quant_method": "bitnet", "linear_class": "autobitlinear"},
        ),
    ],
    ids=["fp8", "mxfp4", "gptq", "awq", "gptq, 3 bits", "mlx, 5 bits", "bitnet"],
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
        "import sys\n"
        "from analyzer.analyze.scanning import scan_model; from analyzer.source.opening import open_model\n"
        "for folder in sys.argv[1:]:\n"
        "    scan_model(open_model(folder))\n"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / str(number)) for number in range(len(names)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["gptq, no g_idx", "gptq, act order", "awq"])
def test_scales_of_integers_that_are_no_number(tmp_path, name):
    model = MODELS[name]()
    module = DENSE.format(1)
    model.tensors[f"{module}.scales"][0, 5] = np.inf
    model.tensors[f"{module}.scales"][0, 6] = np.nan
    write(tmp_path, model)
    finite = [np.isfinite(down).all(axis=1) for down in dense(tmp_path).values()]
    assert [np.flatnonzero(~rows).tolist() for rows in finite] == [[], [5, 6], []]
