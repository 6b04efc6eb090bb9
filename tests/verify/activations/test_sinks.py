"""Sinks and prefixes of prompts whose super activations are given."""

from collections import Counter

from analyzer.verify.activations.sinks import MOST_SINKS, SinkCounts
from analyzer.verify.records import SuperActivation
from analyzer.verify.settings import Thresholds

BEGIN = 0


def texts(ids):
    return tuple(f"t{each}" for each in ids)


def at(position, *, layers=(2, 5), channel=7, positions=1):
    return SuperActivation(layers[0], channel, position, "", 100.0, 1000.0, layers[1], positions)


def counts_of(*prompts):
    counts = SinkCounts(Thresholds())
    for ids, activations in prompts:
        counts.add(ids, activations)
    return counts


def test_a_prefix_has_the_most_frequent_tokens_after_the_first_and_begins_the_text_last():
    prompts = [([5, 6, 9, 8], [at(0), at(2), at(3)]), ([4, 9, 9, 8], [at(0), at(1)]), ([3, 2, 8, 9], [at(0), at(3)])]
    prefix = counts_of(*prompts).prefix(BEGIN, texts)
    assert (prefix.ids, prefix.tokens, prefix.outlier_tokens) == ((9, 8, BEGIN), ("t9", "t8", "t0"), 2)  # 4 / 3, up


def test_as_many_as_the_layer_where_most_are_not_as_all_layers():
    prompt = [1, 2, 3, 4, 5], [at(1, layers=(1, 3)), at(2, layers=(4, 6)), at(2, layers=(5, 6), channel=8)]
    assert counts_of(prompt).prefix(BEGIN, texts).ids == (2, BEGIN)


def test_the_token_that_begins_a_text_comes_once_and_rare_ones_do_not_come():
    prompts = [([5, BEGIN, 9], [at(0), at(1)])] * 10 + [([5, 6, 9], [at(1)])]
    assert counts_of(*prompts).prefix(BEGIN, texts).ids == (BEGIN,)


def test_only_at_the_start_it_is_what_begins_a_text():
    prefix = counts_of(([5, 6, 9], [at(0)])).prefix(BEGIN, texts)
    assert (prefix.ids, prefix.outlier_tokens) == ((BEGIN,), 0)


def test_a_channel_that_is_large_nearly_everywhere_singles_nothing_out():
    counts = counts_of(([5, 6, 9], [at(0, positions=3), at(1, positions=3)]))
    assert (counts.sinks(texts).positions, counts.prefix(BEGIN, texts)) == ((), None)


def test_where_a_token_first_stands_after_the_start():
    counts = counts_of(([9, 9, 9], [at(0), at(1)]), ([5, 9, 9], [at(2)]))
    (token,) = [each for each in counts.sinks(texts).tokens if each.id == 9]
    assert (token.prompts, token.of, token.at_start, token.first) == (2, 2, 1, 1)


def test_no_more_than_so_many():
    ids = list(range(100, 100 + 3 * MOST_SINKS))
    sinks = counts_of((ids, [at(position) for position in range(len(ids))])).sinks(texts)
    assert (len(sinks.positions), len(sinks.tokens)) == (MOST_SINKS, MOST_SINKS)
    assert Counter(each.prompts for each in sinks.tokens) == {1: MOST_SINKS}
