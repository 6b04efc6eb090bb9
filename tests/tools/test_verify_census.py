"""The census of verifications: its stock model tells of a planted weight what is so, and what differs is said."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from coverage import prepare, truth_of
from safetensors.torch import load_file, save_file
from stock_runs import is_causal, run_text, super_activations, text_loss, zeroed
from tiny_models import Kind, build
from tiny_text import MASK_ID, PROMPT_IDS, TEXT_IDS
from verify_census import compare_verified, save_with_super_weight

STACK = "model.layers"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A tiny Llama with a planted weight, its true down projections, and what the library says of it."""
    prepare()
    folder = tmp_path_factory.mktemp("census")
    llama = Kind("llama", "LlamaForCausalLM")
    matrices = truth_of(llama, folder / "built")["matrices"]
    (folder / "planted").mkdir()
    save_with_super_weight(llama, matrices, folder / "planted")
    return folder / "planted", matrices


def stock_of(folder):
    return json.loads((folder / "stock.json").read_text())


def test_what_the_library_says_is_what_a_model_loaded_by_it_does(planted):
    folder, matrices = planted
    stock, model = stock_of(folder), transformers.LlamaForCausalLM.from_pretrained(folder / "model").eval()
    weight = model.get_parameter(matrices[stock["matrix"]]["name"])
    with torch.inference_mode():
        out = model(torch.tensor([PROMPT_IDS]), output_hidden_states=True)
        nll = torch.nn.functional.cross_entropy(
            model(torch.tensor([TEXT_IDS])).logits[0, :-1], torch.tensor(TEXT_IDS[1:])
        )
        weight[stock["row"], stock["col"]] = 0
        without = model(torch.tensor([PROMPT_IDS]), output_hidden_states=True)
    stream = np.load(folder / "stream.npy")
    np.testing.assert_allclose(stream[:-1], torch.cat(out.hidden_states[1:-1]).numpy(), rtol=1e-4, atol=1e-4)
    assert stock["loss"] == pytest.approx(nll.item(), rel=1e-5)
    medians = out.hidden_states[2].abs().median()
    channel = [abs(each.hidden_states[2][0, :, stock["row"]]).max() / medians for each in (out, without)]
    assert channel[0] > 300
    assert channel[1] < 10
    assert stock["writes"]
    assert not stock["quiet"]


def test_a_verification_that_agrees_is_right(planted):
    assert compare_verified(planted[1], planted[0]) == ("right", "")


