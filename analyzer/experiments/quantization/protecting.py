"""What rounding does to single weights and to those around them, from the stored matrix alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from analyzer.analyze.running import Runnable
from analyzer.base.records import Coordinate
from analyzer.experiments.quantization.grid import Rounding
from analyzer.experiments.quantization.rounding import in_groups, levels, place_in_groups, rounded
from analyzer.projections.weights import read_rows

SAME = 1e-6  # relative: what rounding leaves of an extreme, but for that of floats


@dataclass(frozen=True)
class Held:
    """A weight in its group: `extreme` tells whether it is the least, the largest or the largest in magnitude of it.

    `rounded` is what it becomes, so that restoring it is a no-op where that is its value. `step` is its group's,
    `step_without` where none of the weights in question is in it; `error` the root mean square error of the group's
    others, `error_without` likewise.
    """

    weight: Coordinate
    value: float
    rounding: Rounding
    extreme: bool
    rounded: float
    step: float
    step_without: float
    error: float
    error_without: float

    @property
    def no_op(self) -> bool:
        """Whether restoring it changes nothing."""
        return abs(self.rounded - self.value) <= SAME * abs(self.value)


def read_affected(runnable: Runnable, weights: Sequence[Coordinate]) -> dict[Coordinate, torch.Tensor]:
    """Return of each weight its matrix, [rows, cols] in float32, those of one matrix the same."""
    by_place = {projection.place: projection for projection in runnable.projections}
    matrices = {}
    for place in dict.fromkeys(c.place for c in weights):
        matrix = by_place[place].matrix
        rows = read_rows(runnable.checkpoint, matrix, range(matrix.shape[0]))
        matrices[place] = torch.from_numpy(np.stack([rows[row] for row in range(matrix.shape[0])]).astype(np.float32))
    return {c: matrices[c.place] for c in weights}


def holds(matrices: Mapping[Coordinate, torch.Tensor], rounding: Rounding) -> list[Held]:
    """Return what a rounding does to weights, given the matrix of each, [rows, cols].

    Raises ForwardError where its group does not divide a matrix.
    """
    rounding = replace(rounding, z=None)
    for weight, matrix in matrices.items():
        rounding.group.check(f"the matrix of {weight}", (matrix.shape[0], matrix.shape[1]))
    return [_held(weight, matrices, rounding) for weight in matrices]


def _held(weight: Coordinate, matrices: Mapping[Coordinate, torch.Tensor], rounding: Rounding) -> Held:
    matrix = matrices[weight]
    shape = matrix.shape[0], matrix.shape[1]
    number, place = place_in_groups(weight.row, weight.col, rounding.group, shape)
    group = in_groups(matrix, rounding.group)[number : number + 1]
    others = torch.ones(group.shape[1], dtype=torch.bool)
    for other in matrices:
        if other.place == weight.place:
            there, at = place_in_groups(other.row, other.col, rounding.group, shape)
            others[at] &= there != number
    value = group[0, place]
    extreme = value.abs() == group.abs().max() if rounding.symmetric else value in (group.min(), group.max())
    after, rest = rounded(group, rounding), group[:, others]
    return Held(
        weight=weight,
        value=value.item(),
        rounding=rounding,
        extreme=bool(extreme),
        rounded=after[0, place].item(),
        step=levels(group, rounding)[1].item(),
        step_without=levels(rest, rounding)[1].item() if rest.numel() else 0.0,
        error=_rms(after[:, others] - rest),
        error_without=_rms(rounded(rest, rounding) - rest) if rest.numel() else 0.0,
    )


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0
