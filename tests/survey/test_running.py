"""Units through an engine that is made up: what is told meanwhile, and what ends it."""

import io
import itertools
import signal

import pytest

from analyzer.base.errors import SurveyError
from analyzer.survey.running import Tally, run_units
from analyzer.survey.schedule import Schedule
from analyzer.survey.telling import Teller, line_of
from analyzer.survey.units import DONE, FAILED, STOPPED, Failure, Outcome, Unit


def unit(number):
    return Unit("scan", "job", f"owner/m{number}", f"owner/m{number}", needs=100_000_000)


class Instant:
    """An engine in which each unit ends at once, as `becomes` tells of its number."""

    slots = 2
    most_bytes = 10**12

    def __init__(self, becomes):
        self.begun, self._ended, self._becomes, self.stopped = [], [], becomes, 0

    def start(self, unit):
        self.begun.append(unit)
        outcome = self._becomes(len(self.begun) - 1)
        self._ended.append(outcome if isinstance(outcome, Exception) else Outcome(unit.key, *outcome))

    def ended(self, within_s):
        outcome = self._ended.pop(0) if self._ended else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def stop(self):
        self.stopped += 1


def test_all_units_are_counted_as_they_end():
    lines = []
    engine = Instant(lambda n: (FAILED, Failure("gone", "x")) if n == 1 else (DONE,))
    tally = run_units(
        [unit(n) for n in range(4)], engine, tell=lambda t, s, now: lines.append(line_of("scan", t, s, now))
    )
    assert (tally.done, dict(tally.failed), tally.bytes_done, tally.interrupted) == (3, {"gone": 1}, 400_000_000, False)
    assert lines[-1] == "scan: 3 of 4 done, 1 failed; 400 MB of 400 MB"
    assert engine.stopped == 1


def test_what_the_network_fails_is_tried_again_after_a_pause():
    hours = itertools.count(0, 60)
    engine = Instant(lambda n: (FAILED, Failure("network", "away")) if n == 0 else (DONE,))
    tally = run_units([unit(0), unit(1)], engine, clock=lambda: next(hours))
    assert (tally.done, dict(tally.failed)) == (2, {})
    assert [each.model for each in engine.begun] == ["owner/m0", "owner/m1", "owner/m0"]


def test_what_ends_the_survey_is_raised():
    engine = Instant(lambda n: SurveyError("the disk is full"))
    with pytest.raises(SurveyError, match="the disk is full"):
        run_units([unit(0)], engine)
    assert engine.stopped == 1


def test_a_ctrl_c_is_no_end_at_once():
    def press(number):
        signal.raise_signal(signal.SIGINT)
        return (DONE,) if number == 0 else (STOPPED,)

    said = []
    tally = run_units([unit(n) for n in range(6)], Instant(press), say=said.append)
    assert (tally.done, tally.interrupted) == (1, True)
    assert len(said) <= 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_line_of_a_survey_in_the_middle():
    schedule = Schedule([unit(n) for n in range(6)], slots=4)
    tally = Tally(6, 600_000_000, 0.0)
    assert line_of("scan", tally, schedule, 0) == "scan: 0 of 6 done, 0 failed; 0 B of 600 MB; waiting"
    begun = [schedule.take(now) for now in (0, 10, 20, 30)]
    schedule.end(Outcome(begun[0].key, DONE), 60)
    tally.add(begun[0], Outcome(begun[0].key, DONE))
    assert line_of("scan", tally, schedule, 120) == (
        "scan: 1 of 6 done, 0 failed; 100 MB of 600 MB; about 10 min left; "
        "in hand: owner/m1 (110 s), owner/m2 (100 s), owner/m3 (90 s)"
    )


def test_lines_come_now_and_then_where_there_is_no_terminal(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", stream)
    schedule, tally = Schedule([unit(0)], slots=1), Tally(1, 100, 0.0)
    for quiet in (False, True):
        teller = Teller("scan", quiet=quiet, clock=lambda: now[0])
        for second in range(0, 130, 10):
            now[0] = second
            teller(tally, schedule, second)
        now[0] = 0.0
    assert stream.getvalue().count("\n") == 2
