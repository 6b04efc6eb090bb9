"""Pure: whether a score that is known without running a model tells what zeroing a weight costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.base.text import count_of
from analyzer.survey.results.findings import CRITICAL, Weight

SCORES = {
    "rank": "rank by |W|",
    "gain_rank": "rank by gain",
    "magnitude": "|W|",
    "zscore": "z-score of |W| in its matrix",
    "row_ratio": "|W| over its row’s root mean square",
    "share": "share of the write",
}
"""What is held against the effect; all but the last are static."""
STATIC = tuple(SCORES)[:-1]
RANKS = ("rank", "gain_rank")  # of which the smallest is the best
LEAST_WEIGHTS, LEAST_MODELS = 20, 10
RESAMPLES, SEED = 1000, 0
MOST_UNDEFINED = 0.05  # of the models drawn again, where nothing varies: then few models make the whole difference
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Spearman's rank correlation of a score with the effect, over so many weights of so many models.

    `rho` is positive where a better score goes with a larger effect; null, as its 95 % interval, where there are too
    few weights or models, or they do not differ. `alone` says whether only weights that were zeroed alone are in it.
    """

    score: str
    alone: bool
    weights: int
    models: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None


def predict(weights: Sequence[Weight]) -> list[Prediction]:
    """Return how well each score tells the effect: of the weights zeroed alone, then of all, for each score."""
    return [_predict(weights, score, alone) for score in SCORES for alone in (True, False)]


def _predict(weights: Sequence[Weight], score: str, alone: bool) -> Prediction:
    known = [
        (-value if score in RANKS else value, weight.delta, weight.model)
        for weight in weights
        if (value := getattr(weight, score)) is not None
        and weight.delta is not None
        and not (alone and weight.zeroed_with)
    ]
    models = {model for _, _, model in known}
    if len(known) < LEAST_WEIGHTS or len(models) < LEAST_MODELS:
        return Prediction(score, alone, len(known), len(models))
    scores, effects, of = zip(*known, strict=True)
    return Prediction(score, alone, len(known), len(models), *correlation(scores, effects, of))


def correlation_said(prediction: Prediction) -> str:
    """Return a correlation with its interval in words and numbers."""
    if prediction.rho is None:
        of = f"{count_of(prediction.weights, 'weight')} of {count_of(prediction.models, 'model')}"
        return f"{unknown_said(prediction)}: {of}"
    return f"ρ = {prediction.rho:+.2f}, from {prediction.low:+.2f} to {prediction.high:+.2f}"


def unknown_said(prediction: Prediction) -> str:
    """Return why there is no correlation."""
    few = prediction.weights < LEAST_WEIGHTS or prediction.models < LEAST_MODELS
    return "too few" if few else "varies too little"


def score_said(score: str) -> str:
    """Return a score's name as it begins a sentence."""
    name = SCORES[score]
    return name[0].upper() + name[1:]


def first_by(weights: Sequence[Weight], rank: str) -> tuple[int, int]:
    """Return in how many models the weight that costs most is the first by a rank, and of how many that is known.

    They are those that have a critical weight.
    """
    worst: dict[str, Weight] = {}
    for weight in weights:
        if weight.kind == CRITICAL and weight.delta is not None:
            before = worst.setdefault(weight.model, weight)
            worst[weight.model] = max(before, weight, key=lambda each: each.delta or 0.0)
    ranks = [value for weight in worst.values() if (value := getattr(weight, rank)) is not None]
    return ranks.count(1), len(ranks)


def correlation(
    scores: Sequence[float], effects: Sequence[float], models: Sequence[str]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return Spearman's correlation and its 95 % interval by bootstrap over whole models; nulls where little varies.

    The weights of a model are no independent draws, its commits neither: models, by name, are drawn with replacement.
    """
    from scipy import stats

    x, y, of = (np.unique(np.array(each), return_inverse=True)[1] for each in (scores, effects, models))
    if not (x.max() and y.max()):
        return None, None, None
    count = of.max() + 1
    generator = np.random.default_rng(SEED)
    drawn = (np.bincount(generator.integers(count, size=count), minlength=count)[of] for _ in range(RESAMPLES))
    found = np.array([weighted(x, y, times.astype(np.float64)) for times in drawn])
    if np.isnan(found).mean() > MOST_UNDEFINED:
        return None, None, None
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(stats.spearmanr(scores, effects).statistic), float(low), float(high)


def weighted(x: NDArray[np.intp], y: NDArray[np.intp], times: Numbers) -> float:
    """Return Spearman's correlation of pairs that are there so many times; NaN where one of the two does not vary.

    `x` and `y` are the places of their values in ascending order, from 0, the same for the same value.
    """
    one, two = (_mean_ranks(each, times) for each in (x, y))
    one, two = (each - np.average(each, weights=times) for each in (one, two))
    spread = float((times * one**2).sum() * (times * two**2).sum())
    return float((times * one * two).sum()) / spread**0.5 if spread > 0 else float("nan")


def _mean_ranks(places: NDArray[np.intp], times: Numbers) -> Numbers:
    """Return the mean rank of each value among all that are there, ties sharing theirs."""
    count = np.bincount(places, times)
    ranks: Numbers = (np.cumsum(count) - count / 2)[places]
    return ranks
