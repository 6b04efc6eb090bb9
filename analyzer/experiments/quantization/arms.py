"""The arms of the experiment: matrices rounded, weights in them restored or not, activations rounded over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from analyzer.analyze.running import Runnable
from analyzer.base.records import Coordinate
from analyzer.experiments.controls.others import Places, places_in
from analyzer.experiments.lab.records import Arm
from analyzer.experiments.quantization.activations import ActivationRounding
from analyzer.experiments.quantization.grid import ACTIVATION_BITS, HELD_OUT, SMOOTH, Rounding, name_of, setting_of
from analyzer.experiments.quantization.matrices import Quantized, StoredMatrix
from analyzer.experiments.quantization.protecting import SAME
from analyzer.forward.edits import UNTOUCHED, Intervention, changing_inputs, scaling

Factors = Mapping[str, torch.Tensor]
ZS = (9.0, 12.0, 20.0)  # where magnitudes may be clipped; the authors' code was run with these, and 11


class Arms:
    """Makes arms of weights in their matrices, [rows, cols] each, as `affected` has them.

    Matrices are loaded with the weights restored; an arm that does not restore them edits them to what they are
    rounded to, so that both are rows of the same passes, and one row where rounding keeps the weights anyway.
    """

    def __init__(
        self,
        runnable: Runnable,
        matrices: Mapping[str, StoredMatrix],
        affected: Mapping[Coordinate, torch.Tensor],
        layers: Sequence[int],
    ) -> None:
        self._matrices, self._affected, self._layers = matrices, affected, layers
        self._stored = {each.place: matrices[each.name] for each in runnable.projections if each.name in matrices}
        self._kept: Places = places_in(runnable.projections, list(affected))
        self._changes: dict[Rounding, Quantized] = {}

    def clipped(self, rounding: Rounding) -> list[Arm]:
        """Return an arm for each of ZS, clipped there before and restored after."""
        changes = (Quantized(replace(rounding, z=z), self._matrices, self._kept) for z in ZS)
        return [
            Arm(name_of(change.rounding), change=change, facts=setting_of(change.rounding, restore=True))
            for change in changes
        ]

    def of_weights(self, rounding: Rounding, z: float) -> Iterator[Arm]:
        """Yield four arms: clipped before or not, restored after or not."""
        for each in (rounding, replace(rounding, z=z)):
            change = self._change(each)
            for restore in (False, True):
                name = f"{name_of(each)}, restored" if restore else name_of(each)
                edits = UNTOUCHED if restore else self._unrestored(change)
                yield Arm(name, edits, change=change, facts=setting_of(each, restore=restore))

    def of_activations(
        self, under: Rounding | None, kinds: Sequence[str], per: Sequence[str], factors: Factors
    ) -> Iterator[Arm]:
        """Yield arms whose activations are rounded, over matrices rounded in a way, or as they are; none is restored.

        `factors` are SmoothQuant's. The arm of rounded matrices alone comes first.
        """
        plain, smooth = self._over(under, {}), self._over(under, factors)
        name = "weights as they are" if under is None else name_of(under)
        if under is not None:
            yield Arm(name, plain[1], change=plain[0], facts=setting_of(under))
        for steps in per:
            for kind in kinds:
                smoothed = kind == SMOOTH
                how = ActivationRounding(
                    ACTIVATION_BITS, steps, held_out=kind == HELD_OUT, factors=factors if smoothed else {}
                )
                change, left = smooth if smoothed else plain
                edits = Intervention((*left.edits, *changing_inputs(self._layers, how).edits))
                facts = setting_of(under, activations=kind, per=steps)
                yield Arm(f"{name}, A{ACTIVATION_BITS} {kind} per {steps}", edits, change=change, facts=facts)

    def _over(self, under: Rounding | None, factors: Factors) -> tuple[Quantized | None, Intervention]:
        if under is None:
            return None, UNTOUCHED
        change = Quantized(under, self._matrices, self._kept, factors) if factors else self._change(under)
        return change, self._unrestored(change)

    def _change(self, rounding: Rounding) -> Quantized:
        """Return the change of a rounding, the same for all of its arms."""
        return self._changes.setdefault(rounding, Quantized(rounding, self._matrices, self._kept))

    def _unrestored(self, change: Quantized) -> Intervention:
        """Return the edits that make of restored weights what they are rounded to; none where that is what they are."""
        rounded = {c.place: change.rounded(self._stored[c.place], matrix) for c, matrix in self._affected.items()}
        factors = {
            c: float(rounded[c.place][c.row, c.col] / matrix[c.row, c.col]) for c, matrix in self._affected.items()
        }
        return scaling({c: factor for c, factor in factors.items() if abs(factor - 1) > SAME})
