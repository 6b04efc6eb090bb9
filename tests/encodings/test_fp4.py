"""4-bit floats: NVFP4 as ModelOpt and compressed-tensors spell it, MXFP4 as DeepSeek-V4 and compressed-tensors do."""

import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_config, write_tensors
from encoders import mxfp4_pairs, nvfp4
from quantized import (
    DENSE,
    EXPERT,
    EXPERTS,
    MODELOPT_FP8,
    check,
    dense,
    fused_linears,
    linears,
    mxfp4,
    open_folder,
    write,
)

from analyzer.base.errors import ArchitectureError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

SHAPE = {"rows": 192, "cols": 320}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
MX_COMPRESSED = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
DEEPSEEK_V4 = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
UNREAD = {"unread": ("input_scale", "input_global_scale")}
PLACES = {(layer, expert): EXPERT.format(layer, expert) for layer in (0, 1) for expert in (0, 1, 2)}

MODELS = {
    "nvfp4": lambda: linears(nvfp4(), MODELOPT, dtype="NVFP4", **SHAPE, **UNREAD),
    "nvfp4, factor in one dimension": lambda: linears(nvfp4(shape=(1,)), MODELOPT, dtype="NVFP4", **SHAPE, **UNREAD),
    "nvfp4 in a model of another method": lambda: linears(nvfp4(), MODELOPT_FP8, dtype="NVFP4", **SHAPE, **UNREAD),
    "nvfp4, compressed": lambda: linears(nvfp4("compressed", (1,)), COMPRESSED, dtype="NVFP4", **SHAPE, **UNREAD),
    "nvfp4, a part of a block": lambda: linears(nvfp4(), MODELOPT, dtype="NVFP4", rows=200, cols=328, **UNREAD),
    "nvfp4 experts": lambda: linears(nvfp4(), MODELOPT, dtype="NVFP4", places=PLACES, **SHAPE, **UNREAD),
    "nvfp4 experts in one": lambda: fused_linears(nvfp4(), MODELOPT, dtype="NVFP4", **SHAPE, **UNREAD),
    "mxfp4, deepseek-v4": lambda: linears(mxfp4_pairs(), DEEPSEEK_V4, dtype="MXFP4", places=PLACES, **SHAPE),
    "mxfp4, bytes": lambda: linears(mxfp4_pairs(dtype=np.uint8), DEEPSEEK_V4, dtype="MXFP4", **SHAPE),
    "mxfp4, compressed": lambda: linears(
        mxfp4_pairs("weight_packed", np.uint8, "weight_scale", "U8"), MX_COMPRESSED, dtype="MXFP4", **SHAPE
    ),
    "mxfp4, quark": lambda: linears(
        mxfp4_pairs("weight", np.uint8, "weight_scale", "U8"), {"quant_method": "quark"}, dtype="MXFP4", **SHAPE
    ),
    "mxfp4 experts in one": lambda: fused_linears(
        mxfp4_pairs(scale="weight_scale_inv"), DEEPSEEK_V4, dtype="MXFP4", **SHAPE
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


def test_experts_as_the_original_gpt_oss_has_them(tmp_path):
    """There a module's tensors are called after a dot."""
    stored, down = mxfp4(np.random.default_rng(0), 3, 96, 64, 1)
    tensors = {f"{EXPERTS.format(0)}.{end.removeprefix('_')}": tensor for end, tensor in stored.items()}
    write_tensors(tmp_path, tensors)
    write_config(tmp_path, model_type="gpt_oss", hidden_size=96)
    found = dense(tmp_path)
    for expert in range(3):
        np.testing.assert_array_equal(found[0, expert], down[expert])


def stored_alone(folder, stored, quantization):
    write_tensors(folder, {f"{DENSE.format(0)}.{end}": np.array(tensor) for end, tensor in stored.items()})
    write_config(folder, model_type="llama", hidden_size=1, quantization_config=quantization)
    return dense(folder)[0, None]


def test_as_compressed_tensors_has_them(tmp_path):
    """By compressed-tensors 0.20.0, of sin(1), sin(2), … in float32; the scales are 352 / 2048."""
    text = "76e2bf76d4df74b6ef7286fe6a37fe5c57fc3e67fa0e76e1bf76d4df75c6ef72"
    stored = {
        "weight_packed": np.frombuffer(bytes.fromhex(text), np.uint8).reshape(2, 16),
        "weight_scale": np.full((2, 2), 0x7B, np.uint8).view(ml_dtypes.float8_e4m3fn),
        "weight_global_scale": np.array([2048], np.float32),
    }
    down = stored_alone(tmp_path, stored, COMPRESSED)
    assert down[1, :6].tolist() == [1.03125, 0.515625, -0.34375, -1.03125, -0.6875, 0.2578125]
    assert np.abs(down).sum() == 41.25


@pytest.mark.filterwarnings("ignore")
def test_against_compressed_tensors_itself(tmp_path):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (64, 256)).astype(np.float32))
    args = quantization.QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16
    )
    plan = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    factor = torch.tensor([448 * 6 / weight.abs().max().item()])
    scale = (weight.reshape(64, 16, 16).abs().amax(-1) / 6 * factor).to(torch.float8_e4m3fn)
    compressor = compressors.BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    stored = compressor.compress({"weight": weight, "weight_scale": scale.float(), "weight_global_scale": factor}, plan)
    arrays = {
        "weight_packed": stored["weight_packed"].numpy(),
        "weight_scale": scale.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn),
        "weight_global_scale": factor.numpy(),
    }
    unpacked = compressor.decompress({**stored, "weight_scale": stored["weight_scale"].float()}, plan)["weight"]
    # The library multiplies in its own dtype, bfloat16.
    np.testing.assert_allclose(stored_alone(tmp_path, arrays, COMPRESSED), unpacked.float().numpy(), rtol=2**-7)


# What cannot be read

BROKEN = {
    "no factor": (nvfp4, {"weight_scale_2": None}),
    "no factor, compressed": (lambda: nvfp4("compressed"), {"weight_global_scale": None}),
    "a factor for each row": (nvfp4, {"weight_scale_2": np.ones(192, np.float32)}),
    "an integer for a factor": (nvfp4, {"weight_scale_2": np.array(1)}),
    "scales of other rows": (nvfp4, {"weight_scale": np.ones((191, 20), ml_dtypes.float8_e4m3fn)}),
    "scales of other blocks": (nvfp4, {"weight_scale": np.ones((192, 10), ml_dtypes.float8_e4m3fn)}),
    "pairs in one dimension": (nvfp4, {"weight": np.ones(192, np.uint8)}),
    "pairs of nothing": (nvfp4, {"weight": np.ones((192, 0), np.uint8)}),
    "powers of other rows": (mxfp4_pairs, {"scale": np.ones((191, 10), np.uint8).view(ml_dtypes.float8_e8m0fnu)}),
    "powers of other blocks": (mxfp4_pairs, {"scale": np.ones((192, 20), np.uint8).view(ml_dtypes.float8_e8m0fnu)}),
    "no powers": (mxfp4_pairs, {"scale": None}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    encode, changes = BROKEN[name]
    model = linears(encode(), None, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    for end, tensor in changes.items():
        del model.tensors[f"{DENSE.format(0)}.{end}"]
        if tensor is not None:
            model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)) as caught:
        open_folder(tmp_path)
    assert str(caught.value).isprintable()
