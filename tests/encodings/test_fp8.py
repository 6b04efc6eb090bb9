"""8-bit floats whose scales are called otherwise, are powers of two, or are not there."""

import numpy as np
import pytest
from encoders import mxfp8
from quantized import (
    DENSE,
    E4M3,
    FP8,
    MODELOPT_FP8,
    Model,
    check,
    decoys,
    float8,
    fp8,
    fused_linears,
    linears,
    open_folder,
    write,
)

from analyzer.base.errors import ArchitectureError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

MODELOPT = {"quant_method": "modelopt", "quant_algo": "MXFP8"}
NONE = None
MODELS = {
    "comfyui": lambda: linears(fp8(scale="scalar", name="scale_weight"), NONE, **E4M3),
    "mistral": lambda: linears(fp8(scale="scalar", name="qscale_weight", scale_dtype="BF16"), NONE, **E4M3),
    "scale of the module": lambda: linears(fp8(name="scale", scale_dtype="F8_E8M0"), FP8, **E4M3),
    "equal parts of rows": lambda: linears(fp8(block=(1, 64), name="weight_scale"), MODELOPT_FP8, **E4M3, cols=320),
    "blocks of compressed-tensors": lambda: linears(
        fp8(block=(64, 32), name="weight_scale"),
        {"config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [64, 32]}}}},
        **E4M3,
    ),
    "mxfp8, bytes": lambda: linears(mxfp8(), MODELOPT, dtype="MXFP8"),
    "mxfp8": lambda: linears(mxfp8(scale_dtype="F8_E8M0"), MODELOPT, dtype="MXFP8"),
    "mxfp8, inverse": lambda: linears(mxfp8("weight_scale_inv"), {"weight_block_size": [1, 32]}, dtype="MXFP8"),
    "mxfp8, a config of other blocks": lambda: linears(mxfp8(), FP8, dtype="MXFP8", cols=320),
    "mxfp8 experts": lambda: fused_linears(mxfp8(), MODELOPT, dtype="MXFP8", rows=192, cols=320),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


def unscaled(dtype):
    generator = np.random.default_rng(0)
    tensors, downs = decoys(3, 40), {}
    for layer in range(3):
        weight, values = float8(generator.integers(0, 256, (40, 72), np.uint8), dtype)
        tensors[f"{DENSE.format(layer)}.weight"] = weight
        tensors[f"{DENSE.format(layer)}.input_scale"] = np.array(3, np.float32)
        downs[layer, None] = values.astype(np.float64)
    return Model(tensors, None, downs, {f"{DENSE.format(layer)}.weight" for layer in range(3)}, dtype)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_without_scales_anywhere_they_are_as_they_are(tmp_path, dtype):
    model = unscaled(dtype)
    write(tmp_path, model)
    check(tmp_path, model)


@pytest.mark.parametrize("scaled", ["self_attn.o_proj", "mlp.down_proj"])
def test_where_others_have_scales_the_one_without_is_named(tmp_path, scaled):
    model = unscaled("F8_E4M3")
    other = f"model.layers.1.{scaled}.weight"
    model.tensors.setdefault(other, model.tensors[f"{DENSE.format(0)}.weight"])
    model.tensors[f"{other}_scale"] = np.array(1, np.float32)
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=r"layers\.0\.mlp\.down_proj\.weight.* without its scales"):
        open_folder(tmp_path)
