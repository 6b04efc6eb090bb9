"""MLX's words: every number of bits, bits of their own for modules, and floats, as packed here and by MLX."""

import numpy as np
import pytest
from checkpoints import write_config, write_tensors
from encoders import mlx, mlx_floats
from quantized import DENSE, check, dense, fused_linears, linears, open_folder, write

from analyzer.base.errors import ArchitectureError

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

SHAPE = {"rows": 192, "cols": 320}


def told(bits, group=64, **more):
    return {"group_size": group, "bits": bits, **more}


MODELS = {
    **{f"{bits} bits": lambda bits=bits: linears(mlx(bits), told(bits), dtype=f"MLX-{bits}bit", **SHAPE)
       for bits in (1, 2, 3, 4, 5, 6, 8)},
    "groups of 32, f16": lambda: linears(mlx(4, 32, "F16"), told(4, 32), dtype="MLX-4bit", **SHAPE),
    "3 bits, groups of 128": lambda: linears(mlx(3, 128), told(3, 128), dtype="MLX-3bit", rows=256, cols=384),
    "experts": lambda: fused_linears(mlx(4), told(4), dtype="MLX-4bit", **SHAPE),
    "experts, 6 bits": lambda: fused_linears(mlx(6), told(6), dtype="MLX-6bit", **SHAPE),
    "mxfp4": lambda: linears(mlx_floats("mxfp4"), told(4, 32, mode="mxfp4"), dtype="MXFP4", **SHAPE),
    "mxfp8": lambda: linears(mlx_floats("mxfp8"), told(8, 32, mode="mxfp8"), dtype="MXFP8", **SHAPE),
    "nvfp4": lambda: linears(mlx_floats("nvfp4"), told(4, 16, mode="nvfp4"), dtype="NVFP4", **SHAPE),
    "mxfp4 experts": lambda: fused_linears(mlx_floats("mxfp4"), told(4, 32), dtype="MXFP4", **SHAPE),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_lines_longer_than_a_tile(tmp_path, monkeypatch, bits):
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 512)
    model = linears(mlx(bits), told(bits), dtype=f"MLX-{bits}bit", rows=64, cols=1024,
                    places={(0, None): DENSE.format(0)})  # fmt: skip
    model = model._replace(tensors={name: model.tensors[name] for name in model.read})
    write(tmp_path, model)
    check(tmp_path, model)


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_modules_with_bits_of_their_own(tmp_path, key):
    four = linears(mlx(4), None, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    six = linears(mlx(6, 32), None, dtype="", places={(1, None): DENSE.format(1)}, **SHAPE)
    write_tensors(tmp_path, {**four.tensors, **six.tensors})
    said = {**told(4), DENSE.format(1): told(6, 32), "model.embed_tokens": False}
    write_config(tmp_path, model_type="llama", hidden_size=192, text_config={key: said})
    assert [p.matrix.encoding.name for p in open_folder(tmp_path)[1]] == ["MLX-4bit", "MLX-6bit"]
    found = dense(tmp_path)
    for place, down in {**four.downs, **six.downs}.items():
        np.testing.assert_array_equal(found[place], down)


STORED = "model.layers.{}.mlp.down_proj"
FOUR, EIGHT = {"bits": 4, "group_size": 64}, {"bits": 8, "group_size": 32}  # as many words and groups a row


def written(folder, said, *prefixes):
    """Write a module of 8 bits in groups of 32, by name in layer 0 of each prefix, where 4 in 64 would fit too."""
    module = linears(mlx(8, 32), None, dtype="", places={(0, None): STORED.format(0)}, rows=32, cols=64)
    tensors = {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in module.tensors.items()}
    write_tensors(folder, tensors)
    write_config(folder, model_type="llama", hidden_size=32, quantization={**FOUR, **said})
    return module.downs[0, None]


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("", f"language_model.{STORED}"),
        ("", "layers.{}.mlp.down_proj"),
        ("language_model.", STORED),
        ("language_model.", "layers.{}.mlp.down_proj"),
        ("", STORED),
    ],
)
def test_bits_of_their_own_under_another_prefix(tmp_path, prefix, name):
    down = written(tmp_path, {name.format(0): EIGHT, name.format(1): FOUR}, prefix)
    np.testing.assert_array_equal(dense(tmp_path)[0, None], down)


