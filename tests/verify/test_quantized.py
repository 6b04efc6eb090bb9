"""Quantized models run as the floats that they stand for: as the float model does that has these floats."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from checkpoints import write_tensors
from encoders import (
    awq_gemv,
    bnb_4bit,
    bnb_int8,
    gptq_bits,
    int_quantized,
    mlx,
    mlx_floats,
    mxfp8,
    nvfp4,
    pack_quantized,
)
from families import FAMILIES, build
from gguf_models import write_gguf_model
from mlx_models import rounded, write_mlx
from models import (
    COL,
    LAYER,
    PLANTED,
    PROMPT_IDS,
    ROW,
    TEXT,
    VALUE,
    found_at,
    plant,
    random_llama,
    save,
    save_tokenizer,
    settings,
    with_large_weights,
)
from quantized import AWQ, FP8, GPTQ, awq, fp8, gptq, mxfp4
from safetensors.numpy import load_file, save_file

from analyzer.analyze.running import open_runnable
from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import CheckpointError, ForwardError
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.forward.losses.plain import losses
from analyzer.forward.runner import Runner
from analyzer.projections.down_projections import down_projections
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model

HIDDEN, INNER, LAYERS = 128, 256, 4
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
ENCODERS = {
    "fp8 in blocks": (fp8(), FP8, "F8_E4M3"),
    "fp8 in rows": (fp8(scale="rows", name="weight_scale"), {**COMPRESSED, "format": "float-quantized"}, "F8_E4M3"),
    "mxfp8": (mxfp8(), {"quant_method": "modelopt", "quant_algo": "MXFP8"}, "MXFP8"),
    "nvfp4": (nvfp4(), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    "gptq": (gptq(), {**GPTQ, "checkpoint_format": "gptq"}, "GPTQ-4bit"),
    "gptq, act order": (gptq(desc_act=True), {**GPTQ, "desc_act": True}, "GPTQ-4bit"),
    "gptq, 8 bits": (gptq_bits(8), {**GPTQ, "bits": 8, "group_size": 64}, "GPTQ-8bit"),
    "awq": (awq(), AWQ, "AWQ-4bit"),
    "awq, gemv": (awq_gemv(64), {**AWQ, "version": "gemv"}, "AWQ-4bit"),
    "int4": (pack_quantized(), COMPRESSED, "INT4"),
    "int8": (int_quantized(), {**COMPRESSED, "format": "int-quantized"}, "INT8"),
    "mlx": (mlx(4), {"group_size": 64, "bits": 4}, "MLX-4bit"),
    "mlx's mxfp4": (mlx_floats("mxfp4"), {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MXFP4"),
    "nf4": (bnb_4bit(), {"quant_method": "bitsandbytes", "load_in_4bit": True}, "NF4"),
    "bnb int8": (bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "LLM.int8"),
}


def without_nan(stored, values):
    """Have no code that stands for no number, as no quantizer writes."""
    if np.isnan(values).any():
        stored["weight"] = np.where(np.isnan(values), np.zeros((), stored["weight"].dtype), stored["weight"])
        values = np.nan_to_num(values, nan=0.0)
    return stored, values


def pair(tmp_path, name):
    """Write a quantized Llama, and the float one that it stands for."""
    encode, quantization, _ = ENCODERS[name]
    generator = np.random.default_rng(0)
    model = random_llama(hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    for module, linear in model.named_modules():
        if isinstance(linear, torch.nn.Linear) and module != "lm_head":
            size = 1 if name.endswith(("mxfp8", "mxfp4")) else 0.3  # scales that are powers of two
            stored, values = without_nan(*encode(generator, *linear.weight.shape, size))
            del tensors[f"{module}.weight"]
            tensors |= {f"{module}.{end}": value for end, value in stored.items()}
            linear.weight.data = torch.from_numpy(values.astype(np.float32))
    floats = save(model, tmp_path / "floats")
    packed = tmp_path / "packed"
    write_tensors(packed, tensors)
    config = json.loads((floats / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    save_tokenizer(packed)
    return packed, floats


@pytest.mark.parametrize("name", ENCODERS)
def test_a_quantized_model_is_verified_as_the_floats_that_it_stands_for(tmp_path, name):
    packed, floats = pair(tmp_path, name)
    found, expected = (verify_model(FolderSource(folder), settings()) for folder in (packed, floats))
    assert len(found.layers) == LAYERS
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert (one.input_col, one.output_row, one.residual_channel) == (
            other.input_col,
            other.output_row,
            other.residual_channel,
        )
        assert one.residual_max == pytest.approx(other.residual_max, rel=1e-5)
    assert {w.coordinate for w in found.super_weights} == {w.coordinate for w in expected.super_weights}
    one, other = (next(iter(result.super_weights), None) for result in (found, expected))
    if other is not None:
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.loss_zeroed == pytest.approx(other.loss_zeroed, rel=1e-6)
    (note,) = found.notes
    assert note.startswith(f"its weights are stored as {ENCODERS[name][2]} and run as the floats that they stand for; ")
    assert expected.notes == ()


def mlx_pair(tmp_path):
    """Write a planted Llama in MLX's 4 bits, its embedding too, and the floats that this stands for."""
    return write_mlx(plant(random_llama()), tmp_path, encode=rounded)


