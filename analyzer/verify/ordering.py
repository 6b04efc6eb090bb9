"""In which order weights are told, and which of them are one column's: what it writes at once is one event."""

from __future__ import annotations

from collections.abc import Iterable

from analyzer.base.records import Coordinate
from analyzer.verify.records import SuperWeight


def in_order(weights: Iterable[SuperWeight]) -> tuple[SuperWeight, ...]:
    """Return super weights before others, those of a column together, by what they write, then by what zeroing costs.

    A column is as large as the largest of its weights.
    """
    weights = list(weights)
    of_column: dict[tuple[bool, Coordinate], tuple[float, float]] = {}
    for weight in weights:
        key = weight.is_super, weight.column
        of_column[key] = max(of_column.get(key, (0.0, 0.0)), _size(weight))

    def order(weight: SuperWeight) -> tuple[object, ...]:
        written, cost = of_column[weight.is_super, weight.column]
        here, alone = _size(weight)
        column = (not weight.is_super, -written, -cost, weight.column.sort_key)
        return (*column, -here, -alone, weight.round or 0, weight.coordinate.sort_key)

    return tuple(sorted(weights, key=order))


def columns_of(weights: Iterable[SuperWeight]) -> list[tuple[SuperWeight, ...]]:
    """Return the weights of each column that has several that are confirmed, late or critical, in their order."""
    columns: dict[Coordinate, list[SuperWeight]] = {}
    for weight in weights:
        if weight.is_super or weight.status == "late":
            columns.setdefault(weight.column, []).append(weight)
    return [tuple(column) for column in columns.values() if len(column) > 1]


def _size(weight: SuperWeight) -> tuple[float, float]:
    """Return how large the largest write is that a weight is behind, and what zeroing it costs where that matters."""
    cost = (weight.loss_zeroed or 0.0) - (weight.loss or 0.0) if weight.effect == "critical" else 0.0
    return abs(weight.change or 0.0), cost
