"""What zeroing costs, and so what is critical: losses without each weight, without all, without control weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from analyzer.base.errors import ForwardError
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate
from analyzer.forward.edits import Intervention, zeroing
from analyzer.verify.preparation import Statics
from analyzer.verify.records import JointZeroing, SuperWeight

if TYPE_CHECKING:
    from analyzer.model.tokens import Window

# A super weight is critical if zeroing it raises the loss by at least this part of it ...
CRITICAL_INCREASE = 0.01
# ... and by at least this multiple of the worst that zeroing a control weight does.
CRITICAL_OVER_CONTROLS = 10.0
# A weight that costs less than this on the first window of the text is inert, and the rest of it is not run.
SCREEN_INCREASE = CRITICAL_INCREASE / 4
NEAREST_CONTROLS = 2
RANDOM_CONTROLS = 2
CONTROL_SEED = 0
EFFECT_PARAMETERS = {
    "critical_increase": CRITICAL_INCREASE,
    "critical_over_controls": CRITICAL_OVER_CONTROLS,
    "screen_increase": SCREEN_INCREASE,
    "nearest_controls": NEAREST_CONTROLS,
    "random_controls": RANDOM_CONTROLS,
    "control_seed": CONTROL_SEED,
}

Losses = Callable[[Sequence["Window"], Sequence[Intervention], Callable[[int], object]], list[float]]
"""Runs a text under interventions: see forward/losses.py."""


def measure_effects(
    losses: Losses,
    found: Sequence[SuperWeight],
    windows: Sequence[Window],
    statics: Statics,
    progress: Progress,
) -> tuple[list[SuperWeight], JointZeroing | None]:
    """Return the weights with their losses and effects, and the loss with all confirmed ones zeroed.

    All are run on the first window; those that cost next to nothing there are inert and go no further. The others
    are run on the whole text, and those that cost enough to be critical get their controls. Raises ForwardError where
    the loss is no number.
    """
    first, rest = windows[:1], windows[1:]
    at_first = _run(losses, first, [(), *((weight.coordinate,) for weight in found)], "screening", progress)
    if not math.isfinite(at_first[0]):
        raise ForwardError(
            f"{statics.model}: its loss on the evaluation text is not finite: its weights hold NaN or Inf"
        )
    screened = dict(zip([None, *(weight.coordinate for weight in found)], at_first, strict=True))
    remaining = [c for c in screened if c and screened[c] - screened[None] >= SCREEN_INCREASE * screened[None]]

    confirmed = tuple(weight.coordinate for weight in found if weight.status == "confirmed")
    at_rest = _run(losses, rest, [(), *((c,) for c in remaining)], "evaluation text", progress)
    before, after = _judged(first), _judged(rest)
    by_weight = {
        c: (before * screened[c] + after * loss) / (before + after)
        for c, loss in zip([None, *remaining], at_rest, strict=True)
    }
    loss = by_weight[None]
    avoid = {weight.coordinate for weight in found}
    suspects = [c for c in remaining if by_weight[c] - loss >= CRITICAL_INCREASE * loss]
    near = {c: _first(statics.nearest(c, NEAREST_CONTROLS + len(avoid)), avoid, NEAREST_CONTROLS) for c in suspects}
    random = {c: _first(_random_weights(statics, c), avoid, RANDOM_CONTROLS) for c in suspects}
    distinct = list(dict.fromkeys(control for c in suspects for control in (*near[c], *random[c])))
    interventions: list[tuple[Coordinate, ...]] = [(c,) for c in distinct]
    if len(confirmed) > 1:
        interventions.append(confirmed)
    measured = _run(losses, windows, interventions, "controls", progress)
    joint = JointZeroing(confirmed, measured.pop()) if len(confirmed) > 1 else None
    control_losses = dict(zip(distinct, measured, strict=True))

    def with_effect(weight: SuperWeight) -> SuperWeight:
        c = weight.coordinate
        if c not in by_weight:
            return replace(weight, effect="inert", loss=screened[None], loss_zeroed=screened[c], loss_tokens=before)
        worst_near = max((control_losses[control] for control in near.get(c, ())), default=None)
        worst_random = max((control_losses[control] for control in random.get(c, ())), default=None)
        worst = max((w for w in (worst_near, worst_random) if w is not None), default=None)
        critical = worst is not None and by_weight[c] - loss >= CRITICAL_OVER_CONTROLS * max(worst - loss, 0.0)
        return replace(
            weight,
            effect="critical" if critical else "inert",
            loss=loss,
            loss_zeroed=by_weight[c],
            control_loss_max=worst,
            control_loss_nearest=worst_near,
            control_loss_random=worst_random,
            loss_tokens=before + after,
        )

    return [with_effect(weight) for weight in found], joint


def _run(
    losses: Losses,
    windows: Sequence[Window],
    interventions: Sequence[tuple[Coordinate, ...]],
    what: str,
    progress: Progress,
) -> list[float]:
    """Return the loss of each intervention over the windows; zeros where there are no windows."""
    done, total = 0, len(windows) * len(interventions)

    def advance(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(what, done, total)

    progress(what, 0, total)
    if not total:
        return [0.0] * len(interventions)
    return losses(windows, [zeroing(weights) for weights in interventions], advance)


def _judged(windows: Sequence[Window]) -> int:
    """Return how many tokens a loss over these windows is a mean of."""
    return sum(len(window.places) for window in windows)


def _first(candidates: Sequence[Coordinate], avoid: set[Coordinate], count: int) -> list[Coordinate]:
    return [c for c in candidates if c not in avoid][:count]


def _random_weights(statics: Statics, coordinate: Coordinate) -> list[Coordinate]:
    """Return weights of the same projection, in other rows; the same ones for all weights of the projection."""
    rows, cols = statics.shape(coordinate)
    generator = np.random.default_rng([CONTROL_SEED, coordinate.layer, (coordinate.expert or 0)])
    places = zip(generator.integers(rows, size=1000), generator.integers(cols, size=1000), strict=True)
    return [coordinate._replace(row=int(r), col=int(c)) for r, c in places if r != coordinate.row]
