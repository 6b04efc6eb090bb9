"""Looks at a growing portion of a text: what is run, that nothing is run twice, what is known meanwhile."""

import math

import numpy as np
import pytest

from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.model.tokens import Window
from analyzer.verify.costs.measuring import Measuring

ONE, OTHER = (zeroing([Coordinate(1, None, row, 3)]) for row in (5, 6))


def window(length, first=0):
    ids = tuple(range(first, first + length))
    return Window(ids, tuple(range(length - 1)), ids[1:])


def made(lengths, *, causal=True):
    """Return a measuring of windows whose tokens cost their id untouched, and a tenth more; and what was run."""
    ran = []

    def run(pairs, progress):
        ran.append([(len(window.ids), intervention) for window, intervention in pairs])
        progress(len(pairs))
        return [
            np.array(window.targets, np.float32) * np.float32(1 if intervention == UNTOUCHED else 1.1)
            for window, intervention in pairs
        ]

    windows = [window(length, 1000 * place) for place, length in enumerate(lengths)]
    return Measuring(run, windows, lambda *_: None, causal=causal), ran


def test_the_untouched_text_is_run_first_and_whole():
    measuring, ran = made([512, 512, 100])
    assert ran == [[(512, UNTOUCHED), (512, UNTOUCHED), (100, UNTOUCHED)]]
    wanted = np.concatenate([np.arange(1, 512), np.arange(1001, 1512), np.arange(2001, 2100)])
    assert measuring.loss == pytest.approx(wanted.mean())


def test_each_look_is_at_twice_as_many_tokens_of_the_next_window_and_then_at_whole_ones():
    measuring, ran = made([512, 512, 512, 345])
    for number in range(measuring.last + 1):
        measuring.look([ONE], number, "x")
    assert [[length for length, _ in each] for each in ran[1:]] == [[64], [128], [256], [345], [512], [512], [512]]
    assert made([512])[0].last == 3
    assert made([60])[0].last == 0


def test_what_was_run_is_not_run_again():
    measuring, ran = made([512, 100])
    measuring.look([ONE, OTHER, ONE], 0, "x")
    measuring.look([ONE], 0, "x")
    measuring.look([OTHER], measuring.last, "x")
    measuring.look([ONE, OTHER], measuring.last, "x")
    assert ran[1:] == [
        [(64, ONE), (64, OTHER)], [(512, OTHER), (100, OTHER)], [(512, ONE), (100, ONE)],
    ]  # fmt: skip


def test_the_estimate_is_over_all_that_was_looked_at():
    measuring, _ = made([512, 512, 100])
    assert (measuring.of(ONE).tokens, measuring.of(ONE).high) == (0, math.inf)
    measuring.look([ONE], 0, "x")
    measuring.look([ONE], 1, "x")
    found = measuring.of(ONE)
    wanted = np.concatenate([np.arange(1, 65), np.arange(1001, 1129)])
    assert (found.tokens, found.loss) == (192, pytest.approx(wanted.mean()))
    assert found.delta == pytest.approx(0.1 * wanted.mean(), rel=1e-5)
    measuring.look([ONE], measuring.last, "x")
    assert measuring.of(ONE).loss == measuring.loss
    assert measuring.of(ONE).loss_zeroed == pytest.approx(1.1 * measuring.loss, rel=1e-6)


def test_where_later_tokens_matter_a_look_is_at_whole_windows():
    measuring, ran = made([512, 512, 100], causal=False)
    for number in range(measuring.last + 1):
        measuring.look([ONE], number, "x")
    assert [[length for length, _ in each] for each in ran[1:]] == [[512], [512], [100]]


def test_progress_counts_what_is_run():
    calls = []
    measuring, _ = made([512, 100])
    measuring._progress = lambda *call: calls.append(call)
    measuring.look([ONE, OTHER], 0, "screening")
    assert calls == [("screening", 0, 2), ("screening", 2, 2)]
