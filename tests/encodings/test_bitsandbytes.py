"""bitsandbytes' 4-bit numbers and int8, as packed here and by the library itself."""

import json

import numpy as np
import pytest
from checkpoints import write_config, write_tensors
from encoders import FP4, NF4, bnb_4bit, bnb_int8
from quantized import DENSE, check, dense, linears, open_folder, write

from analyzer.base.errors import AnalyzerError, ArchitectureError
from analyzer.projections.down_projections import find_down_projections
from analyzer.scan.scanner import scan

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}
EXPERTS = {(0, expert): f"model.layers.0.mlp.experts.{expert}.down_proj" for expert in range(3)}
STATE = "weight.quant_state.bitsandbytes__nf4"

MODELS = {
    "nf4": lambda: linears(bnb_4bit(), FOUR, dtype="NF4"),
    "nf4, scales quantized": lambda: linears(bnb_4bit(nested=True), FOUR, dtype="NF4"),
    "nf4, blocks of 128": lambda: linears(bnb_4bit(block=128, nested=True), FOUR, dtype="NF4", rows=192, cols=320),
    "nf4, blocks that rows do not end with": lambda: linears(bnb_4bit(), FOUR, dtype="NF4", rows=30, cols=100),
    "nf4 experts": lambda: linears(bnb_4bit(nested=True), FOUR, dtype="NF4", places=EXPERTS),
    "fp4": lambda: linears(bnb_4bit("fp4"), FOUR, dtype="FP4"),
    "fp4, scales quantized": lambda: linears(bnb_4bit("fp4", nested=True), FOUR, dtype="FP4"),
    "int8": lambda: linears(bnb_int8, EIGHT, dtype="LLM.int8"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


@pytest.mark.parametrize("nested", [False, True])
def test_lines_longer_than_a_tile(tmp_path, nested):
    places = {(0, None): DENSE.format(0)}
    encode = bnb_4bit(block=96, nested=nested)  # blocks that no tile ends with
    model = linears(encode, FOUR, dtype="NF4", rows=8, cols=300_000, places=places)
    model = model._replace(tensors={name: model.tensors[name] for name in model.read})
    write(tmp_path, model)
    check(tmp_path, model)


# By bitsandbytes 0.50.2, of sin(1), sin(2), … in float32, [2, 32], in blocks of 64: the bytes, the scale, the first six
# numbers that it makes of them, and the sum of all magnitudes.
SCALE = 0.9999902248382568
BY_BITSANDBYTES = {
    "nf4": (
        "ef9104efc202cfe4019fe7106efa103dfd301bfe5017ef9104efc202cfd4019f",
        NF4,
        [0.722949743270874, SCALE, 0.1609286218881607, -0.6961860060691833, -SCALE, -0.2844386100769043],
        41.334947779774666,
    ),
    "fp4": (
        "336abf234dbd532fba6339bbe237abc535dba432eba1336abf234dbd532cba63",
        FP4,
        [SCALE, SCALE, 0.16666504740715027, -0.6666601896286011, -SCALE, -0.2499975562095642],
        41.843341646716,
    ),
}


def stored_alone(folder, stored, quantization=FOUR):
    write_tensors(folder, {f"{DENSE.format(0)}.{end}": np.array(tensor) for end, tensor in stored.items()})
    write_config(folder, model_type="llama", quantization_config=quantization)
    return dense(folder)[0, None]


@pytest.mark.parametrize("kind", BY_BITSANDBYTES)
def test_as_bitsandbytes_has_them(tmp_path, kind):
    text, known, first, total = BY_BITSANDBYTES[kind]
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [2, 32]}
    stored = {
        "weight": np.frombuffer(bytes.fromhex(text), np.uint8)[:, None],
        "weight.absmax": np.array([SCALE], np.float32),
        "weight.quant_map": np.array(known, np.float32),
        f"weight.quant_state.bitsandbytes__{kind}": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    down = stored_alone(tmp_path, stored)
    assert down[0, :6].tolist() == first
    assert np.abs(down).sum() == total


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_against_bitsandbytes_itself(tmp_path, kind, nested):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (96, 512)).astype(np.float32))
    packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    stored = {"weight": packed, **{f"weight.{end}": tensor for end, tensor in state.as_dict(packed=True).items()}}
    down = stored_alone(tmp_path, {end: tensor.numpy() for end, tensor in stored.items()})
    expected = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(down, expected, rtol=1e-6, atol=0)