LIES = {
    "another loss": ({"loss": 1.00002}, r"its loss is \d\.\d+, not "),
    "another loss without the weight": ({"loss_zeroed": 1.00002}, r"its loss_zeroed is \d\.\d+, not "),
    "another place": ({"col": None}, r"^its loss_zeroed is .*; 1,21,\d+ is not found, the verdict found$"),
    "no super activation": ({"quiet": True}, "^confirms a super weight where the library's model has no super"),
    "a model that does not run": ({"unrunnable": "TypeError"}, "^runs, though the library's own model does not: TypeE"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_differs_from_the_librarys_model_is_wrong(planted, tmp_path, lie):
    folder, (change, words) = shutil.copytree(planted[0], tmp_path / "lying"), LIES[lie]
    stock = stock_of(folder)
    for name, value in change.items():
        if isinstance(value, float):
            value *= stock[name]
        stock[name] = (stock["col"] + 1) % 176 if value is None else value
    (folder / "stock.json").write_text(json.dumps(stock))
    verdict, reason = compare_verified(planted[1], folder)
    assert verdict == "wrong"
    assert re.search(words, reason), reason


def test_another_stream_is_wrong(planted, tmp_path):
    folder = shutil.copytree(planted[0], tmp_path / "lying")
    stream = np.load(folder / "stream.npy")
    stream[2, 3, 5] += 2e-3
    np.save(folder / "stream.npy", stream)
    verdict, reason = compare_verified(planted[1], folder)
    assert verdict == "wrong"
    assert reason.startswith("its stream differs by 0.00")
    assert reason.endswith("first after block 2")
    np.save(folder / "stream.npy", stream[:-1])
    assert compare_verified(planted[1], folder) == ("wrong", "gives a stream of [4, 8, 64], not [3, 8, 64]")


def test_a_quantized_model_is_right_by_the_floats_that_it_stands_for(planted, tmp_path):
    folder = shutil.copytree(planted[0], tmp_path / "quantized")
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()
    model.requires_grad_(False)
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    for name, value in list(tensors.items()):
        if ".layers." in name and value.ndim == 2:
            scale = value.abs().max() / 448
            tensors[name] = (value / scale).to(torch.float8_e4m3fn)
            blocks = [math.ceil(size / 128) for size in value.shape]
            tensors[f"{name}_scale_inv"] = torch.full(blocks, scale.item())
            model.get_parameter(name).copy_(tensors[name].float() * scale)
    save_file(tensors, file)
    config = json.loads((folder / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    assert compare_verified(planted[1], folder)[0] == "wrong"  # it is not the model that it was made from
    stock = stock_of(folder)
    weight = model.get_parameter(planted[1][stock["matrix"]]["name"])
    stock["loss"] = text_loss(model, TEXT_IDS, masked=False)
    with zeroed(weight, stock["row"] * weight.shape[1] + stock["col"]):
        stock["loss_zeroed"] = text_loss(model, TEXT_IDS, masked=False)
    (folder / "stock.json").write_text(json.dumps(stock))
    np.save(folder / "stream.npy", run_text(model, PROMPT_IDS, [STACK]).stream(STACK))
    assert compare_verified(planted[1], folder) == ("right", "")


def test_the_criterion_of_a_super_activation():
    stream = np.ones((6, 4, 8), np.float32)
    stream[2:5, 1, 3] = -100  # in three blocks, the last of them the fifth
    stream[3:5, 2, 3] = 1000  # in two
    stream[1:, 0, 7] = 99
    assert super_activations(stream) == {(1, 3)}
    assert super_activations(stream * 1e-3) == {(1, 3)}


@pytest.mark.parametrize(
    ("text", "causal", "added"),
    [
        ("llama/LlamaForCausalLM", True, False),
        ("bert/BertForMaskedLM", False, False),
        ("xlm/XLMWithLMHeadModel", False, True),
    ],
)
def test_what_a_run_tells_of_a_model(text, causal, added):
    model = build(Kind(*text.split("/")))
    stacks = {"llama": STACK, "bert": "bert.encoder.layer", "xlm": "transformer.ffns"}
    stack = stacks[text.partition("/")[0]]
    done = run_text(model, PROMPT_IDS, [stack])
    assert (done.last, done.numbers(stack)) == (stack, [0, 1, 2, 3])
    given = {}
    block = model.get_submodule(stack)[1]
    block.register_forward_hook(lambda _, args, output: given.update(taken=args and args[0], gave=output))
    with torch.inference_mode():
        model(torch.tensor([PROMPT_IDS]))
    gave = given["gave"] if isinstance(given["gave"], torch.Tensor) else given["gave"][0]
    expected = given["taken"] + gave if added else gave
    np.testing.assert_allclose(done.stream(stack)[1], expected[0], rtol=1e-5, atol=1e-5)
    assert is_causal(model) == causal


def test_a_masked_model_is_judged_by_every_seventh_token_masked():
    model = build(Kind("bert", "BertForMaskedLM"))
    masked = [MASK_ID if place % 7 == 3 else each for place, each in enumerate(TEXT_IDS)]
    with torch.inference_mode():
        logits = model(torch.tensor([masked])).logits[0, 3::7]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT_IDS[3::7])).item()
    assert text_loss(model, TEXT_IDS, masked=True) == pytest.approx(nll, rel=1e-5)
