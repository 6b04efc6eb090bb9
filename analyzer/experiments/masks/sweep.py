"""Pruning by a criterion, more and more: the losses, and what is left of super activations and sinks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.records import Coordinate
from analyzer.experiments.activations.glance import Glance, glance
from analyzer.experiments.controls.others import places_in
from analyzer.experiments.lab.costs import cost_of
from analyzer.experiments.lab.opening import ORIGINAL, Lab
from analyzer.experiments.lab.records import Arm, Measured
from analyzer.experiments.masks.criteria import Criterion, dropping
from analyzer.forward.edits import zeroing
from analyzer.model.weights import StoredWeights

AS_IT_IS, OUT, IN, CONTROLS_OUT = "", "weights out", "weights in", "controls out"


@dataclass(frozen=True)
class Asked:
    """The weights, their controls, and where all of them are stored."""

    weights: list[Coordinate]
    controls: list[Coordinate]
    names: list[str]

    @property
    def every(self) -> list[Coordinate]:
        """The weights and their controls."""
        return [*self.weights, *self.controls]


class Sweep:
    """Prunes by one criterion after the other; the weights and controls are never dropped, but zeroed as rows are."""

    def __init__(self, lab: Lab, asked: Asked, until: float) -> None:
        self._lab, self._asked, self._until = lab, asked, until
        self._channels = sorted({c.row for c in asked.weights})

    def dense(self) -> list[Measured]:
        """Return the untouched model, and what forcing out costs in it."""
        lab, asked = self._lab, self._asked
        arms = [ORIGINAL, Arm(f"dense, {OUT}", zeroing(asked.weights), len(asked.weights), facts={"forced": OUT})]
        if asked.controls:
            controls = zeroing(asked.controls)
            arms.append(Arm(f"dense, {CONTROLS_OUT}", controls, len(asked.controls), facts={"forced": CONTROLS_OUT}))
        losses = lab.losses(arms)
        self._losses = losses[0]
        self._seen = self._glance(lab, arms[:1])[0]
        return self._measured(lab, arms, losses, [arm.zeroed for arm in arms])

    def along(self, way: Criterion, sparsities: Sequence[float]) -> Iterator[Measured]:
        """Yield the arms at one sparsity after the other, until the loss is as much above the dense one as is borne."""
        for sparsity in sparsities:
            arms = self._at(way, sparsity)
            yield from arms
            cost = arms[0].cost
            assert cost is not None
            if not cost.delta <= self._until:
                return

    def _at(self, way: Criterion, sparsity: float) -> list[Measured]:
        lab, asked = self._lab, self._asked
        stored = StoredWeights(lab.runnable.checkpoint)
        gone = set()
        for c in asked.every:
            ((name, places),) = places_in(lab.runnable.projections, [c]).items()
            if way.dropped(name, stored.read([name])[name], sparsity).view(-1)[int(places[0])]:
                gone.add(c)
        sets = {AS_IT_IS: gone}
        if set(asked.weights) - gone:
            sets[OUT] = gone | set(asked.weights)
        if set(asked.weights) & gone:
            sets[IN] = gone - set(asked.weights)
        if set(asked.controls) - gone:
            sets[CONTROLS_OUT] = gone | set(asked.controls)
        counts: dict[str, int] = {}
        runner = lab.changed(
            dropping(way, sparsity, asked.names, places_in(lab.runnable.projections, asked.every), counts)
        )
        facts = {"criterion": way.name, "sparsity": sparsity, "seed": way.seed, "kept": not set(asked.weights) & gone}
        arms = [
            Arm(
                f"{way} at {sparsity:g}" + (f", {forced}" if forced else ""),
                zeroing(c for c in asked.every if c in those),
                facts={**facts, "forced": forced, "of": f"{way.name}, {forced}" if forced else way.name},
            )
            for forced, those in sets.items()
        ]
        losses = lab.losses(arms, runner=runner)
        here = replace(lab, runner=runner)
        total = sum(counts.values())
        return self._measured(here, arms, losses, [total + len(those) for those in sets.values()])

    def _measured(
        self, lab: Lab, arms: Sequence[Arm], losses: NDArray[np.float64], zeroed: Sequence[int]
    ) -> list[Measured]:
        """Return arms with their costs against the dense model, and against the first of them (`effect`)."""
        found = []
        for number, (arm, seen) in enumerate(zip(arms, self._glance(lab, arms), strict=True)):
            facts: dict[str, Any] = {**arm.facts, **self._left(seen)}
            if number:
                effect = cost_of(losses[0], losses[number])
                facts |= {"effect": effect.delta, "effect_low": effect.delta_low, "effect_high": effect.delta_high}
            found.append(Measured(arm.name, zeroed[number], cost_of(self._losses, losses[number]), facts=facts))
        return found

    def _glance(self, lab: Lab, arms: Sequence[Arm]) -> list[list[Glance]]:
        """Return what there is to see of each arm at the beginning of each window."""
        pairs = [(window, arm) for window in lab.windows for arm in arms]
        seen = glance(lab.runner, [window for window, _ in pairs], [arm.of(0) for _, arm in pairs], self._channels)
        return [seen[number :: len(arms)] for number in range(len(arms))]

    def _left(self, seen: Sequence[Glance]) -> dict[str, Any]:
        """Return what is left of the largest that each weight's channel is in the dense model, and of sinks."""
        left, largest = [], 0.0
        layers = list(self._lab.runner.layers)
        for old, new in zip(self._seen, seen, strict=True):
            for c in self._asked.weights:
                column, first = self._channels.index(c.row), layers.index(c.layer)
                before, after = (np.abs(each.channels[first : first + 3, :, column]) for each in (old, new))
                place = np.unravel_index(int(before.argmax()), before.shape)
                left.append(float(after[place] / before[place]) if before[place] else math.nan)
                largest = max(largest, float(after[place]))
        shares = [share for each in seen if (share := each.sinks()) is not None]
        return {
            "left": float(np.mean(left)),
            "activation": largest,
            "sinks": float(np.mean(shares)) if shares else None,
        }
