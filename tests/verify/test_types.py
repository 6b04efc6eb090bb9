"""Types of models whose class, towers or inputs are unlike others': verified, or refused by what they are."""

import json

import numpy as np
import pytest
import torch
import transformers
from coverage import prepare
from models import settings
from tiny_models import Kind, build
from tiny_text import PROMPT_IDS, TEXT_IDS, save_tokenizer

from analyzer.analyze.running import load_model, open_runnable
from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import AnalyzerError, ArchitectureError
from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED
from analyzer.source.folder import FolderSource


@pytest.fixture(scope="module", autouse=True)
def quiet():
    prepare()


def saved(text, folder):
    build(Kind(*text.split("/"))).save_pretrained(folder)
    save_tokenizer(folder)
    return FolderSource(folder)


# Towers that no name tells apart, and one that a name tells wrong: the stack of text is where the class has it.
TOWERS = {
    "idefics2/Idefics2ForConditionalGeneration": ("text", "Idefics2ForConditionalGeneration"),
    "unlimited_ocr/UnlimitedOcrForConditionalGeneration": ("model.layers", "UnlimitedOcrForConditionalGeneration"),
    "cosmos3_omni/Cosmos3OmniForConditionalGeneration": ("layers", "Cosmos3OmniForConditionalGeneration"),
    "git/GitForCausalLM": ("encoder", "GitForCausalLM"),
}


@pytest.mark.parametrize("text", TOWERS)
def test_the_tower_of_text_is_the_one_in_the_stock_class_decoder(tmp_path, text):
    tower, name = TOWERS[text]
    runner, _ = open_runnable(saved(text, tmp_path)).build()
    assert runner.tower == tower
    assert type(runner.blocks.model).__name__ == name
    assert verify_model(FolderSource(tmp_path), settings()).tower == tower


REFUSED = {
    "hrm_text/HrmTextForCausalLM": r"several towers \(model.H_module.layers, model.L_module.layers\), and text goes",
    "blip/BlipForConditionalGeneration": r"\(blip\) asks for pixel_values beside text: it can be scanned, but not",
    "kosmos-2/Kosmos2ForConditionalGeneration": r"\(kosmos-2\) cannot be run: You have to specify either `pixel_val",
    "gemma4_assistant/Gemma4AssistantForCausalLM": r"\(gemma4_assistant\) cannot be run: ",
    "cpmant/CpmAntForCausalLM": r"\(cpmant\) runs tokens of its own before a prompt's",
    "reformer/ReformerForMaskedLM": r"\(reformer\) comes out otherwise each time that it runs",
    "dory/DoryForCausalLM": "block 1 runs again and again, which is not followed yet",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_followed_is_refused_by_what_it_is(tmp_path, text):
    with pytest.raises(AnalyzerError, match=REFUSED[text]):
        verify_model(saved(text, tmp_path), settings())


def test_weights_that_only_computing_with_integers_needs_may_be_missing(tmp_path):
    assert verify_model(saved("ibert/IBertForMaskedLM", tmp_path), settings()).verdict == "none"


def test_the_class_that_a_config_names_is_built_where_the_tensors_are_called_after_it(tmp_path):
    runner, _ = open_runnable(saved("emu3/Emu3ForConditionalGeneration", tmp_path / "whole")).build()
    assert type(runner.blocks.model) is transformers.Emu3ForConditionalGeneration
    runner, _ = open_runnable(saved("qwen3_5/Qwen3_5ForConditionalGeneration", tmp_path / "both")).build()
    assert type(runner.blocks.model) is transformers.Qwen3_5ForCausalLM  # whose own names these are too


@pytest.mark.parametrize("named", [[5], [None, "LlamaForCausalLM"], ["os.system"], []])
def test_names_of_classes_that_are_none_are_passed_over(tmp_path, named):
    saved("llama/LlamaForCausalLM", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": named}))
    assert type(open_runnable(FolderSource(tmp_path)).build()[0].blocks.model) is transformers.LlamaForCausalLM


def test_a_model_that_asks_its_first_parameter_where_it_is_runs(tmp_path):
    runner, _ = open_runnable(saved("idefics3/Idefics3ForConditionalGeneration", tmp_path)).build()
    assert runner.blocks.model.device == torch.device("cpu")
    first = next(runner.blocks.model.parameters())
    assert (first.device.type, first.numel()) == ("cpu", 0)  # of the vision tower, which text does not reach
    assert verify_model(FolderSource(tmp_path), settings()).tower == "text"


def test_blocks_that_text_does_not_reach_are_left_out_and_said_to_be(tmp_path):
    result = verify_model(saved("mllama/MllamaForCausalLM", tmp_path), settings())
    assert [each.layer for each in result.layers] == [0, 2, 3, 5]
    assert "blocks 1, 4 do not run with text alone: nothing is said of them" in result.notes


def test_what_changes_the_stream_between_blocks_is_seen_and_said(tmp_path):
    text = "blt/BltForCausalLM"
    result = verify_model(saved(text, tmp_path), settings())
    assert [note for note in result.notes if note.startswith("the stream is changed before blocks 1, 2, 3 by what")]
    runner, _ = open_runnable(FolderSource(tmp_path)).build()
    trace, model = runner.trace(PROMPT_IDS), build(Kind(*text.split("/")))
    taken, gave = [], []
    for block in model.model.local_decoder.layers:
        block.register_forward_pre_hook(lambda _, args: taken.append(args[0][0]))
        block.register_forward_hook(lambda _, __, output: gave.append(output[0]))
    with torch.inference_mode():
        model(torch.tensor([PROMPT_IDS]), use_cache=False)
    np.testing.assert_allclose(trace.entering, np.stack(taken), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(trace.residual, np.stack(gave), rtol=1e-4, atol=1e-4)
    assert np.abs(trace.entering[1:] - trace.residual[:-1]).max() > 0.1


def test_a_block_that_is_an_mlp_alone_gives_on_top_of_what_it_took(tmp_path):
    text = "xlm/XLMWithLMHeadModel"
    runner, tokens = open_runnable(saved(text, tmp_path)).build()
    (stream,) = runner.streams([PROMPT_IDS], [UNTOUCHED])
    model = build(Kind(*text.split("/"))).transformer
    with torch.inference_mode():
        hidden = model(torch.tensor([PROMPT_IDS]), output_hidden_states=True).hidden_states[1:]
        normed = [norm(torch.tensor(each)) for norm, each in zip(model.layer_norm2, stream, strict=True)]
    read = len(PROMPT_IDS) - PROMPT_IDS.count(model.pad_index)  # XLM reads no more
    for found, expected in zip(normed, hidden, strict=True):
        np.testing.assert_allclose(found[:read], expected[0, :read], rtol=1e-4, atol=1e-4)
    assert runner.masked
    assert tokens.window(TEXT_IDS).places[:2] == (3, 10)


def test_a_weight_of_another_tower_is_not_here(tmp_path):
    model = load_model(saved("llava/LlavaForConditionalGeneration", tmp_path))
    elsewhere = Coordinate(0, None, 1, 2, "vision")
    words = r"has no weight vision:0,1,2 here, where the tower is language$"
    with model.edited({elsewhere: 0.0}), pytest.raises(ArchitectureError, match=words):
        model.loss("apple banana cherry")
