"""A survey's folder -> its table, and the catalog's entries for what was analyzed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyzer.base.atomic import write_whole
from analyzer.base.errors import SurveyError, shown
from analyzer.catalog.documents import fault_of_name
from analyzer.catalog.families import family_of
from analyzer.catalog.files import save_entry
from analyzer.survey.results.table import rows_of, write_rows
from analyzer.survey.store import Folder
from analyzer.survey.units import PIN, Failure, Job, Unit

TABLE = "survey.parquet"


@dataclass
class Collected:
    """What was collected of a survey: units done, failed by class and missing, rows of the table, entries written.

    `refused` are entries that no catalog can hold, each with why, a line each.
    """

    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    rows: int = 0
    entries: int = 0
    refused: list[str] = field(default_factory=list)


def collect(root: Path, catalog: Path | None) -> tuple[bytes, Collected]:
    """Return a survey's table as Parquet, also written to its folder, and what went into it.

    What was analyzed is put into a catalog too, where there is one. Raises SurveyError where the folder is none, or
    broken, CatalogError where the catalog cannot be written.
    """
    folder, collected = Folder(root), Collected()
    table = write_rows(_rows(folder, catalog, collected))
    try:
        write_whole(root / TABLE, table)
    except OSError as error:
        raise SurveyError(
            f"cannot write {shown(root / TABLE)}: {error.strerror}; mend that, or collect a copy of the folder"
        ) from error
    return table, collected


def asked_for(folder: Folder) -> list[Unit]:
    """Return every unit that was asked for, without those of names that have been pinned since."""
    return [unit for unit in folder.units() if unit.do != PIN or folder.result(unit) is None]


def _rows(folder: Folder, catalog: Path | None, collected: Collected) -> Iterator[dict[str, Any]]:
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
            if result is not None and catalog is not None and "entry" in result:
                _save(catalog, result["entry"], collected)
            rows = list(rows_of(unit, jobs[unit.job], result, failure))
        except (AttributeError, KeyError, TypeError) as error:
            raise folder.broken(unit) from error
        collected.rows += len(rows)
        yield from rows


def _save(catalog: Path, entry: dict[str, Any], collected: Collected) -> None:
    """Put an entry into the catalog. Raises CatalogError where that cannot be written."""
    if fault := fault_of_name(entry["model"]):
        collected.refused.append(f"no catalog may hold the name {shown(entry['model'])}: {fault}")
        return
    save_entry(catalog, family_of(entry["model"]), entry)
    collected.entries += 1