def test_int8_against_bitsandbytes_itself(tmp_path):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (96, 512)).astype(np.float16))
    codes, scales, _ = functional.int8_vectorwise_quant(weight)
    down = stored_alone(tmp_path, {"weight": codes.numpy(), "SCB": scales.numpy()}, EIGHT)
    np.testing.assert_allclose(down, functional.int8_vectorwise_dequant(codes, scales).numpy(), rtol=1e-6, atol=0)


# What cannot be read


def blob(**changes):
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 192]} | changes
    return np.frombuffer(json.dumps(state).encode(), np.uint8)


BROKEN = {
    "no state": {STATE: None},
    "a state of no JSON": {STATE: np.frombuffer(b"\x80\x04\x95", np.uint8)},
    "a state of nested JSON": {STATE: np.frombuffer(b"[" * 4000, np.uint8)},
    "a state of a list": {STATE: np.frombuffer(b"[1, 2]", np.uint8)},
    "a state that is too long": {STATE: np.frombuffer(b" " * 5000, np.uint8)},
    "no shape": {STATE: blob(shape=None)},
    "another shape": {STATE: blob(shape=[64, 190])},
    "a shape of three dimensions": {STATE: blob(shape=[2, 32, 192])},
    "a shape of odd rows": {STATE: blob(shape=[4096, 3])},
    "a shape of floats": {STATE: blob(shape=[64.0, 192])},
    "a negative shape": {STATE: blob(shape=[-64, -192])},
    "blocks of nothing": {STATE: blob(blocksize=0)},
    "blocks of another size": {STATE: blob(blocksize=128)},
    "no scales": {"weight.absmax": None},
    "scales of bytes": {"weight.absmax": np.ones(192, np.uint8)},
    "no numbers": {"weight.quant_map": None},
    "too many numbers": {"weight.quant_map": np.ones(256, np.float32)},
    "scales of scales, of floats": {"weight.nested_absmax": np.ones(1, np.float32)},
    "weights of another size": {"weight": np.ones((100, 1), np.uint8)},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    model = linears(bnb_4bit(), FOUR, dtype="", places={(0, None): DENSE.format(0)}, rows=64, cols=192)
    for end, tensor in BROKEN[name].items():
        model.tensors.pop(f"{DENSE.format(0)}.{end}", None)
        if tensor is not None:
            model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)) as caught:
        open_folder(tmp_path)
    assert str(caught.value).isprintable()


NESTED = {
    "an offset that is no number": blob(nested_blocksize=256, nested_offset="x"),
    "an offset past all bounds": blob(nested_blocksize=256, nested_offset=float("inf")),
    "other blocks of scales": blob(nested_blocksize=64, nested_offset=0.5),
    "no blocks of scales": blob(nested_blocksize=0, nested_offset=0.5),
}


@pytest.mark.parametrize("name", NESTED)
def test_scales_of_scales_that_do_not_fit(tmp_path, name):
    model = linears(bnb_4bit(nested=True), FOUR, dtype="", places={(0, None): DENSE.format(0)}, rows=64, cols=192)
    model.tensors[f"{DENSE.format(0)}.{STATE}"] = NESTED[name]
    write(tmp_path, model)
    with pytest.raises(AnalyzerError, match=DENSE.format(0)):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_format": np.array(1, np.uint8)},
        {"SCB": np.ones(63, np.float32)},
        {"SCB": np.ones(64, np.float16)},
        {"weight": np.ones((2, 32, 192), np.int8)},
    ],
    ids=["the order of another GPU", "scales of other rows", "scales of another dtype", "three dimensions"],
)
def test_int8_that_does_not_fit(tmp_path, changes):
    model = linears(bnb_int8, EIGHT, dtype="", places={(0, None): DENSE.format(0)}, rows=64, cols=192)
    model.tensors.update({f"{DENSE.format(0)}.{end}": tensor for end, tensor in changes.items()})
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)):
        scan(*open_folder(tmp_path))


def test_without_the_bytes_it_is_said_that_they_have_to_be_read():
    module = DENSE.format(0)
    stored, _ = bnb_4bit()(np.random.default_rng(0), 64, 192, 1)
    shapes = {f"{module}.{end}": ("U8", tensor.shape) for end, tensor in stored.items()}
    with pytest.raises(ArchitectureError, match=r"has to be read"):
        find_down_projections("m", shapes, {"quantization_config": FOUR})
