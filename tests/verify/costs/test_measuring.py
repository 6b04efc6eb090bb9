"""Looks at a growing portion of a text: what is run, that nothing is run twice, what is known meanwhile."""

import math

import numpy as np
import pytest

from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.forward.losses.paired import Told
from analyzer.model.tokens import Window
from analyzer.verify.costs.intervals import error_of_each, student
from analyzer.verify.costs.measuring import Measuring

ESTIMATED = np.float32(0)  # what an estimate is off
ONE, OTHER = (zeroing([Coordinate(1, None, row, 3)]) for row in (5, 6))


def window(length, first=0):
    ids = tuple(range(first, first + length))
    return Window(ids, tuple(range(length - 1)), ids[1:])


def made(lengths, *, causal=True, increase=0.01):
    """Return a measuring of windows whose tokens cost their id untouched, and a tenth more; and what was run."""
    ran = []

    def run(pairs, progress, *, sampled, compared):
        ran.append([(len(window.ids), intervention) for window, intervention in pairs])
        progress(len(pairs))
        return [told(window, intervention, sampled, compared) for window, intervention in pairs]

    def told(window, intervention, sampled, compared):
        losses = np.array(window.targets, np.float32) * np.float32(1 if intervention == UNTOUCHED else 1.1)
        beside = (np.full_like(losses, 0.5), np.ones(len(losses), np.bool_)) if compared else (None, None)
        sampled &= bool(ESTIMATED)
        return Told(losses + ESTIMATED * sampled, sampled, *beside)

    windows = [window(length, 1000 * place) for place, length in enumerate(lengths)]
    return Measuring(run, windows, lambda *_: None, causal=causal, increase=increase), ran


def test_the_untouched_text_is_run_first_and_whole():
    measuring, ran = made([512, 512, 100])
    assert ran == [[(512, UNTOUCHED), (512, UNTOUCHED), (100, UNTOUCHED)]]
    wanted = np.concatenate([np.arange(1, 512), np.arange(1001, 1512), np.arange(2001, 2100)])
    assert measuring.loss == pytest.approx(wanted.mean())


def looked_at(lengths, **options):
    measuring, ran = made(lengths, **options)
    for number in range(measuring.last + 1):
        measuring.look([ONE], number, "x")
    return [[length for length, _ in each] for each in ran[1:]]


def test_looks_are_at_first_tokens_and_then_at_as_many_windows_as_before_short_ones_first():
    assert looked_at([512, 512, 512, 345]) == [[64], [192], [345], [512], [512], [512]]
    assert looked_at([512] * 9) == [[64], [192], [512], [512], [512] * 2, [512] * 4, [512]]
    assert looked_at([512] * 7) == [[64], [192], [512], [512], [512] * 2, [512] * 2, [512]]
    assert looked_at([512, 100]) == [[64], [192], [100], [512]]
    assert looked_at([512]) == [[64], [192], [512]]
    assert looked_at([150]) == [[64], [150]]
    assert looked_at([60]) == [[60]]


def test_the_first_look_that_may_say_little_is_the_one_at_enough_tokens_for_kinds_that_are_missing():
    whole = 511 * 3 + 344
    loss = made([512, 512, 512, 345])[0].loss

    def first(least):
        return made([512, 512, 512, 345], increase=least / loss)[0].first

    assert [first(3 / n * (1 - n / whole) * 1.001) for n in (64, 192)] == [0, 1]
    assert first(3 / 192 * (1 - 192 / whole) * 0.999) == 2  # whatever the looks before it saw
    assert first(1e-9) == 5  # the last
    assert made([60], increase=1e-9)[0].first == 0


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
    measuring.look([ONE], 1, "x")
    measuring.look([ONE], 2, "x")
    found = measuring.of(ONE)
    wanted = np.concatenate([np.arange(1, 193), np.arange(2001, 2100)])
    assert (found.tokens, found.loss) == (291, pytest.approx(wanted.mean()))
    assert found.delta == pytest.approx(0.1 * wanted.mean(), rel=1e-5)
    measuring.look([ONE], measuring.last, "x")
    assert measuring.of(ONE).loss == measuring.loss
    assert measuring.of(ONE).loss_zeroed == pytest.approx(1.1 * measuring.loss, rel=1e-6)


