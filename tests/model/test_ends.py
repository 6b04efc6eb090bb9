"""The embedding, read by rows, and the output head, multiplied in slices."""

import pytest
import torch
from models import (
    PROMPT_IDS,
    hooked,
    load_plain,
    save_random,
)
from safetensors.torch import load_file, save_file
from streamed import assert_close, check_equal, run, stored_bytes

from analyzer.checkpoint.shards import SINGLE


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model whose embedding and head are larger than its blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_random("llama", folder, vocab_size=1000)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", True),
        ("qwen2", True),
        ("gpt_neox", True),
        ("mixtral", True),
        ("gpt2", False),
        ("gemma", False),
        ("gemma3_text", False),
        ("falcon_old", False),
        ("bert", False),
        ("modernbert", False),
    ],
)
def test_tied_and_untied_embeddings(tmp_path, name, tied):
    save_random(name, tmp_path, tie_word_embeddings=tied)
    embedding = load_plain(name, tmp_path).model
    same = embedding.get_input_embeddings().weight is embedding.get_output_embeddings().weight
    assert same == tied
    check_equal(name, tmp_path, 0)


def test_a_tied_embedding_stored_as_the_head_alone(tmp_path):
    save_random("llama", tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / SINGLE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    check_equal("llama", tmp_path, 0)


def test_a_tied_head_reads_the_embedding_once_it_is_needed(tmp_path):
    save_random("llama", tmp_path, vocab_size=1000, tie_word_embeddings=True)
    model = hooked(tmp_path)
    model.trace([3, 4, 5])
    assert model.checkpoint.bytes_read < stored_bytes(tmp_path, of="embed_tokens")
    model.losses([[3, 4, 5]], [()])
    assert model.checkpoint.bytes_read < stored_bytes(tmp_path) + 10_000


def test_the_head_is_multiplied_in_slices(llama, monkeypatch):
    plain, model = load_plain("llama", llama), hooked(llama)
    monkeypatch.setattr("analyzer.model.ends.HEAD_NUMBERS", 16 * 7)
    with torch.no_grad():
        expected = plain.model(input_ids=torch.tensor([PROMPT_IDS])).logits
    assert_close(run(model, [PROMPT_IDS])[1], expected)
