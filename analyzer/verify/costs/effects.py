"""What zeroing costs, and so what is critical: each weight on as much of the text as settles it, against controls."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.edits import Intervention, zeroing
from analyzer.verify.costs.intervals import BLOCK_TOKENS, UNSEEN_NATS, Estimate
from analyzer.verify.costs.measuring import ERROR, FEW_TOKENS, FIRST_TOKENS, Measuring
from analyzer.verify.preparation import Statics
from analyzer.verify.records import SuperWeight

# A super weight is critical if zeroing it raises the loss by at least this part of it ...
CRITICAL_INCREASE = 0.01
# ... and by at least this multiple of the worst that zeroing a control weight does.
CRITICAL_OVER_CONTROLS = 10.0
NEAREST_CONTROLS = 2
RANDOM_CONTROLS = 2
CONTROL_SEED = 0
COLUMN_LOOK = 1  # at what all weights of a column cost together
GROUP = 12  # weights that are behind no write, zeroed at once: at most so many
GROUPINGS = 2  # by what they move, and by chance: what cancels out in one does not in the other
EFFECT_PARAMETERS = {
    "critical_increase": CRITICAL_INCREASE,
    "critical_over_controls": CRITICAL_OVER_CONTROLS,
    "nearest_controls": NEAREST_CONTROLS,
    "random_controls": RANDOM_CONTROLS,
    "control_seed": CONTROL_SEED,
    "few_tokens": FEW_TOKENS,
    "first_tokens": FIRST_TOKENS,
    "block_tokens": BLOCK_TOKENS,
    "unseen_nats": UNSEEN_NATS,
    "error": ERROR,
    "group": GROUP,
    "groupings": GROUPINGS,
}


def measure_effects(
    measuring: Measuring, found: Sequence[SuperWeight], statics: Statics, loud: Collection[Coordinate] = ()
) -> list[SuperWeight]:
    """Return the weights with their losses and effects.

    Those behind a write are run one by one; the others, which are rejected, are looked at in groups first, and those of
    a group that may cost something one by one too. A weight is looked at until its interval says whether it costs
    enough to be critical; where that does not say that it costs too little, it is run over the whole text, which
    decides. `loud` ones, which will need that, are looked at over a whole window at once. Those that cost enough get
    their controls. Raises ForwardError where the untouched loss is no number.
    """
    check_finite(measuring, statics)
    in_group = _inert_in_groups(measuring, [w.coordinate for w in found if w.status == "rejected"])
    alone = [weight.coordinate for weight in found if weight.coordinate not in in_group]
    measuring.look_at_window([zeroing([c]) for c in alone if c in loud], "screening")
    costly = may_be_costly(measuring, [zeroing([c]) for c in alone])
    measuring.look(costly, measuring.last, "evaluation text", compare=True)
    suspects = [c for c in alone if zeroing([c]) in costly and measuring.of(zeroing([c])).delta >= measuring.least]
    controls = _controls_of(measuring, suspects, [weight.coordinate for weight in found], statics)
    return [
        _as_group(weight, measuring.of(zeroing(group)), len(group))
        if (group := in_group.get(weight.coordinate))
        else _with_effect(measuring, weight, controls.get(weight.coordinate))
        for weight in found
    ]


def may_be_costly(measuring: Measuring, interventions: Iterable[Intervention]) -> list[Intervention]:
    """Return those of which no look before the last says that they cost too little for what is critical."""
    asked, least = list(interventions), measuring.least
    left = asked
    for number in range(measuring.first, measuring.last):
        costs = {each: measuring.of(each) for each in left}
        left = [each for each, cost in costs.items() if cost.least < least <= cost.may_reach]
        measuring.look(left, number, "screening")
    return [each for each in asked if measuring.of(each).may_reach >= least]


def measure_asked(measuring: Measuring, asked: Sequence[SuperWeight], statics: Statics) -> list[SuperWeight]:
    """Return weights with their losses and effects, each over the whole text, and with controls. Raises alike."""
    check_finite(measuring, statics)
    coordinates = [weight.coordinate for weight in asked]
    measuring.look([zeroing([c]) for c in coordinates], measuring.last, "weights asked for", compare=True)
    controls = _controls_of(measuring, coordinates, coordinates, statics)
    return [_with_effect(measuring, weight, controls[weight.coordinate]) for weight in asked]


def measure_joint(measuring: Measuring, group: tuple[Coordinate, ...]) -> Estimate:
    """Return what zeroing all these weights at once costs, over the whole text.

    A part would not tell: what does much harm does more or less of it by how far into a window a token is.
    """
    intervention = zeroing(group)
    measuring.look([intervention], measuring.last, "together")
    return measuring.of(intervention)


def measure_columns(measuring: Measuring, columns: Sequence[tuple[Coordinate, ...]]) -> list[Estimate]:
    """Return what zeroing all weights of a column at once costs, for each, as a first look tells it."""
    measuring.look(map(zeroing, columns), min(COLUMN_LOOK, measuring.last), "columns")
    return [measuring.of(zeroing(column)) for column in columns]


def check_finite(measuring: Measuring, statics: Statics) -> None:
    """Raise ForwardError where the untouched loss is no number."""
    if not math.isfinite(measuring.loss):
        raise ForwardError(
            f"{statics.model}: its loss on the evaluation text is not finite: its weights hold NaN or Inf"
        )


def _inert_in_groups(
    measuring: Measuring, coordinates: Sequence[Coordinate]
) -> dict[Coordinate, tuple[Coordinate, ...]]:
    """Return the weights that cost nothing even when they are zeroed with others, each with its group.

    Those of a group that may cost something are not returned. A first grouping goes by their order: where what may cost
    something comes last, it is in few groups. The others go by chance. None where the weights are too few for that.
    """
    generator = np.random.default_rng(CONTROL_SEED)
    order, inert = list(coordinates), dict[Coordinate, tuple[Coordinate, ...]]()
    for _ in range(GROUPINGS):
        if len(order) <= GROUPINGS * GROUPINGS or not measuring.last:
            return {}
        count = max(GROUPINGS, math.ceil(len(order) / GROUP))
        ends = [math.ceil(len(order) * number / count) for number in range(count + 1)]
        groups = [tuple(order[start:end]) for start, end in pairwise(ends)]
        measuring.look(map(zeroing, groups), measuring.first, "screening")
        costs = {group: measuring.of(zeroing(group)) for group in groups}
        inert = {c: group for group, cost in costs.items() if cost.may_reach < measuring.least for c in group}
        order = [list(inert)[place] for place in generator.permutation(len(inert))]
    return inert


def _with_effect(
    measuring: Measuring, weight: SuperWeight, controls: tuple[list[Estimate], list[Estimate]] | None
) -> SuperWeight:
    """Return a weight with its losses and its effect: without any control it is inert."""
    cost = measuring.of(zeroing([weight.coordinate]))
    divergence, agreement, destroyed = beside_loss(measuring, zeroing([weight.coordinate]))
    near, random = controls or ([], [])

    def loss_of(estimates: Sequence[Estimate]) -> float | None:
        return cost.loss + max(each.delta for each in estimates) if estimates else None

    return replace(
        weight,
        effect=effect_of(measuring, cost, [*near, *random]),
        loss=cost.loss,
        loss_zeroed=cost.loss_zeroed,
        loss_tokens=cost.tokens,
        delta=cost.delta,
        delta_low=cost.low,
        delta_high=cost.high,
        control_loss_max=loss_of([*near, *random]),
        control_loss_nearest=loss_of(near),
        control_loss_random=loss_of(random),
        kl_divergence=divergence,
        top1_agreement=agreement,
        destroyed=destroyed,
    )


def effect_of(measuring: Measuring, cost: Estimate, controls: Sequence[Estimate]) -> str:
    """Return "critical" or "inert": without any control it is inert."""
    worst = max((each.delta for each in controls), default=math.inf)
    over = cost.delta >= CRITICAL_OVER_CONTROLS * max(worst, 0.0)
    return "critical" if over and cost.delta >= measuring.least else "inert"


def beside_loss(measuring: Measuring, intervention: Intervention) -> tuple[float | None, float | None, bool | None]:
    """Return the KL divergence, the agreement and whether the model is destroyed, null where it was not compared.

    What knows no more than the unigrams untouched cannot be destroyed: null too.
    """
    compared = measuring.compared(intervention)
    if compared is None:
        return None, None, None
    knows = measuring.loss <= measuring.unigram_loss
    return *compared, measuring.of(intervention).loss_zeroed > measuring.unigram_loss if knows else None


def _as_group(weight: SuperWeight, cost: Estimate, size: int) -> SuperWeight:
    """Return a weight that costs nothing even when it is zeroed with others, with what these cost together."""
    return replace(
        weight,
        effect="inert",
        loss_tokens=cost.tokens,
        delta=cost.delta,
        delta_low=cost.low,
        delta_high=cost.high,
        zeroed_with=size - 1,
    )


def _controls_of(
    measuring: Measuring, suspects: Sequence[Coordinate], avoid: Collection[Coordinate], statics: Statics
) -> dict[Coordinate, tuple[list[Estimate], list[Estimate]]]:
    """Return, for each suspect, what its controls cost: the nearest and the random ones.

    A control is looked at until it is sure whether the suspects that it is for cost so many times as much.
    """
    controls = {c: _controls(statics, c, set(avoid)) for c in suspects}
    for_whom: dict[Intervention, list[float]] = {}
    for c, kinds in controls.items():
        for control in (*kinds[0], *kinds[1]):
            for_whom.setdefault(zeroing([control]), []).append(measuring.of(zeroing([c])).delta)
    look_at_controls(measuring, for_whom)

    def costs(these: Iterable[Coordinate]) -> list[Estimate]:
        return [measuring.of(zeroing([control])) for control in these]

    return {c: (costs(near), costs(random)) for c, (near, random) in controls.items()}


def look_at_controls(measuring: Measuring, for_whom: Mapping[Intervention, Sequence[float]]) -> None:
    """Look at each control until it is sure whether those that it is for, of such costs, cost so many times as much."""
    left = list(for_whom)
    for number in range(measuring.last + 1):
        measuring.look(left, number, "controls")
        left = [control for control in left if not _is_settled(measuring.of(control), for_whom[control])]


def _is_settled(control: Estimate, deltas: Iterable[float]) -> bool:
    bounds = CRITICAL_OVER_CONTROLS * control.least, CRITICAL_OVER_CONTROLS * control.most
    return all(bounds[1] <= delta or bounds[0] > delta for delta in deltas)


def _controls(
    statics: Statics, coordinate: Coordinate, avoid: set[Coordinate]
) -> tuple[list[Coordinate], list[Coordinate]]:
    """Return a weight's controls of both kinds, nearest in magnitude and random, none of those to avoid."""
    near = statics.nearest(coordinate, NEAREST_CONTROLS + len(avoid))
    random = _random_weights(statics, coordinate)
    return _first(near, avoid, NEAREST_CONTROLS), _first(random, avoid, RANDOM_CONTROLS)


def _first(candidates: Sequence[Coordinate], avoid: set[Coordinate], count: int) -> list[Coordinate]:
    return [c for c in candidates if c not in avoid][:count]


def _random_weights(statics: Statics, coordinate: Coordinate) -> list[Coordinate]:
    """Return weights of the same projection, in other rows; the same ones for all weights of the projection."""
    rows, cols = statics.shape(coordinate)
    generator = np.random.default_rng([CONTROL_SEED, coordinate.layer, (coordinate.expert or 0)])
    places = zip(generator.integers(rows, size=1000), generator.integers(cols, size=1000), strict=True)
    return [coordinate._replace(row=int(r), col=int(c)) for r, c in places if r != coordinate.row]
