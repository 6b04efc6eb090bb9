"""All tensors of two versions, against NumPy on both read whole; what is read of what both share, of the Hub too."""

import json
import tracemalloc

import numpy as np
import pytest
from checkpoints import DTYPES, LLAMA_DOWN, random_downs, tensor_ranges, write_config, write_tensors
from encoders import bnb_4bit, bnb_int8, mlx, nvfp4, pack_quantized
from quantized import decoys, fp8, gptq, linears, mxfp4, write
from safetensors.numpy import load_file

from analyzer.base.errors import ResultError
from analyzer.diff.tensors.comparing import compare_tensors
from analyzer.numbers import matrices


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(matrices, "TILE_NUMBERS", 64)  # so that each tensor comes in several


def write_model(folder, tensors, **options):
    write_tensors(folder, tensors, **options)
    write_config(folder, model_type="llama", hidden_size=8, num_hidden_layers=2)
    return folder


def model_tensors(dtype="BF16", seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,), "model.scale": ()}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": (8, 8),
            LLAMA_DOWN.format(layer): (8, 20),
            f"model.layers.{layer}.conv.weight": (4, 1, 3),
        }
    return {name: np.asarray(generator.normal(0, 1, shape)).astype(DTYPES[dtype]) for name, shape in shapes.items()}


def compared(old, new, **options):
    result = compare_tensors(old, new, **options)
    return result, {tensor.name: tensor for tensor in result.tensors}


def figures(old, new):
    """Return norm of change, cosine, and share of unchanged values, by NumPy on whole tensors."""
    old, new = (np.asarray(each).astype(np.float64).ravel() for each in (old, new))
    unchanged = float(((old == new) | (np.isnan(old) & np.isnan(new))).mean())
    finite = np.isfinite(old) & np.isfinite(new)
    old, new = old[finite], new[finite]
    norms = np.linalg.norm(old), np.linalg.norm(new)
    return np.linalg.norm(new - old) / norms[0], old @ new / norms[0] / norms[1], unchanged


def assert_figures(tensor, old, new, rel=1e-12):
    assert (tensor.relative_change, tensor.cosine, tensor.unchanged) == pytest.approx(figures(old, new), rel=rel)


def test_every_tensor_against_numpy(tmp_path):
    old = model_tensors()
    new = {name: tensor.copy() for name, tensor in old.items()}
    new["model.norm.weight"] *= DTYPES["BF16"].type(1.5)
    new[LLAMA_DOWN.format(1)][2, 3] = 40
    new["model.layers.0.conv.weight"][1, 0, :2] = 0
    new["model.scale"] = np.asarray(-old["model.scale"])
    paths = write_model(tmp_path / "old", old, shards=2), write_model(tmp_path / "new", new, shards=3)
    result, found = compared(*paths)
    changed = {"model.norm.weight", LLAMA_DOWN.format(1), "model.layers.0.conv.weight", "model.scale"}
    assert {name for name, tensor in found.items() if tensor.state == "changed"} == changed
    assert {tensor.state for tensor in found.values()} == {"changed", "same"}
    assert found.keys() == old.keys()
    for name, tensor in found.items():
        assert_figures(tensor, old[name], new[name])
        assert (tensor.old_shape, tensor.new_dtype, tensor.nonfinite) == (old[name].shape, "BF16", 0)
    assert set(result.unexpected) == changed
    data = sum(tensor.nbytes for tensor in old.values())
    assert data < result.bytes_read / 2 < data + 8000  # each version once, and headers
    assert compare_tensors(*paths) == result


def test_what_only_one_has_other_shapes_and_dtypes(tmp_path):
    old = model_tensors("F32")
    new = {name: tensor.copy() for name, tensor in old.items()}
    new["lm_head.weight"] = new.pop("model.norm.weight")
    new["model.embed_tokens.weight"] = np.concatenate([new["model.embed_tokens.weight"]] * 2)
    narrow = {LLAMA_DOWN.format(0): "BF16", LLAMA_DOWN.format(1): "F64"}
    new |= {name: old[name].astype(DTYPES[dtype]) for name, dtype in narrow.items()}
    _, found = compared(write_model(tmp_path / "old", old), write_model(tmp_path / "new", new))
    states = {name: tensor.state for name, tensor in found.items() if tensor.differs}
    assert states == {
        "model.norm.weight": "removed",
        "lm_head.weight": "added",
        "model.embed_tokens.weight": "reshaped",
        LLAMA_DOWN.format(0): "changed",
        LLAMA_DOWN.format(1): "dtype changed",
    }
    rounded = found[LLAMA_DOWN.format(0)]
    assert (rounded.old_dtype, rounded.new_dtype) == ("F32", "BF16")
    assert_figures(rounded, old[LLAMA_DOWN.format(0)], new[LLAMA_DOWN.format(0)])
    assert found[LLAMA_DOWN.format(1)].unchanged == 1.0
    assert found["model.embed_tokens.weight"].relative_change is None


