"""Quantized checkpoints that people have, as tiny ones: each matrix is what was encoded, and all else is a decoy."""

import json

import numpy as np
import pytest
from checkpoints import DTYPES, write_config, write_tensors
from encoders import mxfp4_pairs, nvfp4
from layouts import HIDDEN, INNER, ROUTED
from quantized import fp8

from analyzer.analyze.scanning import scan_model
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource

DECOY = 9000.0
INPUTS_OF = (("w2", "w1"), ("w2", "w3"), ("down_proj", "up_proj"))


def encoded(modules, shapes):
    """Return tensors of modules, (name, place) -> (encode, rows, cols), with decoys; and values by place.

    What projects into them is stored as they are.
    """
    generator = np.random.default_rng(0)
    tensors = {name: np.full(shape, DECOY, DTYPES["BF16"]) for name, shape in shapes.items()}
    values = {}
    for (module, place), (encode, rows, cols) in modules.items():
        stored, values[place] = encode(generator, rows, cols, 1)
        tensors |= {f"{module}.{end}": np.array(tensor) for end, tensor in stored.items()}
        for name in [module.replace(*each) for each in INPUTS_OF if module.endswith(each[0])]:
            stored, _ = encode(generator, cols, rows, 128)
            tensors |= {f"{name}.{end}": np.array(tensor) for end, tensor in stored.items()}
    return tensors, values


def check_encoded(folder, values, dtypes):
    """Compare a scan with the values of each place, and with the dtypes that its matrices are said to have."""
    result = scan_model(FolderSource(folder), ScanSettings(top=1, use_cache=False))
    found = {(each.tower, each.layer, each.expert): each for each in result.tensors}
    assert {place: each.dtype for place, each in found.items()} == dtypes
    largest = {place: np.nanmax(np.abs(down)) for place, down in values.items()}
    assert {place: each.max_abs for place, each in found.items()} == pytest.approx(largest)
    (best,) = result.outliers
    assert abs(best.value) == pytest.approx(max(largest.values()))
    assert values[best.tower, best.layer, best.expert][best.row, best.col] == pytest.approx(best.value)
    assert result.unread == ()
    return result


POWERS_OF_BLOCKS = fp8(name="scale", scale_dtype="F8_E8M0")


@pytest.mark.parametrize(
    ("routed", "dtype", "said"),
    [(mxfp4_pairs(), "MXFP4", {"expert_dtype": "fp4"}), (POWERS_OF_BLOCKS, "F8_E4M3", {})],
    ids=["fp4", "fp8"],
)
def test_deepseeks_own_names_and_numbers(tmp_path, routed, dtype, said):
    """Routed experts in FP4 and the shared ones in FP8, both with powers of two; or all of them in FP8."""
    modules, dtypes, shapes = {}, {}, {}
    for block, (tower, layer) in {"layers.0": (None, 0), "layers.1": (None, 1), "mtp.0": ("mtp", 0)}.items():
        shapes |= {f"{block}.ffn_norm.weight": (64,), f"{block}.ffn.gate.weight": (2, 64)}
        for expert in (0, 1, None):
            module = f"{block}.ffn." + ("shared_experts" if expert is None else f"experts.{expert}")
            encode = POWERS_OF_BLOCKS if expert is None else routed
            modules[f"{module}.w2", (tower, layer, expert)] = (encode, 64, 32)
            dtypes[tower, layer, expert] = "F8_E4M3" if expert is None else dtype
    tensors, values = encoded(modules, shapes)
    write_tensors(tmp_path, tensors)
    quantization = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128], **said}
    write_config(
        tmp_path, model_type="deepseek_v4", hidden_size=64, num_hidden_layers=2, n_routed_experts=2,
        num_nextn_predict_layers=1, quantization_config=quantization,
    )  # fmt: skip
    assert check_encoded(tmp_path, values, dtypes).num_layers == 2


@pytest.mark.parametrize("prefix", ["backbone.layers", "language_model.backbone.layers"])
def test_nemotrons_routed_experts_in_nvfp4(tmp_path, prefix):
    """Of mixed precision: the shared ones stay BF16."""
    modules, dtypes, shapes = {}, {}, {f"{prefix}.{layer}.norm.weight": (HIDDEN,) for layer in range(4)}
    shapes |= {f"{prefix}.0.mixer.in_proj.weight": (50, HIDDEN), f"{prefix}.0.mixer.out_proj.weight": (HIDDEN, 32)}
    shapes |= {f"{prefix}.2.mixer.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    for layer in (1, 3):
        mixer = f"{prefix}.{layer}.mixer"
        shapes[f"{mixer}.gate.weight"] = (4, HIDDEN)
        modules[f"{mixer}.shared_experts.down_proj", (None, layer, None)] = (plain, HIDDEN, INNER)
        dtypes[None, layer, None] = "BF16"
        for expert in range(4):
            modules[f"{mixer}.experts.{expert}.down_proj", (None, layer, expert)] = (nvfp4(), HIDDEN, 32)
            dtypes[None, layer, expert] = "NVFP4"
    tensors, values = encoded(modules, shapes)
    write_tensors(tmp_path, tensors)
    write_config(
        tmp_path, model_type="nemotron_h", hidden_size=HIDDEN, num_hidden_layers=4, n_routed_experts=4,
        quantization_config={"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
    )  # fmt: skip
    assert check_encoded(tmp_path, values, dtypes).num_layers == 4


def plain(generator, rows, cols, size):
    values = generator.normal(0, 0.001 * size, (rows, cols)).astype(DTYPES["BF16"])
    return {"weight": values}, values.astype(np.float64)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("number", ["BF16", "F8_E4M3"])
def test_mistrals_own_format(tmp_path, shards, number):
    """`consolidated` files, their index and params.json, and nothing else; FP8 with a `qscale_weight` of the tensor."""
    encode = plain if number == "BF16" else fp8(scale="scalar", scale_dtype="BF16", name="qscale_weight")
    modules = {("layers.0.feed_forward.w2", (None, 0, None)): (encode, HIDDEN, INNER)}
    shapes = {f"layers.{layer}.attention.wo.weight": (HIDDEN, HIDDEN) for layer in range(3)}
    for layer in (1, 2):
        shapes |= {f"layers.{layer}.gate.weight": (3, HIDDEN), f"layers.{layer}.ffn_norm.weight": (HIDDEN,)}
        for expert in range(3):
            module = f"layers.{layer}.experts.{expert}"
            modules[f"{module}.w2", (None, layer, expert)] = (encode, HIDDEN, ROUTED)
    tensors, values = encoded(modules, shapes)
    write_tensors(tmp_path, tensors, shards=shards)
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("model", "consolidated"))
    if shards > 1:
        index = tmp_path / "consolidated.safetensors.index.json"
        index.write_text(index.read_text().replace("model-", "consolidated-"))
    params = {"dim": HIDDEN, "n_layers": 3, "hidden_dim": INNER, "moe": {"num_experts": 3}}
    if number != "BF16":
        params["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    (tmp_path / "params.json").write_text(json.dumps(params))
    result = check_encoded(tmp_path, values, dict.fromkeys(values, number))
    assert (result.num_layers, result.hidden_size, result.experts) == (3, HIDDEN, 3)
    assert result.notes == ()
