"""What an arm costs over windows, as a paired difference with its interval: Student's t, by scipy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from analyzer.experiments.lab.records import Cost

CONFIDENCE = 0.95


def cost_of(before: NDArray[np.float64], after: NDArray[np.float64]) -> Cost:
    """Return the cost of an arm from the mean losses of equal windows, [windows] each, without and with it."""
    nll = float(after.mean())
    if not math.isfinite(nll):
        return Cost(math.inf, math.inf, math.inf, math.inf)
    low, high = interval_of(after - before)
    return Cost(nll, float((after - before).mean()), low, high)


def interval_of(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean of independent values, null where there is but one."""
    from scipy import stats

    if len(values) < 2:
        return None, None
    if not values.any() or values.std() == 0:
        return float(values[0]), float(values[0])
    found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


def recovered_by(effect: Cost, left: Cost) -> float | None:
    """Return the part of an effect that an arm takes back; null where the interval of the effect has 0 in it."""
    sure = effect.is_sure or (effect.delta_low is None and effect.delta != 0)
    if not sure or not math.isfinite(effect.delta):
        return None
    return (effect.delta - left.delta) / effect.delta