def test_values_that_are_not_finite_and_norms_of_zero(tmp_path):
    old, new = model_tensors("F32"), model_tensors("F32")
    name = LLAMA_DOWN.format(0)
    old[name][0, :3] = [np.nan, np.inf, 1.0]
    new[name][0, :3] = [np.nan, 2.0, np.inf]
    new[name][1] *= 2
    old["model.norm.weight"][:] = 0.0
    new["model.scale"] = np.asarray(np.float32(np.nan))
    _, found = compared(write_model(tmp_path / "old", old), write_model(tmp_path / "new", new))
    assert_figures(found[name], old[name], new[name])
    assert (found[name].nonfinite, found[name].unchanged) == (3, (160 - 2 - 20) / 160)
    norm, scale = found["model.norm.weight"], found["model.scale"]
    assert (norm.state, norm.relative_change, norm.cosine) == ("changed", None, None)
    assert (scale.state, scale.relative_change, scale.nonfinite) == ("changed", None, 1)


PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
}
QUANTIZED = {
    "fp8": (fp8(), {"quant_method": "fp8"}),
    "nvfp4": (nvfp4(), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "mlx": (mlx(4), {"bits": 4, "group_size": 64}),
    "int4": (pack_quantized(), PACKED),
    "nf4": (bnb_4bit(nested=True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "int8": (bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


@pytest.mark.parametrize("form", QUANTIZED)
def test_a_quantized_version_goes_through_its_encoding(tmp_path, form):
    model = linears(*QUANTIZED[form], dtype=form, rows=64, cols=128)
    write(tmp_path / "new", model)
    generator = np.random.default_rng(1)
    downs = {
        LLAMA_DOWN.format(layer): (down + generator.normal(0, 0.01, down.shape)).astype(np.float32)
        for layer, down in enumerate(model.downs.values())
    }
    write_model(tmp_path / "old", downs)
    _, found = compared(tmp_path / "old", tmp_path / "new")
    assert {name for name, tensor in found.items() if tensor.state == "changed"} == set(downs)
    for name, down in zip(downs, model.downs.values(), strict=True):
        assert len(found[name].stored) > 1
        assert_figures(found[name], downs[name], down, rel=1e-6)


def test_stacked_experts_are_cut_where_the_other_version_has_them_one_by_one(tmp_path):
    generator = np.random.default_rng(0)
    ends, values = mxfp4(generator, 3, 64, 96, 1.0)
    name = "model.layers.0.mlp.experts.down_proj"
    write_tensors(tmp_path / "new", decoys(1, 64) | {f"{name}{end}": tensor for end, tensor in ends.items()})
    write_config(tmp_path / "new", model_type="gpt_oss", quantization_config={"quant_method": "mxfp4"})
    old = np.ascontiguousarray(values * 1.25, np.float32)
    write_tensors(tmp_path / "old", decoys(1, 64) | {name: old})
    write_config(tmp_path / "old", model_type="gpt_oss")
    _, found = compared(tmp_path / "old", tmp_path / "new")
    assert found[name].old_shape == (3, 64, 96)
    assert_figures(found[name], old, values)


def test_what_cannot_be_held_against_each_other_is_said(tmp_path):
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    model = linears(gptq(), said, dtype="GPTQ-4bit", rows=64, cols=128)
    write(tmp_path / "gptq", model)
    downs = {LLAMA_DOWN.format(n): down.astype(np.float32) for n, down in enumerate(model.downs.values())}
    write_model(tmp_path / "old", downs)
    _, found = compared(tmp_path / "old", tmp_path / "gptq")
    assert {(found[name].state, found[name].note) for name in downs} == {
        ("not compared", "one is stored the other way round")
    }

    codes = {"model.layers.0.mlp.down_proj.codes": np.arange(160, dtype=np.int16).reshape(8, 20)}
    positions = {"position_ids": np.arange(40, dtype=np.int64)}
    others = {"model.layers.0.mlp.up_proj.weight": np.arange(64, dtype=np.int8).reshape(8, 8)}
    write_model(tmp_path / "a", random_model() | codes | positions | others)
    codes = {name: np.where(tensor < 16, 0, tensor).astype(np.int16) for name, tensor in codes.items()}
    others = {name: np.where(tensor % 8 == 1, 0, tensor).astype(np.int8) for name, tensor in others.items()}
    write_model(tmp_path / "b", random_model() | codes | positions | others)
    _, found = compared(tmp_path / "a", tmp_path / "b")
    states = {name: (tensor.state, tensor.unchanged) for name, tensor in found.items() if tensor.nonfinite is None}
    assert states == {
        "model.layers.0.mlp.down_proj.codes": ("changed", 145 / 160),
        "model.layers.0.mlp.up_proj.weight": ("changed", 56 / 64),
        "position_ids": ("same", 1.0),
    }
    assert "stored as I8" in found["model.layers.0.mlp.up_proj.weight"].note


def random_model():
    return {LLAMA_DOWN.format(layer): down for layer, down in enumerate(random_downs())}


def test_the_same_file_is_not_read(hub, tmp_path):
    old = model_tensors()
    new = {**old, "model.norm.weight": old["model.norm.weight"] * DTYPES["BF16"].type(2)}
    first = hub.add("owner/tiny", write_model(tmp_path / "old", old, shards=3))
    second = hub.add("owner/tiny", write_model(tmp_path / "new", new, shards=3))
    result, found = compared(f"owner/tiny@{first}", f"owner/tiny@{second}")
    assert [name for name, tensor in found.items() if tensor.differs] == ["model.norm.weight"]
    shards = sorted((tmp_path / "new").glob("*.safetensors"))
    (read,) = (shard for shard in shards if "model.norm.weight" in load_file(shard))
    assert result.bytes_shared == sum(t.nbytes for s in shards if s != read for t in load_file(s).values())
    same_file = {tensor.name for tensor in found.values() if tensor.state == "same file"}
    assert same_file == old.keys() - load_file(read).keys()
    assert result.bytes_read == sum(hub.body_bytes.values())

    linked = tmp_path / "linked"
    linked.mkdir()
    for path in (tmp_path / "new").iterdir():
        (linked / path.name).symlink_to(path)
    itself, found = compared(tmp_path / "new", linked)
    assert itself.identical
    assert {tensor.state for tensor in found.values()} == {"same file"}
    headers = 2 * sum(min(ends[0] for ends in tensor_ranges(shard).values()) for shard in shards)
    beside = ("config.json", "model.safetensors.index.json")
    small = 2 * sum((tmp_path / "new" / name).stat().st_size for name in beside)
    assert itself.bytes_read == headers + small


def test_memory_is_bounded_by_blocks_and_not_by_tensors(tmp_path, monkeypatch):
    monkeypatch.undo()  # tiles as they are
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    values = np.random.default_rng(0).normal(0, 1, (4096, 4096)).astype(DTYPES["BF16"])
    paths = [tmp_path / "old", tmp_path / "new"]
    for path in paths:
        write_model(path, {LLAMA_DOWN.format(0): values})
        values[0, 0] = 9
    tracemalloc.start()
    _, found = compared(*paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[LLAMA_DOWN.format(0)].unchanged == 1 - 1 / values.size
    assert peak < values.nbytes / 2


def test_patterns_say_what_may_differ(tmp_path):
    old = model_tensors()
    new = {**old, LLAMA_DOWN.format(1): old[LLAMA_DOWN.format(0)], "lm_head.weight": old["model.embed_tokens.weight"]}
    paths = write_model(tmp_path / "old", old), write_model(tmp_path / "new", new)
    assert compare_tensors(*paths, expect=["model.layers.*"]).unexpected == ("lm_head.weight",)
    assert compare_tensors(*paths, expect=["*.down_proj.weight", "lm_head.*"]).unexpected == ()
    with pytest.raises(ResultError, match=r"--expect '\*\.gate_proj\.weight' names no tensor of either"):
        compare_tensors(*paths, expect=["lm_head.weight", "*.gate_proj.weight"])
    with pytest.raises(ResultError, match="--expect '' names no tensor of either"):
        compare_tensors(*paths, expect=[""])
    write_model(tmp_path / "other", {f"x.{name}": tensor for name, tensor in old.items()})
    with pytest.raises(ResultError, match="have no tensor of the same name"):
        compare_tensors(paths[0], tmp_path / "other")
    (tmp_path / "saved.json").write_text(json.dumps({}))
    with pytest.raises(ResultError, match="is no model: --all-tensors compares models"):
        compare_tensors(paths[0], tmp_path / "saved.json")
