"""Pure: the scans of several revisions -> how their outliers come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analyzer.base.records import Coordinate
from analyzer.diff.layers import overlap
from analyzer.diff.records import FollowedWeight, History, RevisionSummary
from analyzer.scan.records import ScanResult


def followed(scans: Sequence[ScanResult], known: Sequence[Coordinate], top: int) -> list[Coordinate]:
    """Return the weights to follow: the known ones, and the `top` that rank best in any of the scans.

    Of equal ranks, that of a later scan goes first.
    """
    best: dict[Coordinate, tuple[int, int]] = {}
    for number, scan in enumerate(scans):
        for outlier in scan.outliers:
            rank = (outlier.rank, -number)
            best[outlier.coordinate] = min(rank, best.get(outlier.coordinate, rank))
    for coordinate in known:
        best.pop(coordinate, None)
    order = sorted(best, key=lambda coordinate: (best[coordinate], coordinate.sort_key))
    return [*known, *order[:top]]


def follow(
    scans: Sequence[ScanResult],
    revisions: Sequence[str],
    known: Mapping[Coordinate, str],
    values: Sequence[Mapping[Coordinate, float]],
    top: int,
) -> History:
    """Return the weights that `followed` names through all revisions, and how each revision's ranking differs.

    `values` are what each revision has at these places, as far as it has them.
    """
    summaries = []
    ranks = [{outlier.coordinate: outlier.rank for outlier in scan.outliers} for scan in scans]
    for number, (scan, revision) in enumerate(zip(scans, revisions, strict=True)):
        shared, correlation = overlap(list(ranks[number - 1]), list(ranks[number])) if number else (None, None)
        summaries.append(
            RevisionSummary(
                revision, scan.commit, len(scan.outliers), shared, correlation, scan.bytes_read, scan.unread
            )
        )
    weights = [
        FollowedWeight(
            coordinate.tower,
            *coordinate[:4],
            known=known.get(coordinate),
            mlp=coordinate.mlp,
            values=tuple(each.get(coordinate) for each in values),
            ranks=tuple(each.get(coordinate) for each in ranks),
        )
        for coordinate in followed(scans, list(known), top)
        if any(coordinate in each for each in values)
    ]
    return History(scans[0].model, scans[0].score, tuple(summaries), tuple(weights))
