"""What whole rows, columns and experts cost, and what else is asked of critical weights: halves, pairs, their units."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from analyzer.base.records import Coordinate, Unit
from analyzer.forward.edits import Intervention, scaling, zeroing
from analyzer.verify.costs.effects import beside_loss, check_finite, effect_of, look_at_controls
from analyzer.verify.costs.measuring import Measuring
from analyzer.verify.preparation import Statics
from analyzer.verify.records import ExpertOutput, Interaction, SuperWeight, UnitEffect

UNIT_CONTROLS = 4  # rows or columns of nearest norm, or experts that get about as many tokens
HALF = 0.5
MOST_PAIRED = 6  # critical weights, the costliest ones, that are zeroed two at a time


def measure_units(
    measuring: Measuring, units: Sequence[Unit], statics: Statics, outputs: Mapping[Unit, ExpertOutput]
) -> tuple[UnitEffect, ...]:
    """Return what zeroing each of these costs over the whole text, against controls of its kind.

    `outputs` are those of all experts, where there are any among the units. Raises ForwardError where the untouched
    loss is no number.
    """
    check_finite(measuring, statics)
    measuring.look([zeroing([unit]) for unit in units], measuring.last, "rows, columns, experts", compare=True)
    controls = {unit: _controls(unit, set(units), statics, outputs) for unit in units}
    for_whom: dict[Intervention, list[float]] = {}
    for unit, others in controls.items():
        for other in others:
            for_whom.setdefault(zeroing([other]), []).append(measuring.of(zeroing([unit])).delta)
    look_at_controls(measuring, for_whom)
    return tuple(_effect(measuring, unit, controls[unit]) for unit in units)


def _effect(measuring: Measuring, unit: Unit, controls: Sequence[Unit]) -> UnitEffect:
    cost, at = measuring.of(zeroing([unit])), unit.first
    others = [measuring.of(zeroing([control])) for control in controls]
    divergence, agreement, destroyed = beside_loss(measuring, zeroing([unit]))
    return UnitEffect(
        kind=unit.kind,
        layer=at.layer,
        expert=at.expert,
        row=unit.row,
        col=unit.col,
        effect=effect_of(measuring, cost, others),
        loss=cost.loss,
        loss_zeroed=cost.loss_zeroed,
        loss_tokens=cost.tokens,
        delta=cost.delta,
        delta_low=cost.low,
        delta_high=cost.high,
        controls=len(others),
        control_loss_max=cost.loss + max(each.delta for each in others) if others else None,
        kl_divergence=divergence,
        top1_agreement=agreement,
        destroyed=destroyed,
        tower=at.tower,
        mlp=at.mlp,
    )


def _controls(
    unit: Unit, avoid: Collection[Unit], statics: Statics, outputs: Mapping[Unit, ExpertOutput]
) -> Sequence[Unit]:
    """Return units of the same kind and projection, or layer, that are most like this one, none of those to avoid."""
    if unit.kind != "expert":
        near = statics.nearest_units(unit, UNIT_CONTROLS + len(avoid))
        return [each for each in near if each not in avoid][:UNIT_CONTROLS]
    tokens = {each: outputs[each].tokens if each in outputs else 0 for each in (unit, *statics.experts(unit))}
    others = [each for each in tokens if each not in avoid]
    return sorted(others, key=lambda each: (abs(tokens[each] - tokens[unit]), each.place))[:UNIT_CONTROLS]


def with_halves(measuring: Measuring, weights: Sequence[SuperWeight]) -> list[SuperWeight]:
    """Return the weights, the critical ones with what halving them costs over the whole text."""
    halves = {w.coordinate: scaling({w.coordinate: HALF}) for w in weights if w.effect == "critical"}
    measuring.look(halves.values(), measuring.last, "halves")

    def halved(weight: SuperWeight, half: Intervention) -> SuperWeight:
        cost = measuring.of(half)
        return replace(weight, delta_half=cost.delta, delta_half_low=cost.low, delta_half_high=cost.high)

    return [halved(w, halves[w.coordinate]) if w.coordinate in halves else w for w in weights]


def interactions_of(measuring: Measuring, weights: Iterable[SuperWeight]) -> tuple[Interaction, ...]:
    """Return what each two of the costliest critical weights cost together beyond the sum of what each does alone."""
    critical = sorted((w for w in weights if w.effect == "critical"), key=lambda w: -(w.delta or 0.0))
    pairs = list(combinations([w.coordinate for w in critical[:MOST_PAIRED]], 2))
    measuring.look(map(zeroing, pairs), measuring.last, "pairs")
    return tuple(_interaction(measuring, pair) for pair in pairs)


def _interaction(measuring: Measuring, pair: tuple[Coordinate, Coordinate]) -> Interaction:
    alone = [zeroing([each]) for each in pair]
    beyond = measuring.beyond(zeroing(pair), alone)
    first, second = (measuring.of(each).delta for each in alone)
    together = measuring.of(zeroing(pair))
    return Interaction(pair, together.delta, (first, second), beyond.delta, beyond.low, beyond.high, together.tokens)


def units_of(weights: Iterable[SuperWeight]) -> list[Unit]:
    """Return the rows and then the columns that the critical weights are in, each once."""
    critical = [w.coordinate for w in weights if w.effect == "critical"]
    rows, columns = ([Unit(c.place, row=c.row) for c in critical], [Unit(c.place, col=c.col) for c in critical])
    return list(dict.fromkeys([*rows, *columns]))
