"""How far a survey is, as a line: rewritten on a terminal, else now and then."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

from analyzer.base.errors import shown
from analyzer.base.progress import duration
from analyzer.base.text import byte_size
from analyzer.survey.running import Tally
from analyzer.survey.schedule import Schedule

EVERY_S, LINES_EVERY_S = 0.5, 60.0
UNIT_COST = 20_000_000  # bytes that take about as long as what a unit costs beside reading
SHOWN = 3


def line_of(what: str, tally: Tally, schedule: Schedule, now: float) -> str:
    """Return how far a survey is: done, failed, bytes, how long it will take, and what is in hand, longest first."""
    failed = tally.failed.total()
    parts = [f"{what}: {tally.done:,} of {tally.total:,} done, {failed:,} failed"]
    if tally.bytes_total:
        parts.append(f"{byte_size(tally.bytes_done)} of {byte_size(tally.bytes_total)}")
    settled = tally.done + failed
    weight = tally.bytes_done + settled * UNIT_COST
    left = tally.bytes_total - tally.bytes_done + (tally.total - settled) * UNIT_COST
    if settled and left:
        parts.append(f"about {duration((now - tally.began) * left / weight)} left")
    if schedule.running:
        hand = sorted(schedule.running.values(), key=lambda each: (each[1], each[0].model))
        names = [f"{shown(unit.model, 40)} ({now - began:.0f} s)" for unit, began in hand[:SHOWN]]
        more = f" and {len(hand) - SHOWN} more" if hand[SHOWN:] else ""
        parts.append(f"in hand: {', '.join(names)}{more}")
    elif schedule.left:
        parts.append("waiting")
    return "; ".join(parts)


class Teller:
    """Tells on stderr how far a survey is; see Tell in running.py."""

    def __init__(self, what: str, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._quiet, self._clock = what, quiet, clock
        self._terminal = sys.stderr.isatty()
        self._next = clock() + (0.0 if self._terminal else LINES_EVERY_S)

    def __call__(self, tally: Tally, schedule: Schedule, now: float) -> None:
        """See Tell."""
        if self._quiet or self._clock() < self._next:
            return
        line = line_of(self._what, tally, schedule, now)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{shown(line, width)}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr)
        self._next = self._clock() + (EVERY_S if self._terminal else LINES_EVERY_S)

    def say(self, line: str) -> None:
        """Tell something else, also where all is quiet."""
        self.clear()
        print(line, file=sys.stderr)

    def clear(self) -> None:
        """Take the line away from a terminal."""
        if self._terminal and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