def gguf_pair(tmp_path):
    """Write a planted Llama as a GGUF file of Q4_0, and the floats that this stands for."""
    return write_gguf_model(plant(random_llama()), tmp_path, "llama")


def gpt_oss(tmp_path):
    """Write a tiny gpt-oss with MXFP4 experts, and the float model of the library that it stands for."""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        vocab_size=19, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config).eval()
    generator = np.random.default_rng(1)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            for parameter in ("gate_up_proj", "down_proj"):
                inner, outer = getattr(module, parameter).shape[1:]
                stored, values = mxfp4(generator, 4, outer, inner, 1)
                del tensors[f"{name}.{parameter}"]
                tensors |= {f"{name}.{parameter}{end}": value for end, value in stored.items()}
                getattr(module, parameter).data = (
                    torch.from_numpy(values.astype(np.float32)).transpose(1, 2).contiguous()
                )
    floats, packed = save(model, tmp_path / "floats"), tmp_path / "packed"
    write_tensors(packed, tensors)
    said = {**json.loads((floats / "config.json").read_text()), "quantization_config": {"quant_method": "mxfp4"}}
    (packed / "config.json").write_text(json.dumps(said))
    save_tokenizer(packed)
    return packed, floats


def test_fused_experts_that_are_square_lie_as_the_library_has_them(tmp_path):
    packed, floats = gpt_oss(tmp_path)
    streams = []
    for folder in (packed, floats):
        runner, _ = open_runnable(FolderSource(folder)).build()
        streams += runner.streams([PROMPT_IDS], [UNTOUCHED])
    np.testing.assert_allclose(streams[0], streams[1], rtol=1e-5, atol=1e-5)
    assert verify_model(FolderSource(packed), settings()).tower is None


def test_what_is_zeroed_is_the_value_that_the_stored_weight_stands_for(tmp_path):
    zeroed = []
    for folder in pair(tmp_path, "awq"):
        runner, tokens = open_runnable(FolderSource(folder)).build()
        place = Coordinate(2, None, 7, int(np.abs(runner.weight_row(Coordinate(2, None, 7, 0).place, 7)).argmax()))
        zeroed.append(losses(runner, tokens.windows(TEXT), [UNTOUCHED, zeroing([place])]))
    assert zeroed[0] == pytest.approx(zeroed[1], rel=1e-6)
    assert abs(zeroed[0][1] - zeroed[0][0]) > 1e-4


@pytest.mark.parametrize("write", [mlx_pair, gguf_pair], ids=["mlx", "gguf"])
def test_a_planted_weight_is_confirmed_at_its_place(tmp_path, write):
    """The loss is that of the stock model with the floats that the stored weights stand for."""
    packed, floats = write(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32).eval()
    weight = stock.model.layers[LAYER].mlp.down_proj.weight
    _, tokens = open_runnable(open_model(str(packed))).build()
    windows = tokens.windows(TEXT)
    lost = []
    with torch.no_grad():
        for value in (weight[ROW, COL].item(), 0.0):
            weight[ROW, COL] = value
            logits = [stock(input_ids=torch.tensor([window.ids]), use_cache=False).logits[0] for window in windows]
            said = torch.cat([each[list(window.places)] for each, window in zip(logits, windows, strict=True)])
            targets = torch.tensor([target for window in windows for target in window.targets])
            lost.append(torch.nn.functional.cross_entropy(said, targets).item())
    result = verify_model(open_model(str(packed)), settings())
    planted = found_at(result, PLANTED)
    assert planted.status == "confirmed"
    assert planted.value == pytest.approx(VALUE, rel=0.1)
    assert (planted.loss, planted.loss_zeroed) == pytest.approx(lost, rel=1e-6)
    assert result.super_activations[0].layer == LAYER


