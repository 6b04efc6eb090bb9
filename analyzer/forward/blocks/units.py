"""Whole rows and columns of down projections, and whole experts, times a factor while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from analyzer.base.errors import ForwardError
from analyzer.base.records import Place
from analyzer.forward.edits import Intervention, PlacedEdit, UnitEdit, WeightEdit


@dataclass(frozen=True)
class Product:
    """How a down projection made its output of its input."""

    multiply: Callable[[torch.Tensor], torch.Tensor]
    """[n, intermediate_size] -> [n, hidden_size], a bias of its own included."""
    added: torch.Tensor | None = None
    """The bias, [hidden_size], that is added to the output later."""

    def with_units(self, edits: Sequence[UnitEdit], entered: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Return the output [n, hidden_size] of some tokens, which was `left`, with these edits in place.

        A column is what multiplies one channel of the input; of a row the bias is left, of an expert nothing.
        """
        if columns := [edit for edit in edits if edit.unit.col is not None]:
            entered = entered.clone()
            for edit in columns:
                entered[:, edit.unit.col] *= float(edit.factor)
            left = self.multiply(entered)
        if rows := [edit for edit in edits if edit.unit.row is not None]:
            bias = self.multiply(entered.new_zeros(1, entered.shape[1]))[0]
            for edit in rows:
                row = edit.unit.row
                left[:, row] = bias[row] + float(edit.factor) * (left[:, row] - bias[row])
        for edit in edits:
            if edit.unit.kind == "expert":
                left = float(edit.factor) * left
                left = left if self.added is None else left - (1 - float(edit.factor)) * self.added
        return left


def units_of(interventions: Sequence[Intervention]) -> Mapping[Place, Mapping[int, Sequence[UnitEdit]]]:
    """Return the units that each row of a batch edits, by the places of their down projections.

    Raises ForwardError where a row edits a weight of such a unit too.
    """
    found: dict[Place, dict[int, list[UnitEdit]]] = {}
    for row, intervention in enumerate(interventions):
        for edit in intervention.edits:
            if isinstance(edit, UnitEdit):
                found.setdefault(edit.unit.place, {}).setdefault(row, []).append(edit)
        for edit in intervention.edits:
            if isinstance(edit, WeightEdit | PlacedEdit):
                at = edit.coordinate
                for unit in (each.unit for each in found.get(at.place, {}).get(row, ())):
                    if unit.row in (None, at.row) and unit.col in (None, at.col):
                        words = f"an intervention edits {at} and the {unit.kind} {unit} that it is in"
                        raise ForwardError(f"{words}: give one edit of it")
    return found