def test_the_exact_name_counts_first(tmp_path):
    said = {f"language_model.{STORED.format(0)}": FOUR, STORED.format(0): EIGHT}
    down = written(tmp_path, said, "")
    np.testing.assert_array_equal(dense(tmp_path)[0, None], down)
    other = {STORED.format(0): EIGHT, f"vision.{STORED.format(0)}": FOUR}
    written(tmp_path, other, "", "vision.")
    names = {each.module: each.matrix.encoding.name for each in open_folder(tmp_path)[1]}
    assert names == {STORED.format(0): "MLX-8bit", f"vision.{STORED.format(0)}": "MLX-4bit"}


def test_a_name_that_ends_no_whole_part_says_nothing(tmp_path):
    written(tmp_path, {f"a_{STORED.format(0)}": EIGHT, "down_proj.": EIGHT, "": EIGHT, ".".join("x" * 9999): EIGHT}, "")
    assert [each.matrix.encoding.name for each in open_folder(tmp_path)[1]] == ["MLX-4bit"]


@pytest.mark.parametrize(
    ("said", "prefixes"),
    [
        ({f"a.{STORED.format(0)}": EIGHT, f"b.{STORED.format(0)}": FOUR}, ("",)),
        ({STORED.format(0): EIGHT}, ("a.", "b.")),
    ],
)
def test_names_that_may_mean_several_are_refused(tmp_path, said, prefixes):
    written(tmp_path, said, *prefixes)
    with pytest.raises(ArchitectureError, match=r"leaves open whether as 8 bits in groups of 32 or 4 bits in groups"):
        open_folder(tmp_path)


def test_a_quantizer_that_an_older_conversion_left_in_the_config(tmp_path):
    model = linears(mlx(4), {"quant_method": "fp8", "weight_block_size": [128, 128]}, dtype="MLX-4bit", **SHAPE)
    write_tensors(tmp_path, model.tensors)
    write_config(tmp_path, quantization_config=model.quantization, quantization=told(4), hidden_size=192)
    check(tmp_path, model._replace(read=model.read))


# By MLX 0.32.4, of sin(1), sin(2), … sin(32) in float32: the words' bytes, the scales (and the bias), the first six
# numbers that it makes of them, and the sum of all magnitudes.
INTEGERS_BY_MLX = {
    2: (
        "2ff4477fe00bfed1",
        0.4999951124191284,
        -0.9999902248382568,
        [0.499995, 0.499995, 0.0, -0.99999, -0.99999, -0.499995],
        17.999824047088623,
    ),
    3: (
        "7f83fd16e47f487f06fb1bc8",
        0.2499975562095642,
        -0.9999902248382568,
        [0.749993, 0.749993, 0.249998, -0.749993, -0.99999, -0.249998],
        19.999804079532623,
    ),
    4: (
        "ff2960fd4b40fb6d20f98f11e7af03c5",
        0.1249987781047821,
        -0.9999902248382568,
        [0.874991, 0.874991, 0.124999, -0.749993, -0.99999, -0.249998],
        19.749806761741638,
    ),
    5: (
        "fd4b12d8fef78073bf5e81c8dfa1108e7f5a80ca",
        0.06249938905239105,
        -0.9999902248382568,
        [0.812492, 0.937491, 0.124999, -0.749993, -0.937491, -0.249998],
        20.312301337718964,
    ),
    6: (
        "7b5f22c155ffed033ced5f5f0152f63b580c1cfea70b30c9",
        0.031249694526195526,
        -0.9999902248382568,
        [0.843742, 0.906241, 0.156248, -0.749993, -0.968741, -0.281247],
        20.437300443649292,
    ),
    8: (
        "ecf4921f055cd4ffb53a003bb6ffd35b052093f5eb7f140c6fe2faa32b024cc7",
        0.0078124236315488815,
        -0.9999902248382568,
        [0.843742, 0.906241, 0.140624, -0.757805, -0.960928, -0.281247],
        20.4919872879982,
    ),
}
FLOATS_BY_MLX = {
    "mxfp4": ("65d1ae65c3ce63a5de6105ed5926ed4b", [125], [0.75, 1.0, 0.125, -0.75, -1.0, -0.25], 20.5),
    "mxfp8": (
        "757761f4f7e973786df1f8f16d7872e9f7f4627775c1f6f6e0747769f3f8ed71",
        [119],
        [0.8125, 0.9375, 0.140625, -0.75, -0.9375, -0.28125],
        20.4931640625,
    ),
    "nvfp4": (
        "76e2bf76d4df74b6ef7206fe6a37fe5c",
        [35, 35],
        [0.6875, 1.03125, 0.171875, -0.6875, -1.03125, -0.2578125],
        20.3671875,
    ),
}