@pytest.mark.parametrize("end", ["mlp.act.scales", "mlp.down_proj.pre_quant_scale", "mlp.down_proj.bias"])
def test_what_nothing_here_has_a_use_for_would_change_the_model_and_is_refused(tmp_path, end):
    packed, _ = pair(tmp_path, "awq")
    tensors = load_file(packed / "model.safetensors")
    save_file(tensors | {f"model.layers.1.{end}": np.full(INNER, 2, np.float32)}, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"is quantized, and nothing here has a use for model.layers.1.{end}"):
        verify_model(FolderSource(packed), settings())
    (packed / "model.safetensors").unlink()
    save_file(tensors | {"model.layers.1.mlp.down_proj.input_scale": np.ones(1, np.float32)},
              packed / "model.safetensors")  # fmt: skip
    assert verify_model(FolderSource(packed), settings()).notes


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_gguf_file_of_the_hub_is_verified_with_its_own_tokenizer(hub, tmp_path, early_stop):
    file, _ = gguf_pair(tmp_path)
    repository = tmp_path / "repository"
    (repository / "Q4").mkdir(parents=True)
    shutil.copy(file, repository / "Q4" / "a.gguf")
    (repository / "Q4" / "b.gguf").write_bytes(b"another")
    commit = hub.add("me/quants", repository)
    result = verify_model(open_model("me/quants:Q4/a.gguf"), settings(early_stop=early_stop))
    assert (result.model, result.commit) == ("me/quants:Q4/a.gguf", commit)
    assert result.super_activations[0].layer == LAYER
    assert found_at(result, PLANTED).status == "confirmed"


def test_fused_experts_in_8_bits_lie_as_the_parameter_does(tmp_path):
    """Those of gpt-oss are [experts, in, out]; here all are square."""
    _, floats = gpt_oss(tmp_path)
    tensors = load_file(floats / "model.safetensors")
    for name in [name for name in tensors if name.endswith("down_proj")]:
        codes = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[name] = codes.astype(np.float32)
    save_file(tensors, floats / "model.safetensors")
    eighths = tmp_path / "eighths"
    shutil.copytree(floats, eighths)
    stored = {k: v.astype(ml_dtypes.float8_e4m3fn) if k.endswith("down_proj") else v for k, v in tensors.items()}
    (eighths / "model.safetensors").unlink()
    write_tensors(eighths, stored)
    streams = []
    for folder in (eighths, floats):
        runner, _ = open_runnable(FolderSource(folder)).build()
        streams += runner.streams([PROMPT_IDS], [UNTOUCHED])
    assert runner.blocks.encodings == ()
    np.testing.assert_allclose(streams[0], streams[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inner", [HIDDEN // 2, HIDDEN])
def test_experts_of_llama_4_are_scaled_by_output_channels(tmp_path, inner):
    """FBGEMM's are [experts, in, out], and the scales of what leaves the MLP [experts, out, 1]."""
    model = with_large_weights(build(FAMILIES["llama4_text"], hidden_size=HIDDEN, intermediate_size=inner))
    floats, packed = save(model, tmp_path / "floats"), tmp_path / "packed"
    tensors = load_file(floats / "model.safetensors")
    stored, generator = dict(tensors), np.random.default_rng(0)
    for name in [name for name in tensors if ".experts." in name]:
        experts, _, outputs = tensors[name].shape
        stored[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        scales = generator.uniform(0.5, 2, (experts, 1, outputs)).astype(np.float32)
        tensors[name] = stored[name].astype(np.float32) * scales
        stored[f"{name}_scale"] = scales.reshape(experts, outputs, 1) if name.endswith("down_proj") else scales
    save_file(tensors, floats / "model.safetensors", {"format": "pt"})
    write_tensors(packed, stored)
    said = {**json.loads((floats / "config.json").read_text()), "quantization_config": {"quant_method": "fbgemm_fp8"}}
    (packed / "config.json").write_text(json.dumps(said))
    found = []
    for folder in (packed, floats):
        runner, _ = open_runnable(FolderSource(folder)).build()
        found.append((*runner.streams([PROMPT_IDS], [UNTOUCHED]), runner.weight_row(Coordinate(1, 2, 5, 0).place, 5)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_weights_of_a_quantized_model_are_not_changed_as_they_are_loaded(tmp_path):
    packed, _ = pair(tmp_path, "awq")
    checkpoint = Checkpoint(FolderSource(packed))
    with pytest.raises(ForwardError, match="is quantized: its weights cannot be changed as they are loaded, yet"):
        Runner(checkpoint, down_projections(checkpoint), packed, change=lambda _, tensor: tensor)