def test_where_later_tokens_matter_a_look_is_at_whole_windows():
    assert looked_at([512, 512, 100], causal=False) == [[100], [512], [512]]


def test_each_look_may_err_alike_and_all_together_as_often_as_is_said():
    measuring, _ = made([512, 512, 100], increase=3 / 192 * 1.001 / 800)
    assert measuring.first == 1
    each = error_of_each([192, 192 + 99, 192 + 99 + 511], 1121, 0.05)
    assert 0.0125 < each < 0.025  # more than a third of it
    measuring.look([ONE], 0, "x")
    measuring.look([ONE], 1, "x")
    means = 0.1 * np.arange(1, 193).reshape(-1, 8).mean(axis=1)
    half = student(1 - each, 23) * means.std(ddof=1) / 24**0.5
    found = measuring.of(ONE)
    assert found.high - found.delta == pytest.approx(half, rel=1e-4)
    assert made([100])[0]._error == 0.025


def test_tokens_that_two_looks_are_at_count_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "analyzer.verify.costs.measuring.error_of_each", lambda *args: asked.append(args) or error_of_each(*args)
    )
    made([512, 512, 100], increase=1)
    made([200], increase=1)  # whose looks together are at more tokens than it has
    assert asked == [([64, 192, 192 + 99, 192 + 99 + 511], 1121, 0.05), ([64, 192], 199, 0.05)]


def test_what_was_estimated_is_told_again_in_the_last_look_and_what_was_not_compared_too(monkeypatch):
    monkeypatch.setitem(globals(), "ESTIMATED", np.float32(0.25))
    measuring, ran = made([512, 100])
    measuring.look([ONE], 2, "x")
    assert measuring.of(ONE).delta == pytest.approx(0.1 * np.arange(1001, 1100).mean() + 0.25, rel=1e-5)
    measuring.look([ONE], measuring.last, "x")
    assert ran[2:] == [[(512, ONE), (100, ONE)]]
    assert measuring.of(ONE).delta == pytest.approx(0.1 * measuring.loss, rel=1e-5)
    assert measuring.compared(ONE) is None
    for _ in range(2):
        measuring.look([ONE], measuring.last, "x", compare=True)
    assert ran[3:] == [[(512, ONE), (100, ONE)]]
    assert measuring.compared(ONE) == (0.5, 1.0)


def test_what_is_looked_at_over_a_window_at_once_is_not_run_on_its_first_tokens_apart():
    measuring, ran = made([512, 512, 100])
    measuring.look_at_window([ONE, ONE], "x")
    assert measuring.of(ONE).tokens == 511
    for number in range(measuring.last + 1):
        measuring.look([ONE], number, "x")
    assert ran[1:] == [[(512, ONE)], [(100, ONE)], [(512, ONE)]]
    for other in (made([200]), made([64] * 9), made([512, 100], causal=False)):
        other[0].look_at_window([ONE], "x")
        assert len(other[1]) == 1  # the untouched text alone


def test_no_look_before_the_last_is_at_all_of_the_text(monkeypatch):
    """What is estimated of all of it would have an interval of no width."""
    monkeypatch.setitem(globals(), "ESTIMATED", np.float32(0.25))
    measuring, ran = made([512, 100])
    measuring.look_at_window([ONE], "x")
    measuring.look([ONE, OTHER], 2, "x")
    assert ran[1:] == [[(512, ONE)], [(100, OTHER)]]
    measuring.look([OTHER], 0, "x")
    assert (measuring.of(ONE).tokens, measuring.of(OTHER).tokens) == (511, 63 + 1 + 99)


@pytest.mark.parametrize(("length", "looks"), [(65, [[65]]), (193, [[64], [193]])])
@pytest.mark.filterwarnings("error")
def test_no_first_tokens_are_all_that_is_judged_of_a_window(length, looks):
    """The last token of a window is read by none: a look at all others would be one at all of the text."""
    assert looked_at([length]) == looks
    measuring, _ = made([length])
    for number in range(measuring.last):
        measuring.look([ONE], number, "x")
        assert 0 < measuring.of(ONE).tokens < length - 1


def test_progress_counts_what_is_run():
    calls = []
    measuring, _ = made([512, 100])
    measuring._progress = lambda *call: calls.append(call)
    measuring.look([ONE, OTHER], 0, "screening")
    assert calls == [("screening", 0, 2), ("screening", 2, 2)]
