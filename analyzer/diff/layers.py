"""Pure: where in the network two versions differ, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analyzer.base.records import Coordinate, Outliers
from analyzer.diff.pairs import Pair, PairScan
from analyzer.diff.records import Change, LargestChange, LayerChange
from analyzer.diff.together import NEW, OLD
from analyzer.projections.projection import DownProjection


def overlap(old: Sequence[Coordinate], new: Sequence[Coordinate]) -> tuple[int, float | None]:
    """Return how many weights two rankings share, and Spearman's rank correlation over those.

    The correlation (C. Spearman, 1904) is of the order among the shared ones; null where they are fewer than three.
    """
    places = {coordinate: place for place, coordinate in enumerate(old)}
    shared = [places[coordinate] for coordinate in new if coordinate in places]
    if len(shared) < 3:
        return len(shared), None
    order = np.argsort(np.argsort(shared))
    return len(shared), float(np.corrcoef(order, np.arange(len(shared)))[0, 1])


def layers_of_pairs(scan: PairScan, top: int) -> list[LayerChange]:
    """Return how each layer differs between two checkpoints, from the `top` outliers and all weights of each."""
    pairs: dict[tuple[str, int], list[Pair]] = {}
    unpaired: dict[tuple[str, int], list[tuple[DownProjection | None, DownProjection | None]]] = {}
    for pair in scan.pairs:
        pairs.setdefault(pair.projections[OLD].place[:2], []).append(pair)
    for two in scan.unpaired:
        there = two[OLD] or two[NEW]
        assert there is not None
        unpaired.setdefault(there.place[:2], []).append(two)
    return [
        _layer_of_pairs(pairs.get(place, []), unpaired.get(place, []), top) for place in sorted({**pairs, **unpaired})
    ]


def _layer_of_pairs(
    pairs: Sequence[Pair], unpaired: Sequence[tuple[DownProjection | None, DownProjection | None]], top: int
) -> LayerChange:
    there = pairs[0].projections[OLD] if pairs else unpaired[0][OLD] or unpaired[0][NEW]
    assert there is not None
    differing = [pair for pair in pairs if not pair.same]
    layer = LayerChange(there.tower, there.layer, "changed", _note(pairs, unpaired), None, None, None, None, None)
    if not pairs:
        return replace(layer, state="incomparable")
    if not differing:
        same = "same file" if all(pair.shared for pair in pairs) else "same"
        return layer if unpaired else replace(layer, state=same)
    ranked = [_best(differing, side, top) for side in (OLD, NEW)]
    shared, correlation = overlap(*ranked)
    lost = [sum(pair.summaries[side].nonfinite for pair in differing if pair.summaries) for side in (OLD, NEW)]
    layer = replace(
        layer,
        ranked=max(map(len, ranked)),
        shared=shared,
        rank_correlation=correlation,
        old_nonfinite=lost[OLD],
        new_nonfinite=lost[NEW],
    )
    if any(pair.change is None for pair in differing):
        return replace(layer, state="not compared")
    relative, largest = _size_of_change(differing)
    return replace(layer, relative_change=relative, largest_change=largest)


def _note(pairs: Sequence[Pair], unpaired: Sequence[tuple[DownProjection | None, DownProjection | None]]) -> str | None:
    """Return what else is to be said of a layer and of its experts."""
    differing = [pair for pair in pairs if not pair.same]
    notes = []
    if len(pairs) > 1 and differing:
        notes.append(f"{len(differing)} of {len(pairs)} experts differ")
    elif len(pairs) > 1 and unpaired:
        notes.append(f"the {len(pairs)} experts of both are the same")
    for why, count in Counter(_why_unpaired(*two) for two in unpaired).items():
        notes.append(f"{count} {why}" if pairs or count > 1 else why)
    if any(pair.change is None for pair in differing):
        notes.append("stored in other ways, so ranked, but not compared weight by weight")
    return "; ".join(notes) or None


def _best(pairs: Sequence[Pair], side: int, top: int) -> list[Coordinate]:
    """Return the `top` outliers of one layer on one side, best first."""
    found: list[tuple[float, tuple[Any, ...], Coordinate]] = []
    for pair in pairs:
        projection = pair.projections[side]
        assert pair.summaries is not None  # of what differs
        summary = pair.summaries[side]
        for place, score in zip(summary.places, summary.scores, strict=True):
            row, col = divmod(int(place), projection.shape[1])
            coordinate = Coordinate(projection.layer, projection.expert, row, col, projection.tower, projection.mlp)
            found.append((-float(score), coordinate.sort_key, coordinate))
    return [coordinate for *_, coordinate in sorted(found)[:top]]


def _size_of_change(pairs: Sequence[Pair]) -> tuple[float | None, LargestChange | None]:
    squares, norm = 0.0, 0.0
    largest: LargestChange | None = None
    for pair in pairs:
        assert pair.summaries is not None
        assert pair.change is not None
        projection, before, change = pair.projections[OLD], pair.summaries[OLD], pair.change
        rows, cols = projection.shape
        if math.isfinite(before.std):
            norm += (rows * cols - before.nonfinite) * (before.std**2 + before.mean_abs**2) - change.excluded
        squares += change.squares
        if change.place is None:
            continue
        if largest is None or abs(change.new - change.old) > abs(largest.new - largest.old):
            row, col = divmod(change.place, cols)
            largest = LargestChange(projection.expert, row, col, change.old, change.new, projection.mlp)
    relative = math.sqrt(squares / norm) if norm > 0 else None
    return relative, largest


def _why_unpaired(old: DownProjection | None, new: DownProjection | None) -> str:
    if old is None or new is None:
        return f"only in the {'new' if old is None else 'old'} one"
    return " and ".join(f"{rows} x {cols}" for rows, cols in (old.shape, new.shape))


def layers_of_outliers(old: Outliers, new: Outliers, changes: Sequence[Change]) -> list[LayerChange]:
    """Return how each layer differs as far as ranked outliers tell."""
    places = sorted({c.place[:2]: c for c in {**old, **new}}.items())
    layers = []
    for place, there in places:
        ranked = [
            sorted((c for c in side if c.place[:2] == place), key=lambda c, side=side: side[c]["rank"])  # type: ignore[misc]
            for side in (old, new)
        ]
        here = [change for change in changes if change.coordinate.place[:2] == place]
        both = [c for c in here if c.old and c.new and c.old["value"] != c.new["value"]]
        most = max(both, key=lambda c: abs(c.new["value"] - c.old["value"]), default=None)  # type: ignore[index]
        largest = None
        if most and most.old and most.new:
            largest = LargestChange(most.expert, most.row, most.col, most.old["value"], most.new["value"], most.mlp)
        shared, correlation = overlap(*ranked)
        layers.append(
            LayerChange(
                there.tower, there.layer, "ranked", None, max(map(len, ranked)), shared, correlation, None, largest
            )
        )
    return layers
