"""Engines: what units are handed to; and the one that runs them on this machine, a process each."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from analyzer.survey.schedule import MOST_BYTES
from analyzer.survey.units import BUSY, Outcome, Unit
from analyzer.survey.work.attempts import Terms, attempt


class Engine(Protocol):
    """Runs units somewhere. It is handed each by `start`, and returns small outcomes: results are files."""

    slots: int
    """How many units it runs at once."""

    most_bytes: int
    """How many bytes they may need together; a larger unit runs alone."""

    def start(self, unit: Unit) -> None:
        """Begin a unit, and return at once."""
        ...

    def ended(self, within_s: float) -> Outcome | None:
        """Return what became of a unit that has ended; null where none has within so many seconds.

        Raises what ends the whole survey.
        """
        ...

    def stop(self) -> None:
        """Give up what runs: each unit then ends as stopped."""
        ...


class LocalEngine:
    """Runs units on this machine; `places` has one environment for each that may run at once."""

    def __init__(self, out: Path, terms: Terms, places: Sequence[Mapping[str, str]]) -> None:
        self.slots, self.most_bytes = len(places), MOST_BYTES
        self._out, self._terms = out, terms
        self._places: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for place in places:
            self._places.put(place)
        self._ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def start(self, unit: Unit) -> None:
        """See Engine.start."""
        threading.Thread(target=self._attempt, args=(unit, self._places.get()), daemon=True).start()

    def ended(self, within_s: float) -> Outcome | None:
        """See Engine.ended."""
        try:
            outcome = self._ended.get(timeout=max(within_s, 0.001))
        except queue.Empty:
            return None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def stop(self) -> None:
        """See Engine.stop."""
        self._stopped.set()

    def _attempt(self, unit: Unit, place: Mapping[str, str]) -> None:
        outcome: Outcome | BaseException = Outcome(unit.key, BUSY)
        try:
            outcome = attempt(self._out, unit, self._terms, self._stopped, place)
        except BaseException as error:
            outcome = error
        finally:
            self._places.put(place)
            self._ended.put(outcome)


def places_for(do: str, device: str) -> list[dict[str, str]]:
    """Return the places in which this machine runs a kind of job: a core each, or a GPU each where a model is run.

    On a CPU one model is run at a time, with all cores.
    """
    if do in ("pin", "scan"):
        return [{} for _ in range(cores())]
    if device not in ("auto", "cuda"):
        return [{}]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in _gpus()] or [{}]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Return the names under which CUDA's devices are made visible, asked in a process that takes none of them."""
    ask = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    count = int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]
