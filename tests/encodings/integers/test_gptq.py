"""GPTQ's integers of every number of bits, by whatever quantizer, and per module."""

import numpy as np
import pytest
from checkpoints import write_config, write_tensors
from encoders import gptq_bits
from quantized import AWQ as AWQ_CONFIG
from quantized import DENSE, GPTQ, GPTQ_V1, GPTQ_V2, awq, check, dense, gptq, linears, open_folder, write

from analyzer.base.errors import ArchitectureError
from analyzer.scan.scanner import scan

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

SHAPE = {"rows": 192, "cols": 320}


def auto_round(packing_format, bits=4, **more):
    return {"quant_method": "auto-round", "bits": bits, "sym": False, "packing_format": packing_format, **more}


def config(bits, group=64, **more):
    return {**GPTQ_V1, "bits": bits, "group_size": group, **more}


MODELS = {
    **{f"{bits} bits": lambda bits=bits: linears(gptq_bits(bits), config(bits), dtype=f"GPTQ-{bits}bit", **SHAPE)
       for bits in (2, 3, 4, 8)},
    **{f"{bits} bits, second version": lambda bits=bits: linears(
        gptq_bits(bits, offset=0), {**GPTQ_V2, "bits": bits}, dtype=f"GPTQ-{bits}bit", **SHAPE)
       for bits in (2, 3, 4, 8)},
    **{f"{bits} bits, act order": lambda bits=bits: linears(
        gptq_bits(bits, desc_act=True), config(bits, desc_act=True), dtype=f"GPTQ-{bits}bit", **SHAPE)
       for bits in (2, 3, 8)},
    **{f"{bits} bits, no g_idx": lambda bits=bits: linears(
        gptq_bits(bits, g_idx=False), config(bits), dtype=f"GPTQ-{bits}bit", **SHAPE)
       for bits in (2, 3, 8)},
    "groups that config.json does not tell": lambda: linears(
        gptq_bits(4, g_idx=False), config(4, None), dtype="GPTQ-4bit", **SHAPE),
    "groups of another module": lambda: linears(
        gptq_bits(8, 32, g_idx=False), config(4, 128), dtype="GPTQ-8bit", **SHAPE),
    "auto-round as gptq": lambda: linears(
        gptq_bits(4), auto_round("auto_round:auto_gptq", group_size=64), dtype="GPTQ-4bit", **SHAPE),
    "auto-round as gptq, without its prefix": lambda: linears(
        gptq_bits(4), auto_round("auto_gptq", group_size=64), dtype="GPTQ-4bit", **SHAPE),
    "auto-round as awq, without its prefix": lambda: linears(
        awq(), auto_round("auto_awq", group_size=64), dtype="AWQ-4bit", **SHAPE),
    "auto-round, no format": lambda: linears(
        gptq_bits(4), {"quant_method": "auto-round", "group_size": 64}, dtype="GPTQ-4bit", **SHAPE),
    "auto-round, zeros as they are": lambda: linears(
        gptq_bits(4, offset=0), auto_round("auto_round"), dtype="GPTQ-4bit", **SHAPE),
    "auto-round, 2 bits": lambda: linears(
        gptq_bits(2, offset=0, g_idx=False), auto_round("auto_round", 2), dtype="GPTQ-2bit", **SHAPE),
    "auto-round as awq": lambda: linears(
        awq(), auto_round("auto_round:auto_awq", group_size=64), dtype="AWQ-4bit", **SHAPE),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_of_the_values(tmp_path, name):
    model = MODELS[name]()
    write(tmp_path, model)
    check(tmp_path, model)
    check(tmp_path, model, block_bytes=1000)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_lines_longer_than_a_tile(tmp_path, monkeypatch, bits):
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 512)
    places = {(0, None): DENSE.format(0)}
    model = linears(gptq_bits(bits), config(bits), dtype=f"GPTQ-{bits}bit", rows=256, cols=96, places=places)
    model = model._replace(tensors={name: model.tensors[name] for name in model.read})
    write(tmp_path, model)
    check(tmp_path, model)


