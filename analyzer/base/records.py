"""What results are made of: where a weight is, and records as what JSON has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

Place = tuple[str, int, int, int]
"""Where a down projection is, in the order of ties: tower, layer, MLP, expert; empty or -1 where there is but one."""


COORDINATE = re.compile(
    r"(?:(?P<tower>[^\s:,]{1,200}):)?(?P<layer>\d{1,9})(?:\.(?P<mlp>\d{1,9}))?(?:,(?P<expert>\d{1,9}))?"
    r",(?P<row>\d{1,9}),(?P<col>\d{1,9})",
    re.ASCII,
)


class Coordinate(NamedTuple):
    """One weight of a down projection: `row` is its output channel, `col` its input channel, all 0-based.

    `tower` names the stack of blocks where a model has several, such as "vision" and "language"; `mlp` is the number of
    the MLP where a block has several beside experts.
    """

    layer: int
    expert: int | None
    row: int
    col: int
    tower: str | None = None
    mlp: int | None = None

    @classmethod
    def parse(cls, text: str) -> Coordinate:
        """Return the coordinate that str() makes this text of. Raises ValueError where it is none."""
        found = COORDINATE.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no coordinate")
        numbers = {
            name: None if part is None else int(part) for name, part in found.groupdict().items() if name != "tower"
        }
        return cls(**numbers, tower=found["tower"])  # type: ignore[arg-type]

    @classmethod
    def at(cls, place: Place, row: int, col: int) -> Coordinate:
        """Return the weight at (row, col) of the down projection at this place."""
        tower, layer, mlp, expert = place
        return cls(layer, None if expert < 0 else expert, row, col, tower or None, None if mlp < 0 else mlp)

    @property
    def place(self) -> Place:
        """Where its down projection is: tower, layer, MLP and expert, none of these first."""
        return (
            self.tower or "",
            self.layer,
            -1 if self.mlp is None else self.mlp,
            -1 if self.expert is None else self.expert,
        )

    @property
    def sort_key(self) -> tuple[Place, int, int]:
        """Order of ties: place, row, col."""
        return self.place, self.row, self.col

    def __str__(self) -> str:
        tower = f"{self.tower}:" if self.tower else ""
        mlp = "" if self.mlp is None else f".{self.mlp}"
        expert = "" if self.expert is None else f",{self.expert}"
        return f"{tower}{self.layer}{mlp}{expert},{self.row},{self.col}"


UNIT = re.compile(r"(?P<place>.*),(?:(?P<row>\d{1,9}),any|any,(?P<col>\d{1,9}))", re.ASCII)


class Unit(NamedTuple):
    """A whole row of a down projection, a whole column, or a whole expert: `row`, `col`, or neither is given."""

    place: Place
    row: int | None = None
    col: int | None = None

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Return the row or column that str() makes this text of. Raises ValueError where it is none."""
        found = UNIT.fullmatch(text.strip())
        at = None if found is None else _first_at(found["place"])
        if found is None or at is None:
            raise ValueError(f"{text!r} is no row and no column")
        row, col = (None if part is None else int(part) for part in found.group("row", "col"))
        return cls(at.place, row, col)

    @classmethod
    def parse_expert(cls, text: str) -> Unit:
        """Return the expert that str() makes this text of. Raises ValueError where it is none."""
        at = _first_at(text.strip())
        if at is None or at.expert is None:
            raise ValueError(f"{text!r} is no expert")
        return cls(at.place)

    @property
    def kind(self) -> str:
        """What it is: a "row", a "column" or an "expert"."""
        return "row" if self.row is not None else "expert" if self.col is None else "column"

    @property
    def first(self) -> Coordinate:
        """One of its weights, at 0 of what it has all of."""
        return Coordinate.at(self.place, self.row or 0, self.col or 0)

    def __str__(self) -> str:
        place = str(Coordinate.at(self.place, 0, 0)).removesuffix(",0,0")
        return place + {"row": f",{self.row},any", "column": f",any,{self.col}", "expert": ""}[self.kind]


def _first_at(place: str) -> Coordinate | None:
    """Return the first weight of a place in this text; None where it is no place."""
    try:
        return Coordinate.parse(f"{place},0,0")
    except ValueError:
        return None


Fields = Mapping[str, Any]
"""What a result says of one weight, by name."""
Outliers = Mapping[Coordinate, Fields]


@dataclass(frozen=True, slots=True)
class Unread:
    """Matrices that look like down projections and are not read: a pattern of their names, how many, and why.

    `shape` is as stored, null where nothing is stored.
    """

    names: str
    count: int
    shape: tuple[int, ...] | None
    why: str


def plain(value: Any) -> Any:
    """Return a record as what JSON has: dictionaries, lists, and null for numbers that are not finite."""
    if is_dataclass(value):
        return _without_nulls({field.name: plain(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, Coordinate):
        return _without_nulls(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


OPTIONAL = frozenset({"tower", "mlp", "layers", "writes", "streams", "cost"})
"""Fields that are left out where they say nothing."""


def _without_nulls(members: dict[str, Any]) -> dict[str, Any]:
    return {key: member for key, member in members.items() if key not in OPTIONAL or member is not None}
