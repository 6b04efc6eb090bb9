"""Which of a model's known coordinates are exported, and full lists of them."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from analyzer.catalog.exports.modules import module_of
from analyzer.catalog.lookup import REPORTED_PRECISION, KnownCoordinate

COLUMNS = (
    "model", "commit", "layer", "expert", "row", "col", "value", "standing", "effect", "module", "sources",
)  # fmt: skip


def selected(
    coordinates: Iterable[KnownCoordinate], *, standings: Collection[str], critical: bool
) -> list[KnownCoordinate]:
    """Return the coordinates of these standings, all if none is given; `critical` leaves out inert verified ones.

    What is reported of no revision and of one, with the same value and standing, is returned once, as of the revision.
    """
    kept = [
        each
        for each in coordinates
        if (not standings or each.standing in standings)
        and (not critical or each.standing != "verified" or each.effect == "critical")
    ]
    pinned = [each for each in kept if each.commit is not None]
    ones = {each: [other for other in pinned if _is_one(each, other)] for each in kept if each.commit is None}
    return [
        replace(each, sources=_sources(each, *(one for one, others in ones.items() if each in others)))
        for each in kept
        if not ones.get(each)
    ]


def _is_one(unpinned: KnownCoordinate, pinned: KnownCoordinate) -> bool:
    """Return whether both are one claim, of which the first does not say the revision."""
    place, other = (
        (each.model.lower(), each.standing, each.tower, each.mlp, each.layer, each.expert, each.row, each.col)
        for each in (unpinned, pinned)
    )
    if place != other:
        return False
    if unpinned.value is None or pinned.value is None:
        return unpinned.value is None
    return math.isclose(unpinned.value, pinned.value, rel_tol=REPORTED_PRECISION)


def _sources(*coordinates: KnownCoordinate) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source for each in coordinates for source in each.sources))


def said_of_none(coordinates: Sequence[KnownCoordinate]) -> str:
    """Return in words why nothing of these known coordinates was selected, and what to do next."""
    if not coordinates:
        return "no coordinate is known, so that there is nothing to protect"
    count = Counter(each.standing for each in coordinates)
    critical = sum(each.effect == "critical" for each in coordinates)
    verified = f"{count['verified']} verified, {critical} of them critical"
    others = f"{count['reported']} reported, {count['disputed']} disputed"
    leave = "leave --standing and --critical out"
    hint = leave if count["verified"] else f"{leave}, or verify it yourself with `superweight analyze`"
    return f"no coordinate of that standing: {verified}, {others}: {hint}"


def export_rows(coordinates: Sequence[KnownCoordinate]) -> list[dict[str, Any]]:
    """Return the coordinates with the names of their modules, as JSON has them."""
    rows = ({**asdict(each), "sources": list(each.sources), "module": module_of(each)} for each in coordinates)
    return [{column: row[column] for column in COLUMNS} for row in rows]


def export_csv(coordinates: Sequence[KnownCoordinate]) -> str:
    """Return the coordinates as CSV, with sources joined by semicolons and nothing for what is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in export_rows(coordinates):
        writer.writerow({**row, "sources": "; ".join(row["sources"])})
    return text.getvalue()
