"""What a catalog's entry says of a weight beside the verification: its module, and its place among those of its row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyzer.analyze.running import Runnable
from analyzer.base.records import Coordinate, Place
from analyzer.projections.weights import read_rows
from analyzer.scan.ranks import group_ranks


def facts_of(
    runnable: Runnable, parameters: Mapping[Place, str], weights: Sequence[Coordinate]
) -> dict[Coordinate, dict[str, Any]]:
    """Return of each weight its module in the stock model and how it ranks where it is stored.

    `parameters` are the stock model's, by the place of the down projection that they hold. `parameter` is told only of
    one that holds several experts, each of them a matrix of it. Ranks are those of `group_ranks`, and
    `row_others_max` is the largest magnitude in its row beside it, 0 where it has the row to itself. Reads a row for
    each, or all of a matrix that is stored by input channels. Raises SourceError where bytes cannot be read.
    """
    by_place = {projection.place: projection for projection in runnable.projections}
    held = Counter(parameters.values())
    facts: dict[Coordinate, dict[str, Any]] = {}
    for place in sorted({weight.place for weight in weights}):
        here = [weight for weight in weights if weight.place == place]
        rows = read_rows(runnable.checkpoint, by_place[place].matrix, sorted({weight.row for weight in here}))
        module, _, last = parameters[place].rpartition(".")
        names = {"module": module} if held[parameters[place]] == 1 else {"module": module, "parameter": last}
        for weight in here:
            row = rows[weight.row]
            others = np.abs(np.delete(row, weight.col))
            facts[weight] = {
                **names,
                **group_ranks(row, weight.col),
                "row_others_max": float(others.max(initial=0.0)),
            }
    return facts
