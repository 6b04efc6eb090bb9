"""How findings say what an arm costs."""

from __future__ import annotations

import math

from analyzer.experiments.lab.records import Cost, Measured


def change_of(cost: Cost | None) -> str:
    """Return what an arm does to the loss, as the end of a sentence."""
    if cost is None:
        return "was not measured"
    if not math.isfinite(cost.nll):
        return "makes the loss infinite"
    before = Cost(cost.nll - cost.delta, 0.0, 0.0, 0.0)
    moved = f"moves the loss from {loss_of(before)} to {loss_of(cost)}"
    unsure = "" if cost.is_sure or cost.delta_low is None else ", which may be none"
    return f"{moved}, by {plus_minus(cost)} nats{unsure}"


def is_above(cost: Cost, other: Cost) -> bool | None:
    """Tell whether one costs more than another; null where their intervals overlap, or one has none."""
    if not math.isfinite(cost.delta) or not math.isfinite(other.delta):
        return None if cost.delta == other.delta else cost.delta > other.delta
    if cost.delta_low is None or cost.delta_high is None or other.delta_low is None or other.delta_high is None:
        return None
    if cost.delta_low > other.delta_high:
        return True
    return False if cost.delta_high < other.delta_low else None


def plus_minus(cost: Cost) -> str:
    """Return a difference with half of its interval, where there is one."""
    if cost.delta_high is None or not math.isfinite(cost.delta_high):
        return signed(cost.delta)
    return f"{signed(cost.delta)} ±{cost.delta_high - cost.delta:.4f}"


def loss_of(cost: Cost) -> str:
    """Return a loss with its perplexity."""
    return f"{cost.nll:.4f} (perplexity {perplexity_of(cost)})"


def perplexity_of(cost: Cost) -> str:
    """Return a perplexity in a few digits."""
    return "infinite" if not math.isfinite(cost.perplexity) else f"{cost.perplexity:,.4g}"


def signed(value: float) -> str:
    """Return a difference of losses, never -0."""
    return "infinite" if not math.isfinite(value) else f"{round(value, 4) + 0.0:+.4f}"


def percent_of(arm: Measured) -> str:
    """Return the part of an effect that an arm takes back."""
    return "-" if arm.recovered is None else f"{arm.recovered:.0%}"
