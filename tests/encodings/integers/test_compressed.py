"""compressed-tensors' integers, as packed here and by the library itself."""

import numpy as np
import pytest
from checkpoints import write_config, write_tensors
from encoders import int_quantized, pack_quantized
from quantized import DENSE, check, dense, fused_linears, linears, open_folder, write

from analyzer.base.errors import AnalyzerError, ArchitectureError, CheckpointError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.scan.scanner import scan

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

SHAPE = {"rows": 192, "cols": 320}
SHAPES_TOLD = {"unread": ("weight_shape",)}  # by config.json


def told(bits=4, group=32, symmetric=True, **more):
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if bits < 8 else "int-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme(bits, group, symmetric)}},
        "ignore": ["lm_head"],
        **more,
    }


def scheme(bits, group, symmetric=True):
    strategy = "group" if group else "channel"
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group}


def packed(bits=4, group=32, *, how=None, told_group=True, **more):
    config = told(bits, group if told_group else None, symmetric="zeros" not in more)
    unread = SHAPES_TOLD if told_group and group else {}
    return linears(pack_quantized(bits, group, **more), config, dtype=f"INT{bits}", **unread, **SHAPE)


MODELS = {
    **{f"{bits} bits": lambda bits=bits: packed(bits) for bits in (1, 2, 3, 4, 5, 6, 8)},
    **{f"{bits} bits, zeros": lambda bits=bits: packed(bits, zeros="packed") for bits in (2, 3, 4, 5, 8)},
    "zeros that are not packed": lambda: packed(zeros="plain"),
    "groups of 64, f16": lambda: packed(group=64, dtype="F16"),
    "groups of 160": lambda: packed(group=160, zeros="packed"),
    "scales of rows": lambda: packed(group=None),
    "scales of rows, zeros": lambda: packed(group=None, zeros="packed"),
    "one scale": lambda: packed(group=0),
    "groups that config.json does not tell": lambda: packed(told_group=False),
    "act order": lambda: packed(g_idx="named"),
    "act order, zeros": lambda: packed(g_idx="named", zeros="packed"),
    "act order that was not used": lambda: packed(g_idx="unused", zeros="packed"),
    "experts": lambda: fused_linears(pack_quantized(), told(), dtype="INT4", **SHAPE, **SHAPES_TOLD),
    "bytes": lambda: linears(int_quantized(), told(8, None), dtype="INT8", **SHAPE),
    "bytes in groups": lambda: linears(int_quantized(64), told(8, 64), dtype="INT8", **SHAPE),
    "bytes, zeros": lambda: linears(int_quantized(zeros=True), told(8, None, False), dtype="INT8", **SHAPE),
    "bytes of experts": lambda: fused_linears(int_quantized(), told(8, None), dtype="INT8", **SHAPE),
}

SCALES = {  # of rows, of all
    "a column": lambda scales: scales,
    "flat": lambda scales: scales[:, 0],
    "one": lambda scales: scales[0],
    "scalar": lambda scales: scales[0, 0],
}


@pytest.mark.parametrize("how", SCALES)
@pytest.mark.parametrize("end", ["scale", "scales"])
def test_bytes_whose_scale_has_another_name(tmp_path, how, end):
    model = linears(one_of_all if how in ("one", "scalar") else int_quantized(), None, dtype="INT8", **SHAPE)
    renamed = {name.replace("weight_scale", end): tensor for name, tensor in model.tensors.items()}
    tensors = {name: np.array(SCALES[how](t)) if name.endswith(f".{end}") else t for name, t in renamed.items()}
    model = model._replace(tensors=tensors, read={name.replace("weight_scale", end) for name in model.read})
    write(tmp_path, model)
    check(tmp_path, model)


def one_of_all(generator, rows, cols, size):
    stored, _ = int_quantized()(generator, rows, cols, size)
    stored["weight_scale"][:] = stored["weight_scale"][0]
    return stored, (stored["weight"] * stored["weight_scale"].astype(np.float32)).astype(np.float64)


UNSURE = {
    "of rows or columns": (192, np.ones(192, np.float32), {}, None),
    "of columns": (320, np.ones(320, np.float32), {}, None),
    "of groups": (320, np.ones((192, 5), np.float32), {}, None),
    "with zeros": (320, np.ones((192, 1), np.float32), {"zero_point": np.ones((192, 1), np.int8)}, None),
    "of a quantizer": (320, np.ones((192, 1), np.float32), {}, {"bits": 4}),
}


@pytest.mark.parametrize("name", UNSURE)
def test_bytes_whose_scale_is_not_surely_one_are_refused(tmp_path, name):
    cols, scale, more, quantization = UNSURE[name]
    stored = {"weight": np.ones((192, cols), np.int8), "scale": scale, **more}
    with pytest.raises(ArchitectureError, match=r"is stored as I8 by an unknown quantization"):
        stored_alone(tmp_path, stored, quantization)


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