@pytest.mark.parametrize(
    "said",
    [
        config(4, 64, dynamic={"+:.*layers\\.1\\..*": {"bits": 8, "group_size": 32}, "-:.*layers\\.2\\..*": {}}),
        auto_round("auto_round:auto_gptq", extra_config={DENSE.format(1): {"bits": 8}, DENSE.format(2): {"bits": 16}}),
    ],
    ids=["gptq", "auto-round"],
)
def test_modules_with_bits_of_their_own(tmp_path, said):
    four = linears(gptq_bits(4), None, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    eight = linears(gptq_bits(8, 32, g_idx=False), None, dtype="", places={(1, None): DENSE.format(1)}, **SHAPE)
    plain = np.random.default_rng(0).normal(0, 0.02, (192, 320)).astype(np.float32)
    write_tensors(tmp_path, {**four.tensors, **eight.tensors, f"{DENSE.format(2)}.weight": plain})
    write_config(tmp_path, model_type="llama", hidden_size=192, quantization_config=said)
    assert [p.matrix.encoding.name for p in open_folder(tmp_path)[1]] == ["GPTQ-4bit", "GPTQ-8bit", "F32"]
    found = dense(tmp_path)
    for place, down in {**four.downs, **eight.downs, (2, None): plain}.items():
        np.testing.assert_array_equal(found[place], down)


# By auto-round 0.16.1, in 3 bits: the number of row r and col c is (5 r + 3 c + r c // 7) modulo 8, its zero 1 + r
# modulo 7, its scale 1 / 4. The zeros as they are, and as GPTQ's first version has them.
NUMBERS_BY_AUTO_ROUND = (
    "98c3ab98c51c7e0e2a7635bc5743ec6afcaca6e021f87d964ed33404fbbeeffb2008a2694d6379dfb23e308d1f98ea0344e5a1f1a9ce78"
    "671eaa331e4375e68ca85ebd3ad52b74e87a852e66a7d0e514ccbbbc8279977779a6602aefcb4be15d3017b80b9df07281c2cd29772fa7"
    "e0e59c82bb9cc15d6e0a2e3725b85302fc6ec3ab98c3af8657b11c624eb1885d0db1673905bfd314c4be41f0fbbebeeffbbe9acab2ac09"
    "a6a9acf58168ac537d60aace5827aa3c341eaaaa331eaa870ed59975eacc99e0c58b994ea18397ba9c42972978799797777997f2523085"
    "602e2f85dc09ee843be5e682a7c0a58214bc9c8282bb9c82ee9653f05d724af0c94d09f0ab98c3abab9853ccabe0e5f0ab217635cb2988"
    "5dcb6a1a82cbb2aca6effbbeefeffb4e10ef03d134ef4463790f4cf5810f8d07c60fd599ea331eaa33331e3a543366cc7833a75ebd53af"
    "e0c553e8720a5330852e77799777777927987781b9bc77c24be197cadd09970b6e4e9753f072bb9c82bbbb9c12dcbbe4a4e0bb253725"
)
ZEROS_BY_AUTO_ROUND = {"auto_round": "d1583f1aeb4763fd68ac1f8d", "auto_round:auto_gptq": "88c61ad158231a6b44638d68"}


@pytest.mark.parametrize("packing_format", ZEROS_BY_AUTO_ROUND)
def test_3_bits_as_auto_round_has_them(tmp_path, packing_format):
    stored = {
        "qweight": np.frombuffer(bytes.fromhex(NUMBERS_BY_AUTO_ROUND), np.int32).reshape(3, 32),
        "qzeros": np.frombuffer(bytes.fromhex(ZEROS_BY_AUTO_ROUND[packing_format]), np.int32).reshape(1, 3),
        "scales": np.full((1, 32), 0.25, np.float16),
    }
    write_tensors(tmp_path, {f"{DENSE.format(0)}.{end}": tensor for end, tensor in stored.items()})
    write_config(tmp_path, model_type="llama", quantization_config=auto_round(packing_format, 3))
    row, col = np.mgrid[:32, :32]
    expected = ((5 * row + 3 * col + row * col // 7) % 8 - (1 + row % 7)) / 4
    np.testing.assert_array_equal(dense(tmp_path)[0, None], expected)


# What cannot be read

BROKEN = {
    "5 bits": (lambda: gptq_bits(5), {}),
    "3 bits of a part of 32 columns": (lambda: gptq_bits(3), {"qweight": np.ones((29, 192), np.int32)}),
    "3 bits of too many rows": (
        lambda: gptq_bits(3),
        {
            "qweight": np.ones((30, 16416), np.int32),
            "scales": np.ones((5, 16416), np.float16),
            "qzeros": np.ones((5, 1539), np.int32),
        },
    ),
    "zeros of another number of bits": (lambda: gptq_bits(4), {"qzeros": np.ones((5, 30), np.int32)}),
    "zeros of another dtype": (lambda: gptq_bits(4), {"qzeros": np.ones((5, 24), np.int64)}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    encode, changes = BROKEN[name]
    model = linears(encode(), GPTQ, dtype="", places={(0, None): DENSE.format(0)}, **SHAPE)
    for end, tensor in changes.items():
        model.tensors[f"{DENSE.format(0)}.{end}"] = tensor
    write(tmp_path, model)
    with pytest.raises(ArchitectureError, match=DENSE.format(0)) as caught:
        scan(*open_folder(tmp_path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("encode", "said"),
    [(awq(), GPTQ), (gptq(), AWQ_CONFIG), (gptq(), auto_round("auto_round:auto_awq")), (gptq(), None)],
)
def test_a_layout_that_config_json_does_not_tell_is_refused(tmp_path, encode, said):
    write(tmp_path, linears(encode, said, dtype="", rows=192, cols=384))
    with pytest.raises(ArchitectureError, match=DENSE.format(0)):
        open_folder(tmp_path)
