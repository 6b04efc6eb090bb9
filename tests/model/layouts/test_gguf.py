"""GGUF files, architecture by architecture: the logits are those of the stock model with the floats they stand for."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf_models import MODELS, rotary_factors, tiny_of, write_gguf_model
from models import PROMPT_IDS

from analyzer.analyze.running import open_runnable
from analyzer.base.errors import AnalyzerError
from analyzer.model.layouts.gguf_config import ARCHITECTURES, BY_RULES
from analyzer.source.opening import open_model

FORMATS = Path(__file__).parents[3] / "docs" / "formats.md"
WIDTHS = ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count")
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


@torch.no_grad()
def check(file, floats):
    """Hold a file's logits against the stock model's."""
    stock = transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([PROMPT_IDS])
    expected = stock.eval()(input_ids=ids, use_cache=False).logits[0].numpy()
    runner, _ = open_runnable(open_model(str(file))).build()
    with runner.running():
        found = runner.blocks.logits(ids).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    return runner


def test_every_architecture_is_tested_and_named():
    assert MODELS.keys() == {*ARCHITECTURES, *BY_RULES}
    said = FORMATS.read_text().partition("runs the architectures")[2].partition(". ")[0].replace(",", " ").split()
    assert MODELS.keys() <= set(said)


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
@pytest.mark.parametrize("architecture", MODELS)
def test_the_logits_are_those_of_the_stock_model(tmp_path, architecture, kind):
    runner = check(*write_gguf_model(tiny_of(architecture), tmp_path, architecture, kind=kind))
    assert runner.notes[0] == "its config and its tokenizer are made from the metadata of the GGUF file"
    assert len(runner.notes) == (1 if kind == "F32" else 2)


@pytest.mark.parametrize("how", ["linear", "yarn", "tied", "biases", "llama3", "older"])
def test_what_a_llama_may_have(tmp_path, how):
    config = {
        "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "yarn": {"rope_parameters": YARN},
        "tied": {"tie_word_embeddings": True},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "llama3": {"rope_parameters": LLAMA_3},
        "older": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    }[how]
    model = tiny_of("llama", **config)
    tensors = {"rope_freqs.weight": ("F32", rotary_factors(model))} if how == "llama3" else {}
    left_out = ("attention.key_length", "attention.value_length", "rope.freq_base", "rope.dimension_count")
    metadata = dict.fromkeys([f"llama.{key}" for key in left_out]) if how == "older" else {}
    check(*write_gguf_model(model, tmp_path, "llama", metadata=metadata, tensors=tensors))


def test_layers_with_a_window_turn_on_their_own(tmp_path):
    linear = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 8.0}
    rotary = {"full_attention": linear, "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}
    check(*write_gguf_model(tiny_of("gemma3", rope_parameters=rotary), tmp_path, "gemma3"))


def test_the_largest_gemma_scales_its_queries_by_the_width(tmp_path):
    model = tiny_of("gemma2", num_hidden_layers=46, head_dim=32, query_pre_attn_scalar=16)
    check(*write_gguf_model(model, tmp_path, "gemma2"))


REFUSED = {
    "an unknown architecture": ({}, {}, r"of the architecture other, which can be scanned"),
    "an unknown key": ({"llama.rope.scale_linear": 2}, {}, r"say llama\.rope\.scale_linear is 2, which is not"),
    "experts of a Llama": ({"llama.expert_count": 4}, {}, r"say llama\.expert_count is 4"),
    "sizes by layer": ({"llama.attention.head_count_kv": [2, 2]}, {}, r"head_count_kv is \[2, 2\]"),
    "other factors": ({}, {"rope_freqs.weight": ("F32", np.ones(4, np.float32))}, r"its rope_freqs\.weight are not"),
    "another scaling": ({"llama.rope.scaling.type": "longrope"}, {}, r"scaling\.type is longrope"),
    "a part of each head": ({"llama.rope.dimension_count": 8}, {}, r"dimension_count is 8"),
    "other values than keys": ({"llama.attention.value_length": 8}, {}, r"value_length is 8"),
    "a size of nothing": ({"llama.attention.head_count": 0}, {}, r"head_count is 0"),
    "no sizes": ({"llama.attention.head_count": None}, {}, r"do not say how large the model is"),
    "another width": (dict.fromkeys(WIDTHS, 8), {}, r"k_proj.weight has the shape .*, the metadata say \[16, 64\]"),
    "a tensor of another model": ({}, {"blk.1.attn_sinks.weight": ("F32", np.ones(4, np.float32))},
                                  r"LlamaForCausalLM has no place for blk\.1\.attn_sinks\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_another_model_is_refused_by_name(tmp_path, case):
    metadata, tensors, said = REFUSED[case]
    file, _ = write_gguf_model(tiny_of("llama"), tmp_path, "llama", metadata=metadata, tensors=tensors)
    if case == "an unknown architecture":
        file.write_bytes(file.read_bytes().replace(b"llama", b"other"))
    with pytest.raises(AnalyzerError, match=said) as caught:
        open_runnable(open_model(str(file))).build()[0].trace(PROMPT_IDS)
    assert "\n" not in str(caught.value)


RULED = {
    "an unknown key": ({"lfm2.rope.scaling.type": "yarn"}, {}, r"say lfm2\.rope\.scaling\.type is yarn, which is not"),
    "another width": ({"lfm2.attention.value_length": 8}, {}, r"say lfm2\.attention\.value_length is 8"),
    "a missing key": ({"lfm2.rope.freq_base": None}, {}, r"do not say what the model is \('lfm2\.rope\.freq_base'\)"),
    "a tensor of another model": ({}, {"rope_freqs.weight": ("F32", np.ones(8, np.float32))}, r"use for rope_freqs"),
}


@pytest.mark.parametrize("case", RULED)
def test_what_the_librarys_rules_pass_over_is_refused(tmp_path, case):
    metadata, tensors, said = RULED[case]
    file, _ = write_gguf_model(tiny_of("lfm2"), tmp_path, "lfm2", metadata=metadata, tensors=tensors)
    with pytest.raises(AnalyzerError, match=said):
        open_runnable(open_model(str(file))).build()


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path):
    names = {
        "attn_norm": (64,),
        "ffn_gate": (128, 64),
        "ffn_up": (128, 64),
        "ffn_down": (64, 128),
        "nextn.eh_proj": (64, 128),
    }
    tensors = {f"blk.4.{name}.weight": ("F32", np.ones(shape, np.float32)) for name, shape in names.items()}
    metadata = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    runner = check(*write_gguf_model(tiny_of("qwen35"), tmp_path, "qwen35", metadata=metadata, tensors=tensors))
    assert runner.layers == (0, 1, 2, 3)