@pytest.mark.parametrize("zeros", [None, "packed"])
def test_lines_longer_than_a_tile(tmp_path, monkeypatch, zeros):
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 512)
    places = {(0, None): DENSE.format(0)}
    encode = pack_quantized(4, 96, zeros=zeros)  # groups that no tile ends with
    model = linears(
        encode, told(4, 96, zeros is None), dtype="INT4", rows=32, cols=96 << 3, places=places, **SHAPES_TOLD
    )
    model = model._replace(tensors={name: model.tensors[name] for name in model.read})
    write(tmp_path, model)
    check(tmp_path, model)


def mixed(*schemes):
    groups = {f"group_{number}": {"targets": ["re:(x+)+y"], "weights": one} for number, one in enumerate(schemes)}
    return {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}


def test_of_several_groups_that_which_fits(tmp_path):
    """Patterns of a config are never tried: some would take for ever. The shapes tell, or the tensor that says them."""
    four = linears(pack_quantized(4, 32), None, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    eight = linears(pack_quantized(8, 64), None, dtype="", places={(1, None): DENSE.format(1)}, **SHAPE)
    write_tensors(tmp_path, {**four.tensors, **eight.tensors})
    for config in (mixed(scheme(4, 32), scheme(8, 64)), mixed(scheme(4, 32), scheme(8, 16)), mixed(), {}):
        write_config(tmp_path, model_type="llama", hidden_size=192, quantization_config=config)
        assert [p.matrix.encoding.name for p in open_folder(tmp_path)[1]] == ["INT4", "INT8"]
        found = dense(tmp_path)
        for place, down in {**four.downs, **eight.downs}.items():
            np.testing.assert_array_equal(found[place], down)


def test_the_tensors_that_tell_shapes_are_read_together(tmp_path, monkeypatch):
    model = packed(told_group=False)
    write(tmp_path, model)
    calls = []

    def read_tensors(checkpoint, names):
        calls.append(names)
        return original(checkpoint, names)

    original = Checkpoint.read_tensors
    monkeypatch.setattr(Checkpoint, "read_tensors", read_tensors)
    open_folder(tmp_path)
    assert calls == [[f"{DENSE.format(layer)}.weight_shape" for layer in range(3)]]


# By compressed-tensors 0.20.0, of sin(1) + 0.25, sin(2) + 0.25, … in float32, in groups of 32: bits, rows, the scale,
# the packed words, and zeros, the last row's first six numbers that it makes of them, and the sum of all magnitudes.
BY_COMPRESSED_TENSORS = [
    (4, 2, 0.125, "ff4b82ff6d62fd8f42fbaf33f9cf25e7ef27c5ff39a3ff4b82ff6d62fd8f42fb", "",
     [0.875, 0.75, -0.125, -0.75, -0.375, 0.5], 37.25),
    (4, 8, 0.125, "cc0630da1810d83a00c65c00b47d0092ae0381ce0560dd0740eb2920e94b00d77e00d69f02c4bf03a2df0670ee1850fc"
     "3b40fc5d20f98f11e7af02d5cf04b3ef0350cc0630db0810d92a00c75b00b47d00b3ae0291ce0470dd0740ec1920ea3b10f96d00d79e01"
     "c4bf03a2df0581ee1761fe3b40fc5d20fa7e11f89f02d5cf04", "43654365",
     [-0.625, 0.0, 1.0, 1.125, 0.625, -0.375], 161.0),
    (3, 2, 0.25, "bf15fe5ff69f91ff2afcadecff22ff8cfa57e1ff65ff19f9", "",
     [0.75, 0.75, -0.25, -0.75, -0.5, 0.5], 35.75),
    (8, 2, 0.0078125, "ffffb23f257cf4ffd55a205bd6fff37b2540b3ffff9f342c8fffffc34b226ce7ffe469214ec6ffff8c2b36a2ffff"
     "b03e267ef6ffd358205dd8fff2792441b5ff", "",
     [0.9921875, 0.78125, -0.1796875, -0.7421875, -0.390625, 0.546875], 39.8984375),
]  # fmt: skip


@pytest.mark.parametrize("case", BY_COMPRESSED_TENSORS, ids=lambda case: f"{case[0]} bits, {case[1]} rows")
def test_as_compressed_tensors_has_them(tmp_path, case):
    bits, rows, scale, text, zeros, first, total = case
    stored = {
        "weight_packed": np.frombuffer(bytes.fromhex(text), np.int32).reshape(rows, bits),
        "weight_scale": np.full((rows, 1), scale, np.float32),
    }
    if zeros:
        stored["weight_zero_point"] = np.frombuffer(bytes.fromhex(zeros), np.int32).reshape(1, 1)
    down = stored_alone(tmp_path, stored, told(bits, 32, not zeros))
    assert down[-1, :6].tolist() == first
    assert np.abs(down).sum() == total


def stored_alone(folder, stored, quantization):
    write_tensors(folder, {f"{DENSE.format(0)}.{end}": np.array(tensor) for end, tensor in stored.items()})
    write_config(folder, model_type="llama", hidden_size=1, quantization_config=quantization)
    return dense(folder)[0, None]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.filterwarnings("ignore")
def test_against_compressed_tensors_itself(tmp_path, bits, symmetric):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.02, (64, 256)).astype(np.float32))
    args = quantization.QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=64
    )
    groups = weight.reshape(64, 4, 64)
    span = groups.amax(-1) - groups.amin(-1)
    half = 1 << (bits - 1)
    zeros = torch.zeros(64, 4) if symmetric else (-groups.amin(-1) / span * (2**bits - 1) - half).round()
    stored = {"weight": weight, "weight_scale": span / (2**bits - 1), "weight_zero_point": zeros.to(torch.int8)}
    plan = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    packed_by_it = compressor.compress(stored, plan)
    expected = compressor.decompress(dict(packed_by_it), plan)["weight"].numpy()
    arrays = {end: tensor.numpy() for end, tensor in packed_by_it.items()}
    np.testing.assert_array_equal(stored_alone(tmp_path, arrays, told(bits, 64, symmetric)), expected)


