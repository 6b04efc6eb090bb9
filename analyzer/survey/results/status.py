"""How far a survey's folder is: done, failed and why, in hand, missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from analyzer.base.errors import shown
from analyzer.base.text import byte_size, count_of
from analyzer.survey.results.collecting import asked_for
from analyzer.survey.store import FAILURE, RESULT, Folder
from analyzer.survey.units import JOBS, PIN, Unit

MAX_SHOWN = 12


@dataclass(frozen=True)
class Status:
    """How many units were asked for, what became of them, and the bytes of those; lists are a model a row."""

    total: int
    done: int
    missing: int
    failed: dict[str, int]
    bytes_total: int
    bytes_done: int
    failures: tuple[dict[str, object], ...]
    in_hand: tuple[dict[str, object], ...]


def status_of(root: Path) -> Status:
    """Return how far a survey is. Raises SurveyError where there is none in this folder."""
    folder = Folder(root)
    units = asked_for(folder)
    results, failed = (set().union(*(folder.keys(do, s) for do in (PIN, *JOBS))) for s in (RESULT, FAILURE))
    done = [unit for unit in units if unit.key in results]
    failures = []
    for unit in units:
        failure = folder.failure(unit) if unit.key in failed - results else None
        if failure is not None:
            failures.append(
                _named(unit) | {"failure": failure.kind, "line": failure.line, "attempts": failure.attempts}
            )
    by_key = {unit.key: unit for unit in units}
    in_hand = [_named(by_key[key]) | {"touched_s": round(age)} for key, age in folder.claims() if key in by_key]
    return Status(
        total=len(units),
        done=len(done),
        missing=len(units) - len(done) - len(failures),
        failed=dict(sorted(Counter(str(each["failure"]) for each in failures).items())),
        bytes_total=sum(unit.needs for unit in units),
        bytes_done=sum(unit.needs for unit in done),
        failures=tuple(failures),
        in_hand=tuple(in_hand),
    )


def render_status(status: Status, root: Path) -> str:
    """Return what a person reads of it."""
    why = ", ".join(f"{count} {kind}" for kind, count in status.failed.items())
    said = [
        f"{shown(root)}: {status.done:,} of {count_of(status.total, 'unit')} done "
        f"({byte_size(status.bytes_done)} of {byte_size(status.bytes_total)}), "
        f"{sum(status.failed.values()):,} failed{f' ({why})' if why else ''}, {status.missing:,} missing, "
        f"{len(status.in_hand):,} in hand"
    ]
    if status.in_hand:
        said.append("In hand: " + ", ".join(shown(each["model"], 60) for each in status.in_hand[:MAX_SHOWN]))
    if status.failures:
        width = max(map(len, status.failed))
        rows = status.failures[:MAX_SHOWN]
        lines = [f"{each['failure']:<{width}}  {shown(each['model'], 60)}: {shown(each['line'], 200)}" for each in rows]
        said.append("\n".join(lines))
    if status.failures[MAX_SHOWN:]:
        said.append(f"… and {len(status.failures) - MAX_SHOWN:,} more failed (--json lists all)")
    return "\n\n".join(said)


def _named(unit: Unit) -> dict[str, object]:
    return {"model": unit.model, "commit": unit.commit, "do": unit.do}
