"""Control weights: those of the same matrices that are nearest in magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzer.base.records import Coordinate
from analyzer.scan.ranks import nearest_weights

if TYPE_CHECKING:
    from analyzer.analyze.running import Runnable


def nearest_controls(runnable: Runnable, weights: Sequence[Coordinate]) -> list[Coordinate]:
    """Return for each weight the one of another row of its matrix that is nearest in magnitude, each once."""
    by_place = {projection.place: projection for projection in runnable.projections}
    found: list[Coordinate] = []
    for c in weights:
        near = nearest_weights(runnable.checkpoint, by_place[c.place], c, 2 * len(weights))
        found += [other for other in near if other not in (*weights, *found)][:1]
    return found
