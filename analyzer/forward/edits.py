"""What changes a model while it runs, as values: no weight is ever edited in place.

To add an edit: a record here with the `layer` where it begins to act, and its doing in interception.py. The runner and
all who call it hand interventions through as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analyzer.base.records import Coordinate


@dataclass(frozen=True, slots=True)
class WeightEdit:
    """One weight times a factor; by 0 it is zeroed."""

    coordinate: Coordinate
    factor: float = 0.0

    @property
    def layer(self) -> int:
        """The layer where it begins to act."""
        return self.coordinate.layer


@dataclass(frozen=True, slots=True)
class Intervention:
    """What one row of a batch runs with: all of these edits in place at once; none of them is the untouched model."""

    edits: tuple[WeightEdit, ...] = ()

    def __post_init__(self) -> None:
        if len({edit.coordinate for edit in self.edits}) < len(self.edits):
            raise ValueError("an intervention edits a weight twice")

    def until(self, layer: int) -> frozenset[WeightEdit]:
        """Return those that act in the layers up to this one, itself included."""
        return frozenset(edit for edit in self.edits if edit.layer <= layer)


UNTOUCHED = Intervention()


def zeroing(coordinates: Iterable[Coordinate]) -> Intervention:
    """Return the intervention that sets these weights to zero."""
    return Intervention(tuple(WeightEdit(coordinate) for coordinate in coordinates))


def scaling(factors: Mapping[Coordinate, float]) -> Intervention:
    """Return the intervention that multiplies each weight by its factor."""
    return Intervention(tuple(WeightEdit(coordinate, factor) for coordinate, factor in factors.items()))