# What cannot be read


def i32(*shape):
    return np.ones(shape, np.int32)


def g_idx(group):
    groups = np.arange(320, dtype=np.int32) // 32
    groups[77] = group
    return groups


BROKEN = {
    "no scale": ({"weight_scale": None}, {}),
    "scales of other rows": ({"weight_scale": np.ones((191, 10), np.float32)}, {}),
    "scales of parts of groups": ({"weight_scale": np.ones((192, 7), np.float32)}, {}),
    "integer scales": ({"weight_scale": i32(192, 10)}, {}),
    "zeros of other rows": ({"weight_zero_point": i32(23, 10)}, {}),
    "zeros of other groups": ({"weight_zero_point": i32(24, 9)}, {}),
    "zeros in floats": ({"weight_zero_point": np.ones((192, 10), np.float32)}, {}),
    "no zeros": ({}, told(symmetric=False)),
    "g_idx of other channels": ({"weight_g_idx": i32(319)}, {}),
    "g_idx past the groups": ({"weight_g_idx": g_idx(10)}, {}),
    "g_idx below -1": ({"weight_g_idx": g_idx(-2)}, {}),
    "no shape, and a config that does not tell": ({"weight_shape": None}, {"config_groups": {}}),
    "a shape of bytes": ({"weight_shape": np.array([192, 64], np.uint8)}, {"config_groups": {}}),
    "a shape that does not fit": ({"weight_shape": np.array([192, 319])}, {"config_groups": {}}),
    "a shape of nothing": ({"weight_shape": np.array([192, 0])}, {"config_groups": {}}),
    "a shape below nothing": ({"weight_shape": np.array([192, -320])}, {"config_groups": {}}),
    "a shape past all bounds": ({"weight_shape": np.array([192, 1 << 62])}, {"config_groups": {}}),
    "words in one dimension": ({"weight_packed": i32(40)}, {}),
    "words of nothing": ({"weight_packed": i32(192, 0)}, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    changes, config = BROKEN[name]
    model = linears(pack_quantized(), {**told(), **config}, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    for end, tensor in changes.items():
        model.tensors.pop(f"{DENSE.format(0)}.{end}", None)
        if tensor is not None:
            model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises((ArchitectureError, CheckpointError), match=DENSE.format(0)) as caught:
        scan(*open_folder(tmp_path))
    assert str(caught.value).isprintable()


NONSENSE = [None, 0, -3, 2**70, 0.5, "4", "x\x1b", True, [], [0, 0], {}, {"weights": 3}]


@pytest.mark.parametrize("place", ["config_groups", "group", "weights", "num_bits", "group_size", "symmetric"])
def test_nonsense_in_the_config_is_no_crash(tmp_path, place):
    write(tmp_path, linears(pack_quantized(), None, dtype="", **SHAPE))
    for value in NONSENSE:
        config = told()
        weights = config["config_groups"]["group_0"]["weights"]
        if place == "config_groups":
            config["config_groups"] = value
        elif place == "group":
            config["config_groups"]["group_0"] = value
        elif place == "weights":
            config["config_groups"]["group_0"]["weights"] = value
        else:
            weights[place] = value
        write_config(tmp_path, model_type="llama", quantization_config=config)
        try:
            scan(*open_folder(tmp_path))
        except AnalyzerError as error:
            assert str(error).isprintable()
