"""Mistral's own format: consolidated.safetensors, its index, and params.json in place of config.json."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import random_downs, write_config, write_llama
from safetensors.numpy import save_file

from analyzer.base.errors import CheckpointError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.params import config_of_params
from analyzer.source.folder import FolderSource

DOWN = "layers.{}.feed_forward.w2.weight"
DOWNS = random_downs()
PARAMS = {"dim": 8, "n_layers": 3, "hidden_dim": 20, "n_heads": 2, "n_kv_heads": 1, "norm_eps": 1e-5, "vocab_size": 16}


def open_checkpoint(folder):
    return Checkpoint(FolderSource(folder))


def write_mistral(folder, downs=DOWNS, *, shards=1, **params):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {DOWN.format(layer): down for layer, down in enumerate(downs)}
    tensors["tok_embeddings.weight"] = np.ones((16, 8), ml_dtypes.bfloat16)
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    if shards == 1:
        save_file(tensors, folder / "consolidated.safetensors")
        return
    weight_map = {}
    for number in range(shards):
        filename = f"consolidated-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, folder / filename)
        weight_map |= dict.fromkeys(part, filename)
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_down(checkpoint, layer=1):
    tensor = checkpoint.tensors[DOWN.format(layer)]
    return checkpoint.read(tensor, 0, tensor.record.stop - tensor.record.start)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_format_is_read_without_a_config(tmp_path, shards):
    write_mistral(tmp_path, shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert [read_down(checkpoint, layer) for layer in range(3)] == [down.tobytes() for down in DOWNS]
    assert checkpoint.config == {
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "intermediate_size": 20,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": 16,
    }
    assert checkpoint.model_type is None
    assert checkpoint.notes == ()


def test_shards_of_the_format_need_no_index(tmp_path):
    write_mistral(tmp_path, shards=2)
    (tmp_path / "consolidated.safetensors.index.json").unlink()
    assert read_down(open_checkpoint(tmp_path)) == DOWNS[1].tobytes()


def test_a_config_goes_before_params(tmp_path):
    write_mistral(tmp_path)
    write_config(tmp_path, model_type="mistral", hidden_size=8)
    assert open_checkpoint(tmp_path).config == {"model_type": "mistral", "hidden_size": 8}


def test_neither_config_nor_params(tmp_path):
    write_mistral(tmp_path)
    (tmp_path / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json: download it too"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_hostile_params(tmp_path, text):
    write_mistral(tmp_path)
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"params\.json is not "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_librarys_format_goes_before_it(tmp_path, shards):
    write_llama(tmp_path, random_downs(seed=1), shards=shards)
    write_mistral(tmp_path, shards=3 - shards)
    checkpoint = open_checkpoint(tmp_path)
    assert all(name.startswith("model") for name in checkpoint.shards)
    assert checkpoint.notes == ()  # the same weights twice are no reason for a word


def test_it_is_read_where_the_librarys_is_not_whole(tmp_path):
    # As after a download of one format and all JSON.
    write_llama(tmp_path, random_downs(seed=1), shards=2)
    write_mistral(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == ("consolidated.safetensors",)
    assert checkpoint.notes == (
        "the shard model-00002-of-00002.safetensors that model.safetensors.index.json names is missing: download it",
        "not among the model's files, so not read: model-00001-of-00002.safetensors",
    )


@pytest.mark.parametrize(
    ("params", "config"),
    [
        (
            {"moe": {"num_experts": 8, "num_experts_per_tok": 2, "expert_hidden_dim": 4, "num_shared_experts": 1}},
            {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "n_shared_experts": 1},
        ),
        (
            {"vision_encoder": {"hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 8}},
            {"vision_config": {"hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 8}},
        ),
        (
            {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}},
            {"quantization_config": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR", "quant_method": "fp8"}},
        ),
        (
            {"quantization": {"quant_method": "compressed-tensors"}},
            {"quantization_config": {"quant_method": "compressed-tensors"}},
        ),
        ({"moe": None, "quantization": None, "dim": "x"}, {"quantization_config": None, "hidden_size": "x"}),
        ({"moe": 3, "quantization": [1]}, {"quantization_config": [1]}),
    ],
)
def test_params_by_the_names_of_config(params, config):
    assert config_of_params(params) == config
