"""Checkpoints that do not fit their config: each is refused in one line, and nothing is made up."""

import json
import shutil

import pytest
import torch
import transformers
from models import (
    PROMPT_IDS,
    hooked,
    random_llama,
    save_random,
    save_tokenizer,
)
from safetensors.torch import load_file, save_file

from analyzer.analyze.running import open_runnable
from analyzer.base.errors import AnalyzerError, CheckpointError
from analyzer.checkpoint.shards import SINGLE
from analyzer.source.folder import FolderSource


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model whose embedding and head are larger than its blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_random("llama", folder, vocab_size=1000)


def changed(folder, to, *, without=(), **tensors):
    """Copy a folder's model, without some of its tensors and with others in their place."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    stored = load_file(folder / SINGLE)
    stored = {name: tensor for name, tensor in stored.items() if name not in without}
    save_file(stored | tensors, to / SINGLE, metadata={"format": "pt"})
    return to


def with_config(folder, to, **changes):
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def error_of(folder):
    with pytest.raises(AnalyzerError) as caught:
        hooked(folder).losses([PROMPT_IDS], [()])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.input_layernorm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named_not_made_up(llama, tmp_path, name):
    assert f"the checkpoint lacks {name}" in error_of(changed(llama, tmp_path, without=[name]))


def test_a_missing_expert_is_named(tmp_path):
    save_random("mixtral", tmp_path / "whole")
    without = [f"model.layers.1.block_sparse_moe.experts.3.w{number}.weight" for number in (1, 2, 3)]
    message = error_of(changed(tmp_path / "whole", tmp_path / "holey", without=without))
    assert "model.layers.1.mlp.experts" in message
    assert "[3, " in message
    assert "[4, " in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 8}, "model.layers.0.self_attn.k_proj.weight has the shape [8, 16], config.json says [16, 16]"),
        ({"intermediate_size": 20}, "model.layers.0.mlp.down_proj.weight has the shape [16, 24], config.json says"),
        ({"vocab_size": 999}, "model.embed_tokens.weight has the shape [1000, 16], config.json says [999, 16]"),
        ({"hidden_size": 32}, "model.embed_tokens.weight has the shape [1000, 16], config.json says [1000, 32]"),
    ],
)
def test_a_wrong_shape_is_named(llama, tmp_path, changes, message):
    assert message in error_of(with_config(llama, tmp_path, **changes))


def test_a_head_or_norm_of_another_shape_is_named(llama, tmp_path):
    for name, shape in {"lm_head.weight": (999, 16), "model.norm.weight": (17,)}.items():
        folder = changed(llama, tmp_path / name, **{name: torch.zeros(shape)})
        assert f"{name} has the shape {list(shape)}, config.json says" in error_of(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"],
)
def test_a_dtype_that_cannot_be_run_is_named(llama, tmp_path, name):
    tensor = load_file(llama / SINGLE)[name].to(torch.uint16)
    message = error_of(changed(llama, tmp_path, **{name: tensor}))
    assert f"{name} is stored as U16, which can be scanned, but not yet verified" in message


def test_a_model_without_head_is_refused(tmp_path):
    model = transformers.LlamaModel(random_llama().config)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks lm_head\.weight"):
        hooked(tmp_path)


def refusal_of(model, folder):
    model.save_pretrained(folder)
    save_tokenizer(folder)
    with pytest.raises(AnalyzerError) as caught:
        open_runnable(FolderSource(folder, model_id="m")).build()
    return str(caught.value)


def test_several_codebooks_are_no_embedding_of_tokens(tmp_path):
    config = transformers.MusicgenDecoderConfig(
        vocab_size=16, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=2, num_codebooks=2
    )
    line = "m (musicgen_decoder) does not read tokens by one embedding of them, but by ModuleList: it can be scanned, "
    assert refusal_of(transformers.MusicgenForCausalLM(config), tmp_path) == f"{line}but not verified"


def test_what_is_one_with_a_weight_of_a_block_is_not_said_to_be_lacking(tmp_path):
    config = transformers.UdopConfig(vocab_size=19, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4)
    line = refusal_of(transformers.UdopForConditionalGeneration(config), tmp_path)
    bias = "relative_attention_bias.weight"
    assert line.startswith(f"m: encoder.relative_bias.biases.0.{bias} is one with encoder.block.0.layer.0.")
    assert line.endswith("which is not followed yet: it can be scanned, but not verified")


def test_blocks_are_counted_as_the_library_does(tmp_path):
    layers = {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1, "n_recurrent_loops": 2}
    config = transformers.DoryConfig(
        vocab_size=19, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2, **layers
    )
    transformers.DoryForCausalLM(config).save_pretrained(tmp_path)  # whose config.json counts attention and MLPs apart
    assert {each.layer for each in open_runnable(FolderSource(tmp_path)).projections} == {0, 1, 2}
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 6
