"""What zeroing costs, and so what is critical: losses without each weight, without all, without control weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from analyzer.base.errors import ForwardError
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, Intervention, zeroing
from analyzer.verify.preparation import Statics
from analyzer.verify.records import SuperWeight

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
) -> list[SuperWeight]:
    """Return the weights with their losses and effects.

    All are run on the first window; those that cost next to nothing there are inert and go no further. The others
    are run on the whole text, and those that cost enough to be critical get their controls. Raises ForwardError where
    the loss is no number.
    """
    first, rest = windows[:1], windows[1:]
    before, after = _judged(first), _judged(rest)
    coordinates = [weight.coordinate for weight in found]
    screened = _zeroed_alone(losses, first, coordinates, "screening", progress)
    _check_finite(screened[None], statics)
    remaining = [c for c in coordinates if screened[c] - screened[None] >= SCREEN_INCREASE * screened[None]]
    at_rest = _zeroed_alone(losses, rest, remaining, "evaluation text", progress)
    whole = {c: (before * screened[c] + after * loss) / (before + after) for c, loss in at_rest.items()}
    suspects = [c for c in remaining if _is_costly(whole[None], whole[c])]
    controls = _control_losses(losses, suspects, coordinates, windows, statics, progress)

    def with_effect(weight: SuperWeight) -> SuperWeight:
        c = weight.coordinate
        if c not in whole:
            return replace(weight, effect="inert", loss=screened[None], loss_zeroed=screened[c], loss_tokens=before)
        return _with_controls(
            replace(weight, loss_tokens=before + after), whole[None], whole[c], *controls.get(c, ((), ()))
        )

    return [with_effect(weight) for weight in found]


def measure_asked(
    losses: Losses,
    asked: Sequence[SuperWeight],
    windows: Sequence[Window],
    statics: Statics,
    progress: Progress,
) -> list[SuperWeight]:
    """Return weights with their losses and effects, each run on the whole text, and with controls. Raises alike."""
    coordinates = [weight.coordinate for weight in asked]
    whole = _zeroed_alone(losses, windows, coordinates, "evaluation text", progress)
    _check_finite(whole[None], statics)
    controls = _control_losses(losses, coordinates, coordinates, windows, statics, progress)
    judged = _judged(windows)
    return [
        _with_controls(replace(w, loss_tokens=judged), whole[None], whole[w.coordinate], *controls[w.coordinate])
        for w in asked
    ]


def measure_together(
    losses: Losses, groups: Sequence[tuple[Coordinate, ...]], windows: Sequence[Window], progress: Progress
) -> dict[tuple[Coordinate, ...], float]:
    """Return the loss over the whole text with all weights of a group zeroed at once, for each group."""
    distinct = list(dict.fromkeys(groups))
    measured = _run(losses, windows, [zeroing(group) for group in distinct], "together", progress)
    return dict(zip(distinct, measured, strict=True))


def _check_finite(loss: float, statics: Statics) -> None:
    if not math.isfinite(loss):
        raise ForwardError(
            f"{statics.model}: its loss on the evaluation text is not finite: its weights hold NaN or Inf"
        )


def _control_losses(
    losses: Losses,
    suspects: Sequence[Coordinate],
    avoid: Collection[Coordinate],
    windows: Sequence[Window],
    statics: Statics,
    progress: Progress,
) -> dict[Coordinate, tuple[list[float], list[float]]]:
    """Return, for each suspect, the losses with its controls zeroed in its place: the nearest and the random ones."""
    controls = {c: _controls(statics, c, set(avoid)) for c in suspects}
    distinct = list(dict.fromkeys(control for each in controls.values() for kind in each for control in kind))
    measured = _run(losses, windows, [zeroing([c]) for c in distinct], "controls", progress)
    loss_of = dict(zip(distinct, measured, strict=True))
    return {
        c: ([loss_of[each] for each in near], [loss_of[each] for each in random])
        for c, (near, random) in controls.items()
    }


def _is_costly(loss: float, loss_zeroed: float) -> bool:
    """Tell whether zeroing costs enough to be critical, whatever controls do."""
    return loss_zeroed - loss >= CRITICAL_INCREASE * loss


def _zeroed_alone(
    losses: Losses, windows: Sequence[Window], coordinates: Sequence[Coordinate], what: str, progress: Progress
) -> dict[Coordinate | None, float]:
    """Return the loss with each weight zeroed alone, and of the untouched model by None."""
    interventions = [UNTOUCHED, *(zeroing([c]) for c in coordinates)]
    return dict(zip([None, *coordinates], _run(losses, windows, interventions, what, progress), strict=True))


def _run(
    losses: Losses,
    windows: Sequence[Window],
    interventions: Sequence[Intervention],
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
    return losses(windows, interventions, advance) if total else [0.0] * len(interventions)


def _with_controls(
    weight: SuperWeight, loss: float, loss_zeroed: float, near: Sequence[float], random: Sequence[float]
) -> SuperWeight:
    """Return a weight with its losses and its effect: without any control it is inert."""
    worst = max((*near, *random), default=None)
    over = worst is not None and loss_zeroed - loss >= CRITICAL_OVER_CONTROLS * max(worst - loss, 0.0)
    critical = over and _is_costly(loss, loss_zeroed)
    return replace(
        weight,
        effect="critical" if critical else "inert",
        loss=loss,
        loss_zeroed=loss_zeroed,
        control_loss_max=worst,
        control_loss_nearest=max(near, default=None),
        control_loss_random=max(random, default=None),
    )


def _judged(windows: Sequence[Window]) -> int:
    """Return how many tokens a loss over these windows is a mean of."""
    return sum(len(window.places) for window in windows)


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
