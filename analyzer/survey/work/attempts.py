"""One attempt at a unit: claim it, run it within its limits, and see what became of it.

It is what an engine has a worker do, wherever that is: it needs the survey's folder alone, and returns little.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from analyzer.base.errors import SurveyError
from analyzer.base.text import byte_size
from analyzer.survey.schedule import TRIES
from analyzer.survey.store import FAILURE, RESULT, Claim, Folder
from analyzer.survey.units import (
    BUG,
    BUSY,
    DONE,
    FAILED,
    MEMORY,
    NETWORK,
    STOPPED,
    TIMEOUT,
    Outcome,
    Unit,
)
from analyzer.survey.work import limits as within
from analyzer.survey.work.job import HAS_FAILED, NO_ROOM, OK
from analyzer.survey.work.limits import Limits, run_within


@dataclass(frozen=True)
class Terms:
    """On which terms units are run: their limits, and whose results count.

    With `again` only results count that were written since `began`, with `retry_failed` only such failures.
    """

    limits: Limits = field(default_factory=Limits)
    again: bool = False
    retry_failed: bool = False
    began: float = 0.0
    use_cache: bool = True
    token: str | None = field(default=None, repr=False)


def settled(folder: Folder, unit: Unit, terms: Terms) -> Outcome | None:
    """Return what became of a unit, by whomever; null where it is still to be done."""
    at = folder.written(unit, RESULT)
    if at is not None and not (terms.again and at < terms.began):
        return Outcome(unit.key, DONE)
    at = folder.written(unit, FAILURE)
    counts = at is not None and not ((terms.retry_failed or terms.again) and at < terms.began)
    failure = folder.failure(unit) if counts else None
    return None if failure is None or failure.kind == NETWORK else Outcome(unit.key, FAILED, failure)


def still_to_do(folder: Folder, units: Sequence[Unit], terms: Terms) -> list[Unit]:
    """Return the units that are not settled: without a result, and not failed for good."""
    if terms.again:
        return list(units)
    left = []
    for do in dict.fromkeys(unit.do for unit in units):
        results, failures = folder.keys(do, RESULT), folder.keys(do, FAILURE)
        for unit in units:
            if unit.do == do and unit.key not in results:
                failure = folder.failure(unit) if unit.key in failures and not terms.retry_failed else None
                if failure is None or (failure.kind == NETWORK and failure.attempts < TRIES):
                    left.append(unit)
    return left


def attempt(
    root: Path, unit: Unit, terms: Terms, stopped: threading.Event, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Do a unit that nobody has done and nobody works on; `environment` is what its process has beside this one's.

    Raises SurveyError where the folder has broken files, or takes none.
    """
    folder = Folder(root)
    if known := settled(folder, unit, terms):
        return known
    claim = folder.claim(unit)
    if claim is None:
        return Outcome(unit.key, BUSY)
    try:  # who had it before may have done it just now
        return settled(folder, unit, terms) or _run(folder, unit, terms, claim, stopped, environment or {})
    finally:
        claim.release()


def _run(
    folder: Folder, unit: Unit, terms: Terms, claim: Claim, stopped: threading.Event, more: Mapping[str, str]
) -> Outcome:
    message = {"unit": asdict(unit), "out": str(folder.root), "use_cache": terms.use_cache}
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}
    if terms.token is not None:
        environment["HF_TOKEN"] = terms.token
    before = folder.written(unit, RESULT)
    command = [sys.executable, "-m", "analyzer.survey.work.job"]
    text = json.dumps(message).encode() + b"\n"
    ended = run_within(command, text, terms.limits, environment=environment, stopped=stopped, beat=claim.beat)
    if ended == within.GIVEN_UP:
        return Outcome(unit.key, STOPPED)
    if ended == NO_ROOM:
        raise SurveyError(
            f"the disk has no room for what is found of {unit.model}, or for its weights: make room (see "
            f"{folder.root} and HF_HUB_CACHE), then run it again"
        )
    found = folder.written(unit, RESULT)
    if found is not None and (ended == OK or found != before):  # it may have been ended just after that
        return Outcome(unit.key, DONE)
    failure = folder.failure(unit) if ended == HAS_FAILED else None
    return Outcome(unit.key, FAILED, failure or folder.save_failure(unit, *_end_of(ended, terms.limits)))


def _end_of(ended: int | str, limits: Limits) -> tuple[str, str]:
    """Return the class and the line of a process that did not say itself how it ended."""
    if ended == within.TIME:
        return TIMEOUT, f"it took longer than the {limits.seconds:g} s of --timeout: give it more, and --retry-failed"
    if ended == within.MEMORY:
        most = byte_size(limits.memory or 0)
        return MEMORY, f"it took more than the {most} of --max-memory: give it more, and --retry-failed"
    if ended == -signal.SIGKILL:
        return MEMORY, "the system killed it (SIGKILL), as a rule for want of memory: take a larger machine"
    how = f"by signal {-int(ended)}" if int(ended) < 0 else f"with status {ended}"
    return BUG, f"its process ended {how} and left no result: SUPERWEIGHT_DEBUG=1 shows what it says"
