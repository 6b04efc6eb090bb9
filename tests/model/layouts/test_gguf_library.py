"""Tokenizers that a GGUF file's metadata describe, against what was put there."""

import numpy as np
import pytest
from gguf_files import write_gguf
from gguf_models import TOKENIZER, TOKENS, tiny_of, write_gguf_model
from models import PROMPT

from analyzer.analyze.running import open_runnable
from analyzer.base.errors import ForwardError
from analyzer.model.layouts.gguf_library import unknown_split
from analyzer.model.tokens import Tokens
from analyzer.source.opening import open_model

PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁ab"]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def tokens_of(folder, metadata):
    write_gguf(folder / "x.gguf", {"w": ("F32", np.zeros((1, 32), np.float32).view(np.uint8))}, metadata=metadata)
    return Tokens("tiny", folder, vocabulary=64, max_tokens=None, gguf="x.gguf")


def test_words_that_are_whole(tmp_path):
    tokens = tokens_of(tmp_path, TOKENIZER)
    ids = tokens.ids(PROMPT)
    assert [TOKENS[each] for each in ids] == "Ġ".join(PROMPT.split()).replace("Ġ", " Ġ ").split()
    assert tokens.texts(ids[:3]) == ("apple", " ", "banana")


@pytest.mark.parametrize("begins", [None, True, False])
def test_sentencepiece_begins_as_the_file_says(tmp_path, begins):
    said = {} if begins is None else {"tokenizer.ggml.add_bos_token": begins}
    ids = tokens_of(tmp_path, SENTENCEPIECE | said).ids("ab b")
    assert [PIECES[each] for each in ids] == [*(["<s>"] if begins is not False else []), "▁ab", "▁", "b"]


def test_what_lies_beside_the_file_is_not_asked(tmp_path):
    file, floats = write_gguf_model(tiny_of("llama"), tmp_path, "llama")
    for other in floats.glob("*.json"):
        other.rename(file.parent / other.name)
    (file.parent / "config.json").write_text('{"model_type": "gpt2"}')
    runner, tokens = open_runnable(open_model(str(file))).build()
    assert runner.blocks.model.config.model_type == "llama"
    assert len(tokens.ids(PROMPT)) == 15


@pytest.mark.parametrize("missing", ["tokenizer.ggml.tokens", "tokenizer.ggml.model"])
def test_none_is_one_line(tmp_path, missing):
    tokens = tokens_of(tmp_path, {key: value for key, value in TOKENIZER.items() if key != missing})
    with pytest.raises(ForwardError, match=r"x\.gguf has no tokenizer: use the model that it was made from"):
        tokens.ids(PROMPT)


@pytest.mark.parametrize("broken", [{"tokenizer.ggml.model": "rwkv"}, {"tokenizer.ggml.merges": ["x y"]}])
def test_one_that_cannot_be_made_is_one_line(tmp_path, broken):
    with pytest.raises(ForwardError, match="cannot make the tokenizer of tiny") as caught:
        tokens_of(tmp_path, TOKENIZER | broken).ids(PROMPT)
    assert "\n" not in str(caught.value)


def test_a_split_that_the_library_does_not_know_is_said(tmp_path):
    assert unknown_split(TOKENIZER) is None
    assert unknown_split(TOKENIZER | {"tokenizer.ggml.pre": "qwen2"}) is None
    file, _ = write_gguf_model(tiny_of("llama"), tmp_path, "llama", metadata={"tokenizer.ggml.pre": "smollm"})
    runner, _ = open_runnable(open_model(str(file))).build()
    assert "its tokenizer splits text as smollm, which is not known here: it is split as GPT-2 does" in runner.notes
