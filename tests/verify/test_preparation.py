"""What a verification runs: ids, windows and prompts, and what does not fit."""

import pytest
from models import PROMPT, PROMPT_IDS, TEXT, TEXT_IDS, save_tokenizer, settings

from analyzer.base.errors import ForwardError
from analyzer.model.tokens import Tokens, Window
from analyzer.verify.preparation import prepare
from analyzer.verify.settings import VerifySettings, bundled_prompts

PROMPTS = ("apple banana", " ".join(["cherry"] * 70))


@pytest.fixture
def tokens(tmp_path):
    save_tokenizer(tmp_path)
    return Tokens("me/m", tmp_path, vocabulary=19, max_tokens=64)


@pytest.fixture
def tokens_with_bos(tmp_path):
    save_tokenizer(tmp_path, bos=True)
    return Tokens("me/m", tmp_path, vocabulary=19, max_tokens=64)


def test_a_prompt_the_windows_of_a_text_and_prompts_beside(tokens):
    prepared = prepare(settings(prompts=PROMPTS), tokens, "me/m")
    assert prepared.ids == tuple(PROMPT_IDS)
    assert prepared.tokens == tuple(PROMPT.split())
    assert prepared.windows == (Window(tuple(TEXT_IDS), tuple(range(63)), tuple(TEXT_IDS[1:])),)
    assert prepared.prompts == ((1, 2), (3,) * 64)  # as much as the model has positions for
    assert prepared.bare_prompts is None  # which would be the same


def test_prompts_with_and_without_what_begins_a_text(tokens_with_bos):
    prepared = prepare(settings(prompts=PROMPTS), tokens_with_bos, "me/m")
    assert prepared.ids == (18, *PROMPT_IDS)
    assert prepared.tokens[:2] == ("<s>", "apple")
    assert prepared.prompts == ((18, 1, 2), (18, *(3,) * 63))
    assert prepared.bare_prompts == ((1, 2), (3,) * 64)


def test_the_bundled_prompts_are_run_where_none_are_given(tokens):
    prepared = prepare(VerifySettings(prompt=PROMPT, text=TEXT), tokens, "me/m")
    assert len(prepared.prompts) == len(bundled_prompts())


def test_an_early_stop_needs_neither_text_nor_prompts(tokens):
    prepared = prepare(VerifySettings(prompt=PROMPT, text="", early_stop=True), tokens, "me/m")
    assert (prepared.windows, prepared.prompts, prepared.bare_prompts) == ((), (), None)


def test_a_prompt_must_have_some_tokens(tokens):
    with pytest.raises(ForwardError, match="the prompt has 2 of at least 3 tokens: give a longer one"):
        prepare(settings(prompt="apple banana"), tokens, "me/m")


def test_a_prompt_must_fit(tokens):
    with pytest.raises(ForwardError, match="the prompt has 65 tokens, me/m has 64 positions: shorten it"):
        prepare(settings(prompt=TEXT + " apple"), tokens, "me/m")
