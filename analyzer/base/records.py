"""What results are made of: where a weight is, and records as what JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple


class Coordinate(NamedTuple):
    """One weight of a down projection: `row` is its output channel, `col` its input channel, all 0-based.

    `tower` names the stack of blocks where a model has several, such as "vision" and "language".
    """

    layer: int
    expert: int | None
    row: int
    col: int
    tower: str | None = None

    @property
    def sort_key(self) -> tuple[str, int, int, int, int]:
        """Order of ties: tower, layer, expert (none first), row, col."""
        return (self.tower or "", self.layer, -1 if self.expert is None else self.expert, self.row, self.col)

    def __str__(self) -> str:
        numbers = ", ".join(str(n) for n in self[:4] if n is not None)
        return f"({self.tower}: {numbers})" if self.tower else f"({numbers})"


Fields = Mapping[str, Any]
"""What a result says of one weight, by name."""
Outliers = Mapping[Coordinate, Fields]


def plain(value: Any) -> Any:
    """Return a record as what JSON has: dictionaries, lists, and null for numbers that are not finite."""
    if is_dataclass(value):
        return _without_tower({field.name: plain(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, Coordinate):
        return _without_tower(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_tower(members: dict[str, Any]) -> dict[str, Any]:
    """Leave out the tower where the model has but one."""
    return {key: member for key, member in members.items() if key != "tower" or member is not None}
