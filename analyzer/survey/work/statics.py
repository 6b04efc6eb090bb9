"""What is known without running a model of the weights that a verification has judged: how they stand out."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from analyzer.analyze.verifying import Verified
from analyzer.base.records import plain
from analyzer.projections.weights import read_rows


def statics_of(run: Verified) -> dict[str, Any]:
    """Return the outliers by both scores, and of each judged weight |W| over the root mean square of its row.

    Raises SourceError where the rows cannot be read.
    """
    return {"outliers_by": plain(run.outliers_by), "row_ratios": _row_ratios(run) if run.outliers_by else {}}


def _row_ratios(run: Verified) -> dict[str, float]:
    by_place = {projection.place: projection for projection in run.runnable.projections}
    judged = sorted((weight.coordinate for weight in run.result.super_weights), key=lambda each: each.sort_key)
    ratios = {}
    for place, group in groupby(judged, key=lambda each: each.place):
        here = list(group)
        rows = read_rows(run.runnable.checkpoint, by_place[place].matrix, sorted({each.row for each in here}))
        for coordinate in here:
            row = rows[coordinate.row]
            mean_square = np.mean(np.square(row[np.isfinite(row)])) if np.isfinite(row[coordinate.col]) else 0.0
            if mean_square > 0:
                ratios[str(coordinate)] = float(abs(row[coordinate.col]) / np.sqrt(mean_square))
    return ratios