def words_of(text):
    return np.frombuffer(bytes.fromhex(text), np.uint32)[None]


def stored_alone(folder, stored, quantization):
    write_tensors(folder, {f"{DENSE.format(0)}.{end}": np.array(tensor) for end, tensor in stored.items()})
    write_config(folder, model_type="llama", hidden_size=1, quantization=quantization)
    return dense(folder)[0, None]


@pytest.mark.parametrize("bits", INTEGERS_BY_MLX)
def test_integers_as_mlx_has_them(tmp_path, bits):
    words, scale, bias, first, total = INTEGERS_BY_MLX[bits]
    stored = {"weight": words_of(words), "scales": np.float32([[scale]]), "biases": np.float32([[bias]])}
    down = stored_alone(tmp_path, stored, told(bits, 32))
    assert down.shape == (1, 32)
    np.testing.assert_allclose(down[0, :6], first, atol=1e-6)
    assert np.abs(down).sum() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("mode", FLOATS_BY_MLX)
def test_floats_as_mlx_has_them(tmp_path, mode):
    words, scales, first, total = FLOATS_BY_MLX[mode]
    down = stored_alone(tmp_path, {"weight": words_of(words), "scales": np.uint8([scales])}, {"mode": mode})
    assert down[0, :6].tolist() == first
    assert np.abs(down).sum() == total


@pytest.mark.parametrize(
    "mode", ["affine 2", "affine 3", "affine 4", "affine 5", "affine 6", "affine 8", "mxfp4", "nvfp4"]
)
def test_against_mlx_itself(tmp_path, mode):
    mx = pytest.importorskip("mlx.core")
    mx.set_default_device(mx.cpu)
    weight = mx.array(np.random.default_rng(0).normal(0, 0.02, (64, 256)).astype(np.float32))
    name, _, bits = mode.partition(" ")
    how = {"mode": name, **({"bits": int(bits), "group_size": 64} if bits else {})}
    stored = dict(zip(("weight", "scales", "biases"), map(np.array, mx.quantize(weight, **how)), strict=False))
    quantized = [mx.array(stored[end]) for end in stored]
    expected = np.array(mx.dequantize(*quantized, **how).astype(mx.float32))
    np.testing.assert_array_equal(stored_alone(tmp_path, stored, how), expected)


# What cannot be read

BROKEN = {
    "no scales": ({"scales": None}, {}, "scales"),
    "no biases": ({"biases": None}, {}, "scales"),
    "scales of other rows": ({"scales": np.ones((3, 5), np.float32)}, {}, "scales"),
    "biases of other groups": ({"biases": np.ones((192, 4), np.float32)}, {}, "biases"),
    "scales without groups": ({"scales": np.ones((192, 0), np.float32)}, {}, "scales"),
    "one scale": ({"scales": np.array(1, np.float32)}, {}, "scales"),
    "integer scales": ({"scales": np.ones((192, 5), np.int32)}, {}, "scales"),
    "a number of bits that do not fit": ({}, {"bits": 8}, "MLX"),
    "groups that do not fit": ({}, {"group_size": 32}, "MLX"),
    "no word of it in the config": ({}, {"bits": None}, "MLX"),
    "words in one dimension": ({"weight": np.ones(40, np.uint32)}, {}, "weight"),
    "words in four dimensions": ({"weight": np.ones((1, 1, 192, 40), np.uint32)}, {}, "weight"),
    "floats in no known mode": ({"biases": None, "scales": np.ones((192, 4), np.uint8)}, {}, "MLX"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    changes, config, said = BROKEN[name]
    model = linears(mlx(4), {**told(4), **config}, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    for end, tensor in changes.items():
        del model.tensors[f"{DENSE.format(0)}.{end}"]
        if tensor is not None:
            model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)) as caught:
        open_folder(tmp_path)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
