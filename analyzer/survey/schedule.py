"""Pure: which unit of a survey runs next, a state machine that is told the time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from analyzer.survey.units import BUSY, DONE, GATED, GONE, NETWORK, STOPPED, UNSUPPORTED, Outcome, Unit

MOST_BYTES = 32_000_000_000  # needed by all units that run at once; a larger unit runs alone
TRIES = 4  # of a unit that the network fails
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 900.0  # for all, after the network failed one
ANSWERED = (GONE, GATED, UNSUPPORTED)  # failures that tell that the network is there
BUSY_S = 5.0  # until a unit in other hands is looked at again


class Schedule:
    """Hands out units, the smallest first, while `slots` and the bytes of what runs allow.

    After a failure of the network nothing begins for a while, then one unit alone, which tells whether it is back;
    the unit that failed is tried again, TRIES times in all. Every unit that is handed out must be ended. Seconds are
    of any clock that only goes forward.
    """

    def __init__(self, units: Iterable[Unit], *, slots: int, most_bytes: int = MOST_BYTES) -> None:
        self._fresh = deque(sorted(units, key=lambda unit: (unit.needs, unit.name, unit.key)))
        self._again: list[tuple[float, int, Unit]] = []
        self._number = 0
        self._slots, self._most_bytes = slots, most_bytes
        self._tries: dict[str, int] = {}
        self._until = self._pause_s = 0.0
        self._probe: str | None = None
        self.running: dict[str, tuple[Unit, float]] = {}
        """Units in hand, each with the time when it was handed out."""
        self.bytes_running = 0
        self.left = len(self._fresh)
        """Units that are not settled."""
        self.bytes_left = sum(unit.needs for unit in self._fresh)

    @property
    def over(self) -> bool:
        """Whether all that was handed out has ended, and nothing will be."""
        return not (self.running or self._fresh or self._again)

    def take(self, now: float) -> Unit | None:
        """Hand out the next unit; null where none may begin now."""
        if now < self._until or (self._probe or "") in self.running or len(self.running) >= self._slots:
            return None
        due = self._again and self._again[0][0] <= now
        unit = self._again[0][2] if due else self._fresh[0] if self._fresh else None
        if unit is None or (self.running and self.bytes_running + unit.needs > self._most_bytes):
            return None
        if due:
            heapq.heappop(self._again)
        else:
            self._fresh.popleft()
        key = unit.key
        self.running[key] = unit, now
        self.bytes_running += unit.needs
        if self._pause_s:
            self._probe = key
        return unit

    def end(self, outcome: Outcome, now: float) -> bool:
        """Take back a unit with what became of it; returns whether it is settled, and will not be handed out again."""
        unit, began = self.running.pop(outcome.key)
        self.bytes_running -= unit.needs
        kind = outcome.failure and outcome.failure.kind
        failed = kind == NETWORK
        if outcome.state == DONE or kind in ANSWERED:
            self._pause_s = self._until = 0.0
        if self._probe == outcome.key:
            self._probe = None
        if failed:
            self._tries[outcome.key] = self._tries.get(outcome.key, 0) + 1
            if began >= self._until:  # what had begun before the pause tells nothing new
                self._pause_s = min(2 * self._pause_s or FIRST_PAUSE_S, LONGEST_PAUSE_S)
                self._until = now + self._pause_s
        if outcome.state == BUSY or (failed and self._tries[outcome.key] < TRIES):
            self._number += 1
            heapq.heappush(self._again, (now + BUSY_S * (outcome.state == BUSY), self._number, unit))
            return False
        self._tries.pop(outcome.key, None)
        self.left -= outcome.state != STOPPED
        self.bytes_left -= unit.needs * (outcome.state != STOPPED)
        return True

    def wait_s(self, now: float) -> float | None:
        """Return how long `take` will have nothing, as far as time alone tells; null where something must end first."""
        if len(self.running) >= self._slots or (self._probe or "") in self.running:
            return None
        at = max(self._until, self._again[0][0]) if self._again and not self._fresh else self._until
        return at - now if at > now else None

    def stop(self) -> None:
        """Hand out nothing more."""
        self._fresh.clear()
        self._again.clear()
