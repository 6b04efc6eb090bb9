"""Quantized weights that cannot be read: broken ones by what is wrong, other encodings by their names."""

import numpy as np
import pytest
from checkpoints import DTYPES, LLAMA_DOWN, random_downs, write_config, write_tensors
from quantized import (
    AWQ,
    DENSE,
    EXPERTS,
    FP8,
    GPTQ,
    GPTQ_V2,
    ROW_SCALES,
    SCALAR,
    Model,
    awq,
    check,
    decoys,
    fp8,
    fused_fp8,
    gpt_oss,
    gptq,
    linears,
    open_folder,
    write,
)

from analyzer.base.errors import AnalyzerError, ArchitectureError, CheckpointError
from analyzer.scan.scanner import scan

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


# What cannot be read


def tiny(encode, quantization):
    return linears(encode, quantization, dtype="", rows=64, cols=192, places={(0, None): DENSE.format(0)})


def tiny_fused():
    return fused_fp8(fp8(), FP8, rows=200, cols=300, experts=2, layers=1)


def tiny_mxfp4():
    return gpt_oss(rows=64, cols=96, experts=2, layers=1)


def of_shape(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


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
    "awq, no scales": (lambda: tiny(awq(), AWQ), {".scales": None}, {}),
    "awq, no zeros": (lambda: tiny(awq(), AWQ), {".qzeros": None}, {}),
    "awq, scales of other rows": (lambda: tiny(awq(), AWQ), {".scales": of_shape(3, 72, dtype=np.float16)}, {}),
    "awq, scales of other groups": (lambda: tiny(awq(), AWQ), {".scales": of_shape(4, 64, dtype=np.float16)}, {}),
    "awq, zeros of other rows": (lambda: tiny(awq(), AWQ), {".qzeros": of_shape(3, 9, dtype=np.int32)}, {}),
    "awq, zeros of other groups": (lambda: tiny(awq(), AWQ), {".qzeros": of_shape(2, 8, dtype=np.int32)}, {}),
    "awq, packed as gptq": (lambda: tiny(awq(), AWQ), {".qweight": of_shape(24, 64, dtype=np.int32)}, {}),
    "awq, gemv": (lambda: tiny(awq(), AWQ), {}, {"version": "gemv"}),
    "awq, llm-awq": (lambda: tiny(awq(), AWQ), {}, {"version": "llm-awq"}),
    "gptq, marlin": (lambda: tiny(gptq(), GPTQ), {}, {"checkpoint_format": "marlin"}),
    "gptq, groups that nothing tells": (
        lambda: tiny(gptq(g_idx=False), GPTQ),
        {".qweight": i32(25, 64), ".scales": f16(3, 64), ".qzeros": i32(3, 8)},
        {},
    ),
    "auto-round, a format of its own": (
        lambda: tiny(gptq(), GPTQ),
        {},
        {"quant_method": "auto-round", "packing_format": "auto_round:newer"},
    ),
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
    "compressed-tensors, 2:4 sparse": (
        {"weight_packed": i32(64, 12), "weight_scale": bf16(64, 1), "meta": of_shape(64, 12, dtype=np.int16)},
        {"quant_method": "compressed-tensors", "format": "marlin-24"},
        "marlin-24",
    ),
    "compressed-tensors, packed": (
        {"weight_packed": i32(64, 24), "weight_scale": bf16(64, 2), "weight_shape": of_shape(2, dtype=np.int64)},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "pack-quantized",
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
    "vptq": (
        {"indices": i32(1, 24, 10), "centroids.weight": f16(1, 2048), "weight_scale": f16(192)},
        {"quant_method": "vptq"},
        "vptq",
    ),
    "marlin": ({"B": i32(12, 128), "s": f16(2, 64)}, {"quant_method": "marlin", "bits": 4}, "marlin"),
    "integers of a byte that another method scales": (
        {"weight": i8(64, 192), "weight_scale": of_shape(64, 1)},
        {"quant_method": "newquant"},
        "newquant",
    ),
    "compressed-tensors, mxfp6": (
        {"weight_packed": u8(64, 144), "weight_scale": u8(64, 6)},
        {"quant_method": "compressed-tensors", "format": "mxfp6-pack-quantized"},
        "mxfp6-pack-quantized",
    ),
    "auto-round, mxint4": (
        {"weight_packed": u8(64, 96), "weight_scale": u8(64, 6)},
        {"quant_method": "auto-round", "data_type": "mx_int4"},
        "auto-round",
    ),
    "of a model whose config says otherwise": (
        {"weight": u8(32, 192), "weight.absmax": u8(192)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "bitsandbytes",
    ),
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
