"""Texts as token ids and in windows, and tokenizers that do not fit."""

import pytest
from models import PROMPT, PROMPT_IDS, TEXT, TEXT_IDS, WORDS, save_random, save_tokenizer

from analyzer.base.errors import ForwardError
from analyzer.model.tokens import Tokens, Window


def tokens_in(folder, *, bos=False, **options):
    """Return the tokenizer of 19 ids, in a model of 64 positions where nothing else is said."""
    save_tokenizer(folder, bos=bos)
    return Tokens("me/m", folder, **{"vocabulary": 19, "max_tokens": 64, **options})


def test_ids_and_the_texts_that_they_stand_for(tmp_path):
    tokens = tokens_in(tmp_path, bos=True)
    assert tokens.ids(PROMPT) == [18, *PROMPT_IDS]
    assert tokens.ids(PROMPT, special=False) == PROMPT_IDS
    assert tokens.ids("nowhere apple", special=False) == [0, 1]
    assert tokens.texts([18, 1, 16]) == ("<s>", "apple", "pear")


def test_windows_fit_the_model_and_cover_the_text(tmp_path):
    windows = tokens_in(tmp_path).windows(TEXT + " apple banana")
    assert [window.ids for window in windows] == [tuple(TEXT_IDS), (1, 2)]
    assert windows[1] == Window((1, 2), places=(0,), targets=(2,))


def test_a_model_without_a_limit_has_windows_of_512(tmp_path):
    windows = tokens_in(tmp_path, max_tokens=None).windows(" ".join(WORDS * 40))
    assert [len(window.ids) for window in windows] == [512, 128]


def test_what_is_left_over_without_a_target_is_no_window(tmp_path):
    assert [len(window.ids) for window in tokens_in(tmp_path).windows(TEXT + " apple")] == [64]


def test_every_window_begins_as_a_text_does(tmp_path):
    windows = tokens_in(tmp_path, bos=True).windows(TEXT + " apple banana")
    assert [len(window.ids) for window in windows] == [64, 4]
    assert [window.ids[0] for window in windows] == [18, 18]
    assert [i for window in windows for i in window.ids[1:]] == [*TEXT_IDS, 1, 2]


def test_a_window_of_a_masked_model_hides_every_seventh_token(tmp_path):
    (window,) = tokens_in(tmp_path, masked=True).windows(" ".join(WORDS))
    ids = list(range(1, 17))
    ids[3] = ids[10] = 17
    assert window == Window(tuple(ids), places=(3, 10), targets=(4, 11))


def test_a_masked_model_without_a_mask_token_says_so(tmp_path):
    save_random("bert", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"mask_token"', '"x_token"'))
    tokens = Tokens("me/m", tmp_path, vocabulary=32, max_tokens=64, masked=True)
    with pytest.raises(ForwardError, match="its tokenizer has no mask token"):
        tokens.window(PROMPT_IDS)


def test_a_text_of_one_token_has_no_loss(tmp_path):
    with pytest.raises(ForwardError, match="fewer than two tokens: give a longer one"):
        tokens_in(tmp_path).windows("apple")


def test_a_model_of_too_few_positions_has_no_loss(tmp_path):
    with pytest.raises(ForwardError, match=r"config\.json leaves it 2 positions, too few for a loss"):
        tokens_in(tmp_path, bos=True, max_tokens=2).windows(TEXT)


def test_a_model_without_tokenizer_says_so(tmp_path):
    with pytest.raises(ForwardError, match="me/m has no tokenizer: add its tokenizer files"):
        Tokens("me/m", tmp_path, vocabulary=19, max_tokens=64).ids(PROMPT)


def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ForwardError, match="cannot load the tokenizer of me/m") as caught:
        Tokens("me/m", tmp_path, vocabulary=19, max_tokens=64).ids(PROMPT)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ForwardError, match=r"ids up to 8, its embedding has 4 rows"):
        tokens_in(tmp_path, vocabulary=4).ids(PROMPT)
