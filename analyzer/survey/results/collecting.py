"""A survey's folder -> its table, and the catalog's entries for what was analyzed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyzer.base.atomic import write_whole
from analyzer.base.errors import SurveyError, shown
from analyzer.catalog.documents import entry_key, fault_of_name
from analyzer.catalog.families import family_of
from analyzer.catalog.files import save_entries
from analyzer.survey.results.table import rows_of, write_rows
from analyzer.survey.store import Folder
from analyzer.survey.units import PIN, Failure, Job, Unit

TABLE = "survey.parquet"


@dataclass
class Collected:
    """What was collected of a survey: units done, failed by class and missing, rows of the table, entries written.

    `older` are entries that were left out since the catalog has those of a newer version of this tool, `refused` such
    that no catalog can hold, each with why, a line each.
    """

    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    rows: int = 0
    entries: int = 0
    older: int = 0
    refused: list[str] = field(default_factory=list)


def collect(root: Path, catalog: Path | None) -> tuple[bytes, Collected]:
    """Return a survey's table as Parquet, also written to its folder, and what went into it.

    What was analyzed is then put into a catalog too, where there is one. Raises SurveyError where the folder is none,
    or broken, CatalogError where the catalog cannot be written.
    """
    folder, collected, analyzed = Folder(root), Collected(), dict[str, list[Unit]]()
    table = write_rows(_rows(folder, collected, analyzed))
    try:
        write_whole(root / TABLE, table)
    except OSError as error:
        raise SurveyError(
            f"cannot write {shown(root / TABLE)}: {error.strerror}; mend that, or collect a copy of the folder"
        ) from error
    if catalog is not None:
        for family, units in analyzed.items():
            entries = (_entry(folder, unit) for unit in units)
            count = save_entries(catalog, family, entries, keep_newer=True)  # each time the whole file is checked
            collected.entries += count
            collected.older += len(units) - count
    return table, collected


def asked_for(folder: Folder) -> list[Unit]:
    """Return every unit that was asked for, without those of names that have been pinned since."""
    return [unit for unit in folder.units() if unit.do != PIN or folder.result(unit) is None]


def _rows(folder: Folder, collected: Collected, analyzed: dict[str, list[Unit]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of all units, counting them; those that have an entry go into `analyzed`, by its family."""
    jobs: dict[str, Job] = {}
    for unit in asked_for(folder):
        if unit.job not in jobs:
            jobs[unit.job] = Job(PIN) if unit.do == PIN else folder.job(unit.job)
        found = folder.result(unit)
        failure: Failure | None = folder.failure(unit) if found is None else None
        if found is None and failure is None:
            collected.missing += 1
            continue
        result = found and found["result"]
        if result is None:
            assert failure is not None
            collected.failed[failure.kind] = collected.failed.get(failure.kind, 0) + 1
        else:
            collected.done += 1
        try:
            if result is not None and "entry" in result:
                model, _, _ = entry_key(result["entry"])
                if fault := fault_of_name(model):
                    collected.refused.append(f"no catalog may hold the name {shown(model)}: {fault}")
                else:
                    analyzed.setdefault(family_of(model), []).append(unit)
            rows = list(rows_of(unit, jobs[unit.job], result, failure))
        except (AttributeError, KeyError, TypeError) as error:
            raise folder.broken(unit) from error
        collected.rows += len(rows)
        yield from rows


def _entry(folder: Folder, unit: Unit) -> dict[str, Any]:
    """Return a unit's entry. Raises SurveyError where it has none any more."""
    found = folder.result(unit)
    if found is None or not isinstance(found["result"].get("entry"), dict):
        raise folder.broken(unit)
    return dict(found["result"]["entry"])
