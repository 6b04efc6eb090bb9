"""What changes a model while it runs, as values: no weight is ever edited in place.

To add an edit that acts in or after a block: a record here that is an `Edit`, and its doing in interception.py.
`Intervention` and the runner ask an edit for what `Edit` names and for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Protocol

from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import Coordinate, Unit

if TYPE_CHECKING:
    import torch


class Edit(Hashable, Protocol):
    """One change, as a frozen record; rows of a batch whose edits are equal may run once for all of them."""

    @property
    def layer(self) -> int:
        """The layer in whose block it acts, and in no other."""

    @property
    def key(self) -> Hashable:
        """What it changes: an intervention holds one edit of it."""

    @property
    def weights(self) -> tuple[Coordinate, ...]:
        """The weights whose values its doing needs; the runner refuses those that the model does not have."""


@dataclass(frozen=True, slots=True)
class _OfWeight:
    """What changes one weight."""

    coordinate: Coordinate

    @property
    def layer(self) -> int:
        """The layer of the weight."""
        return self.coordinate.layer

    @property
    def key(self) -> Coordinate:
        """The weight."""
        return self.coordinate

    @property
    def weights(self) -> tuple[Coordinate, ...]:
        """The weight alone."""
        return (self.coordinate,)


@dataclass(frozen=True, slots=True)
class WeightEdit(_OfWeight):
    """One weight times a factor; by 0 it is zeroed. Raises ForwardError where either is no such thing."""

    factor: float = 0.0

    def __post_init__(self) -> None:
        if not _is_coordinate(self.coordinate):
            raise ForwardError(f"{shown(repr(self.coordinate))} is no weight: give a Coordinate of integers from 0")
        if not _is_finite(self.factor):
            raise ForwardError(f"weight {self.coordinate} times {shown(repr(self.factor))}: give a finite number")


@dataclass(frozen=True, slots=True)
class PlacedEdit(_OfWeight):
    """One weight times a factor at some positions of a row, and times another everywhere else.

    With 1 and 0 it is zeroed but at these positions: what it writes there is restored. Of an encoder-decoder the
    positions are the decoder's. Raises ForwardError where one of them is no such thing.
    """

    positions: frozenset[int]
    at: float = 1.0
    elsewhere: float = 0.0

    def __post_init__(self) -> None:
        WeightEdit(self.coordinate, self.at), WeightEdit(self.coordinate, self.elsewhere)  # or it is refused
        if not isinstance(self.positions, frozenset) or not all(map(_is_index, self.positions)):
            raise ForwardError(f"{shown(repr(self.positions))} are no positions: give a frozenset of integers from 0")


@dataclass(frozen=True, slots=True)
class UnitEdit:
    """A row or a column of a down projection, or what an expert gives, times a factor; by 0 it is zeroed.

    The router's choice stays as it is. Raises ForwardError where either is no such thing.
    """

    unit: Unit
    factor: float = 0.0

    def __post_init__(self) -> None:
        unit = self.unit
        one = isinstance(unit, Unit) and None in (unit.row, unit.col) and _is_coordinate(unit.first)
        if not one or (unit.kind == "expert" and unit.first.expert is None):
            raise ForwardError(f"{shown(repr(unit))} is no row, column or expert: give a Unit of one of these")
        if not _is_finite(self.factor):
            raise ForwardError(f"{unit.kind} {unit} times {shown(repr(self.factor))}: give a finite number")

    @property
    def layer(self) -> int:
        """The layer of the down projection."""
        return self.unit.first.layer

    @property
    def key(self) -> Unit:
        """The unit."""
        return self.unit

    @property
    def weights(self) -> tuple[Coordinate, ...]:
        """One of the unit, which tells whether the model has it."""
        return (self.unit.first,)


@dataclass(frozen=True, slots=True)
class InputEdit:
    """What the linear maps of a layer's block see, changed by a function of a map's name and what it would see.

    That is one row's input, [tokens, in_features]; the function returns it, or another of its shape (linears.py).
    """

    layer: int
    change: Callable[[str, torch.Tensor], torch.Tensor]

    @property
    def key(self) -> tuple[str, int]:
        """The inputs of this layer's block."""
        return "inputs of layer", self.layer

    @property
    def weights(self) -> tuple[Coordinate, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class StreamEdit:
    """Entries of the residual stream after a block, each set to a value: (position, channel, value).

    Of an encoder-decoder the positions are the decoder's. Raises ForwardError where one is no such thing, or set twice.
    """

    layer: int
    values: frozenset[tuple[int, int, float]]

    def __post_init__(self) -> None:
        for position, channel, value in self.values:
            if not (_is_index(position) and _is_index(channel) and _is_finite(value)):
                raise ForwardError(f"{shown(repr((position, channel, value)))} is no position, channel and value")
        if len({each[:2] for each in self.values}) < len(self.values):
            raise ForwardError(f"an entry of the stream after block {self.layer} is set twice: give one value for it")

    @property
    def key(self) -> str:
        """The stream after the block."""
        return f"the stream after block {self.layer}"

    @property
    def weights(self) -> tuple[Coordinate, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Intervention:
    """What one row of a batch runs with: all of these edits in place at once; none of them is the untouched model.

    Raises ForwardError where two of them change the same thing.
    """

    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        seen: set[Hashable] = set()
        for edit in self.edits:
            if edit.key in seen:
                raise ForwardError(f"an intervention edits {shown(edit.key)} twice: give one edit of it")
            seen.add(edit.key)

    def before(self, layer: int) -> frozenset[Edit]:
        """Return those that act in the layers before this one."""
        return frozenset(edit for edit in self.edits if edit.layer < layer)

    def within(self, layers: Collection[int]) -> frozenset[Edit]:
        """Return those that act in the block of these layers."""
        return frozenset(edit for edit in self.edits if edit.layer in layers)


UNTOUCHED = Intervention()


def zeroing(places: Iterable[Coordinate | Unit]) -> Intervention:
    """Return the intervention that sets these weights to zero, or these rows, columns and experts."""
    return Intervention(tuple(UnitEdit(at) if isinstance(at, Unit) else WeightEdit(at) for at in places))


def scaling(factors: Mapping[Coordinate, float]) -> Intervention:
    """Return the intervention that multiplies each weight by its factor."""
    return Intervention(tuple(WeightEdit(coordinate, factor) for coordinate, factor in factors.items()))


def changing_inputs(layers: Iterable[int], change: Callable[[str, torch.Tensor], torch.Tensor]) -> Intervention:
    """Return the intervention that has the linear maps of these layers see what a function makes of their inputs."""
    return Intervention(tuple(InputEdit(layer, change) for layer in layers))


def _is_coordinate(value: object) -> bool:
    if not isinstance(value, Coordinate):
        return False
    numbers = (value.layer, value.row, value.col, value.expert or 0, value.mlp or 0)
    return all(map(_is_index, numbers))


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
