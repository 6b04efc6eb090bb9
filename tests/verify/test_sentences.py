"""What is told over all prompts, in words."""

from analyzer.verify.sentences import headroom_sentence, sinks_sentence

FIT = {"limit": 65504.0, "largest": 27363.4, "layer": 11, "where": "residual", "overflows_from": None}
SMALL = {**FIT, "limit": 448.0, "overflows_from": 2}
HEADROOM = {"prompts": 12, "layers": [], "unseen": [], "float16": FIT, "float8_e4m3": SMALL}
SINKS = {
    "prompts": 12,
    "positions": [{"position": 0, "prompts": 12, "of": 12}],
    "tokens": [
        {"id": 504, "token": "The", "prompts": 2, "of": 2, "at_start": 2, "first": 0},
        {"id": 260, "token": "\x1b the", "prompts": 4, "of": 5, "at_start": 0, "first": 4},
    ],
}


def test_a_model_that_float16_holds():
    assert headroom_sentence(HEADROOM) == (
        "Float16: the largest magnitude is 27,363 in the residual stream after layer 11, over 12 prompts, 2.39 times "
        "below its limit; FP8 (e4m3) without a scale overflows from layer 2 on."
    )


def test_a_model_that_overflows_and_was_not_seen_whole():
    past = {**FIT, "largest": 131008.0, "where": "down_input", "overflows_from": 3}
    text = headroom_sentence({**HEADROOM, "prompts": 1, "float16": past, "unseen": [4, 6]})
    assert text.startswith(
        "Float16 overflows from layer 3 on: the largest magnitude is 131,008 in what the down projection of layer 11 "
        "takes, over 1 prompt, 2 times its limit; FP8"
    )
    assert text.endswith(" Of the MLPs of layers 4, 6 not all could be seen.")


def test_of_several_towers_the_one_that_ran_is_named():
    text = headroom_sentence({**HEADROOM, "tower": "decoder"})
    assert text.startswith("Float16: the largest magnitude in the tower decoder is 27,363 in the residual")


def test_a_model_that_both_hold():
    small = {"largest": 0.0, "overflows_from": None}
    text = headroom_sentence({**HEADROOM, "float16": {**FIT, **small}, "float8_e4m3": {**SMALL, **small}})
    assert text.endswith("; FP8 (e4m3) without a scale holds it too.")


def test_sinks_and_the_prefix_in_a_sentence():
    prefix = {"ids": [260, 1], "tokens": [" the", "<s>"], "outlier_tokens": 1}
    assert sinks_sentence(SINKS, prefix) == (
        "Over 12 prompts, super activations sit at position 0 in 12 of 12; after the start at the tokens '\\x1b the' "
        "in 4 of 5 prompts that have them. A prefix to hold them: ' the' '<s>' (ids 260, 1)."
    )
    assert sinks_sentence({**SINKS, "tokens": []}, None).endswith("position 0 in 12 of 12.")
    assert sinks_sentence({**SINKS, "positions": []}, None) == ""
