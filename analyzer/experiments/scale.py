"""Figure 6: the loss while the weights are multiplied by factors, and whether another factor than 1 is better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from analyzer.base.records import Coordinate
from analyzer.experiments.controls.nearest import nearest_controls
from analyzer.experiments.lab.records import Arm, Claim, Cost, Experiment, Option, Outcome
from analyzer.experiments.reports.wording import plus_minus
from analyzer.forward.edits import scaling

if TYPE_CHECKING:
    from analyzer.experiments.lab.opening import Lab, Losses

FACTORS = (0.0, 0.2, 0.5, 0.8, 1.2, 1.5, 2.0, 3.0, -1.0)
JOINT, CONTROLS = "all jointly", "controls jointly"


def run(lab: Lab, *, factors: Sequence[float], jointly: bool = False) -> Outcome:
    """Multiply all weights `jointly`, or also each, and as many controls, by each factor, as rows of the same passes.

    The best factor of each is the one with the least loss on the first half of the windows; what it is worth is told
    by the second half, which had no say in choosing it.
    """
    from analyzer.experiments.lab.opening import measured_of

    groups = _groups(lab, jointly=jointly)
    controls = groups.get(CONTROLS, [])
    asked = [factor for factor in dict.fromkeys(factors) if factor != 1]
    arms = [
        Arm(
            f"{name} x {factor:g}",
            scaling(dict.fromkeys(coordinates, factor)),
            len(coordinates) if factor == 0 else 0,
            facts={"of": name, "factor": factor, "control": name == CONTROLS},
        )
        for name, coordinates in groups.items()
        for factor in asked
    ]
    arms = [Arm("original", facts={"of": "original", "factor": 1.0, "control": False}), *arms]
    losses = lab.losses(arms)
    measured = measured_of(arms, losses)
    best = [_best(name, arms, losses) for name in groups] if len(lab.windows) > 1 else []
    return Outcome(
        measured, tuple(_findings(best)), {"best": best, "controls": controls}, claims=(_claim(best, asked),)
    )


def _groups(lab: Lab, *, jointly: bool) -> dict[str, list[Coordinate]]:
    """Return what is scaled together, by name: each weight, all of them, and a control for each; or all alone."""
    coordinates = [weight.coordinate for weight in lab.weights]
    if jointly:
        return {JOINT if len(coordinates) > 1 else str(coordinates[0]): coordinates}
    controls = nearest_controls(lab.runnable, coordinates)
    groups = {str(c): [c] for c in coordinates}
    if len(coordinates) > 1:
        groups[JOINT] = coordinates
    if controls:
        groups[CONTROLS] = controls
    return groups


def _best(name: str, arms: Sequence[Arm], losses: Losses) -> dict[str, Any]:
    """Return the factor with the least loss on the first half of the windows, and its cost on the second."""
    from analyzer.experiments.lab.costs import cost_of

    half = losses.shape[1] // 2
    curve = {1.0: losses[0]} | {
        arm.facts["factor"]: losses[number] for number, arm in enumerate(arms) if arm.facts["of"] == name
    }
    means = {factor: float(each[:half].mean()) for factor, each in curve.items()}
    factor = min(means, key=lambda each: means[each] if math.isfinite(means[each]) else math.inf)
    cost = cost_of(losses[0, half:], curve[factor][half:])
    return {
        "of": name,
        "factor": factor,
        "delta": cost.delta,
        "delta_low": cost.delta_low,
        "delta_high": cost.delta_high,
        "better": cost.delta_high is not None and cost.delta_high < 0,
        "chosen_on": half,
        "reported_on": losses.shape[1] - half,
    }


def _findings(best: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not best:
        yield "Of one window none is left to say what the best factor is worth: give more (--windows)."
    for each in best:
        chosen = f"{each['of']}: on the first half of the text {each['factor']:g} is the best factor"
        if each["factor"] == 1:
            yield f"{chosen}: none is better than leaving it as it is."
            continue
        cost = Cost(math.nan, each["delta"], each["delta_low"], each["delta_high"])
        sure = "a gain" if each["better"] else "a loss" if cost.is_sure else "which is no sure gain"
        yield f"{chosen}; on the second half it changes the loss by {plus_minus(cost)} nats, {sure}."


def _claim(best: Sequence[dict[str, Any]], factors: Sequence[float]) -> Claim:
    """Return whether all of the weights together are better off with a factor above 1."""
    text = "a factor a little above 1 improves the model"
    if not best or not any(factor > 1 for factor in factors):
        return Claim(text, None, "no factor above 1 was chosen on one half of the text and judged on another")
    found = next((each for each in best if each["of"] == JOINT), best[0])
    cost = Cost(math.nan, found["delta"], found["delta_low"], found["delta_high"])
    if found["factor"] <= 1:
        return Claim(text, False, f"{found['factor']:g} is the best of the factors for {found['of']}")
    why = f"{found['of']} x {found['factor']:g}, the best on half of the text, changes the loss of the other half by "
    return Claim(text, found["better"] if cost.is_sure else None, f"{why}{plus_minus(cost)} nats")


def parse_factors(text: str) -> tuple[float, ...]:
    """Return several factors, separated by commas. Raises ValueError where one is no finite number."""
    factors = tuple(float(each) for each in text.split(","))
    if not all(map(math.isfinite, factors)):
        raise ValueError(f"{text!r} has a factor that is no finite number")
    return factors


EXPERIMENT = Experiment(
    name="scale",
    says="""Multiply the weights by factors (Figure 6), and say whether any is better than 1.

    Each weight, all jointly, and controls: the weights of the same matrices that are nearest in magnitude. The best
    factor is chosen on one half of the text and reported on the other.

    \b
    Examples:
      superweight experiment scale ./my-model
      superweight experiment scale ./my-model --weight 11,507,1229 --factors 0,0.5,1.5,2 --windows 16
    """,
    run=run,
    picture="factor",
    options=(Option("factors", "The factors, separated by commas.", parse_factors, FACTORS, "NUMBERS"),),
    in_all={"factors": (0.0, 0.5, 1.2, 1.5, 2.0), "jointly": True},
    less="five factors of all weights jointly, no controls",
)
