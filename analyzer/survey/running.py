"""Runs units through an engine until all are settled, or somebody has had enough: once to finish, twice to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from analyzer.survey.schedule import Schedule
from analyzer.survey.units import FAILED, STOPPED, Outcome, Unit
from analyzer.survey.work.local import Engine

LOOK_S = 0.5  # between two looks at what has ended, and at who has had enough


@dataclass
class Tally:
    """How far a survey is: of `total` units how many are done, and how many have failed, by their class."""

    total: int
    bytes_total: int
    began: float
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    bytes_done: int = 0
    interrupted: bool = False

    def add(self, unit: Unit, outcome: Outcome) -> None:
        """Count a unit that is settled."""
        if outcome.state == STOPPED:
            return
        self.bytes_done += unit.needs
        if outcome.state == FAILED and outcome.failure is not None:
            self.failed[outcome.failure.kind] += 1
        else:
            self.done += 1


Tell = Callable[[Tally, Schedule, float], object]
"""Called now and then with how far it is, what is in hand, and the time by the clock of both."""


def run_units(
    units: Sequence[Unit],
    engine: Engine,
    *,
    tell: Tell = lambda *_: None,
    say: Callable[[str], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Tally:
    """Run units until every one is settled, or was given up.

    `say` is handed a line for a person. After one Ctrl-C what runs is finished, after a second it is given up; the
    tally is then `interrupted`. Raises what the engine raises where nothing can go on, what runs is then given up.
    """
    schedule = Schedule(units, slots=engine.slots, most_bytes=engine.most_bytes)
    tally = Tally(len(units), schedule.bytes_left, clock())
    known = 0
    try:
        with _interrupts() as count:
            while not schedule.over:
                if count() > known:
                    known = count()
                    tally.interrupted = True
                    _give_up(known, schedule, engine, say)
                while unit := schedule.take(clock()):
                    engine.start(unit)
                now = clock()
                wait_s = schedule.wait_s(now)
                outcome = engine.ended(LOOK_S if wait_s is None else min(wait_s, LOOK_S))
                while outcome is not None:
                    unit = schedule.running[outcome.key][0]
                    if schedule.end(outcome, clock()):
                        tally.add(unit, outcome)
                    outcome = engine.ended(0.0)
                tell(tally, schedule, clock())
    finally:
        engine.stop()
    return tally


def _give_up(count: int, schedule: Schedule, engine: Engine, say: Callable[[str], object]) -> None:
    schedule.stop()
    if count == 1:
        say(f"finishing the {len(schedule.running)} in hand; Ctrl-C again gives them up")
    else:
        engine.stop()


@contextmanager
def _interrupts() -> Iterator[Callable[[], int]]:
    """Count each Ctrl-C in place of being interrupted by it; yields what tells how many there were."""
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    if threading.current_thread() is not threading.main_thread():
        yield lambda: count
        return
    before = signal.signal(signal.SIGINT, add)
    try:
        yield lambda: count
    finally:
        signal.signal(signal.SIGINT, before)
