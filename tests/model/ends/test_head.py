"""The output head of a real model: parts of its vocabulary, and samples of it, against the whole."""

import pytest
import torch
from mlx_models import tiny_model, write_mlx
from models import TEXT_IDS, hooked, load_plain, save_random

from analyzer.analyze.running import open_runnable
from analyzer.forward.checking import check_rows
from analyzer.forward.edits import UNTOUCHED
from analyzer.model.ends.head import LEAST_SAMPLED, SAMPLED_STATES
from analyzer.source.opening import open_model

VOCABULARY = LEAST_SAMPLED + 8
TOKENS = [0, 5, 4000, 8199]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: save_random(name, root / name, vocab_size=VOCABULARY) for name in ("llama", "gemma2", "cohere")}


def opened(folder, monkeypatch, numbers=1 << 24):
    """Return a checked model, the states of TEXT_IDS twice, and the logits of a plain one after them."""
    monkeypatch.setattr("analyzer.model.ends.stored.HEAD_NUMBERS", numbers)
    model = hooked(folder)
    check_rows(model.runner, TEXT_IDS)
    states = model.states([TEXT_IDS * 2], [UNTOUCHED])[0]
    with torch.no_grad():
        logits = load_plain(folder.name, folder).model(input_ids=torch.tensor([TEXT_IDS * 2])).logits[0]
    return model, states, logits


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])  # with a cap, with a scale
@pytest.mark.parametrize("numbers", [1 << 24, 16 * 3000], ids=["whole", "in slices"])
def test_parts_of_the_vocabulary_are_those_of_the_whole(folders, monkeypatch, name, numbers):
    model, states, logits = opened(folders[name], monkeypatch, numbers)
    output = model.blocks.output
    assert output.in_parts
    with model.running():
        part, halves = output.logits(states, torch.tensor(TOKENS)), output.halves(states)
        monkeypatch.setattr("analyzer.model.ends.head.LOGIT_BYTES", 100)
        few = output.logits(states, torch.tensor(TOKENS))
    torch.testing.assert_close(part, logits[:, TOKENS], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few, part, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(halves, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("numbers", [1 << 24, 16 * 3000], ids=["whole", "in slices"])
def test_samples_are_of_the_models_own_probabilities(folders, monkeypatch, numbers):
    model, states, logits = opened(folders["llama"], monkeypatch, numbers)
    targets = torch.tensor(TEXT_IDS * 2).roll(-1)
    with model.running():
        likelihoods, samples = model.blocks.output.sampled(states, targets, torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(likelihoods, wanted, rtol=1e-5, atol=1e-5)
    assert len(samples) == -(-len(states) // SAMPLED_STATES)
    start = 0
    for sample in samples:
        here = logits[start : start + len(sample.logits)]
        torch.testing.assert_close(sample.logits, here[:, sample.tokens], rtol=1e-4, atol=1e-5)
        start += len(here)
    assert start == len(states)


def test_a_small_vocabulary_and_a_head_that_gives_no_parts_are_told_whole(folders, tmp_path, monkeypatch):
    model, states, _ = opened(folders["llama"], monkeypatch)
    targets, generator = torch.tensor(TEXT_IDS * 2), torch.Generator().manual_seed(0)
    model.blocks.output.in_parts = False
    with model.running():
        assert model.blocks.output.sampled(states, targets, generator)[1] == ()
    small, states, _ = opened(save_random("llama", tmp_path / "llama"), monkeypatch)
    assert small.blocks.output.in_parts
    with small.running():
        assert small.blocks.output.sampled(states, targets, generator)[1] == ()


def test_a_quantized_head_gives_parts_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("analyzer.model.ends.stored.HEAD_NUMBERS", 64 * 3000)
    quantized, _ = write_mlx(tiny_model("llama", vocab_size=VOCABULARY), tmp_path)
    runner, _ = open_runnable(open_model(str(quantized))).build()
    check_rows(runner, TEXT_IDS)
    states = runner.states([TEXT_IDS], [UNTOUCHED])[0]
    whole = runner.logits(states)
    with runner.running():
        part = runner.blocks.output.logits(states, torch.tensor(TOKENS))
    assert runner.blocks.model.get_output_embeddings()._stored is None
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(part, whole[:, TOKENS], rtol=1e-5, atol=1e-6)
