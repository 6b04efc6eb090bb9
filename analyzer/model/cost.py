"""What running a model has cost so far: passes over its blocks, bytes, and where time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Cost:
    """Counts and seconds of the runs of one model.

    `passes` is how often a batch went in at the first block, whether it came to the last or not; `block_loads` how
    often a block's weights were put in place, `bytes_loaded` what these take as they are stored. Of the seconds within
    runs `seconds_waiting` are those in which bytes of a block were not there yet, `seconds_computing` all others, casts
    and the head included. On a GPU, which works on while the next thing is asked for, waiting for a copy to it counts
    as computing.
    """

    passes: int = 0
    block_loads: int = 0
    bytes_loaded: int = 0
    seconds_waiting: float = 0.0
    seconds_computing: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time that the context lasts as waiting."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_waiting += time.perf_counter() - began

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time that the context lasts as computing, but for what is waiting in it."""
        began, waited = time.perf_counter(), self.seconds_waiting
        try:
            yield
        finally:
            self.seconds_computing += time.perf_counter() - began - (self.seconds_waiting - waited)
