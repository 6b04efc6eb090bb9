"""Pure NumPy: what a paired difference per token is, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

UNSEEN_NATS = 1.0  # that a token may cost of a kind that was not seen; such are 3 of n tokens at most (rule of three)
SIMULATED = 1 << 17  # runs of looks, for what each of them may err
BLOCK_TOKENS = 8  # whose mean is one observation: tokens beside each other are alike


@dataclass(frozen=True)
class Estimate:
    """What an intervention adds to the loss, in nats per token: a mean over `tokens` tokens, and its interval.

    `loss` and `loss_zeroed` are the means over these tokens without it and with it. `low` and `high` are the ends for
    any text of this kind, `least` and `most` those for the whole of this one, of which these tokens are a part.
    """

    loss: float
    loss_zeroed: float
    low: float
    high: float
    least: float
    most: float
    tokens: int
    unseen: float = math.inf
    """What the whole text may cost by tokens of a kind that was not seen yet: see UNSEEN_NATS."""

    @property
    def may_reach(self) -> float:
        """The most that the whole text may say, what was not seen included."""
        return max(self.most, self.delta + self.unseen)

    @property
    def delta(self) -> float:
        """The mean difference."""
        return self.loss_zeroed - self.loss


UNKNOWN = Estimate(math.nan, math.nan, -math.inf, math.inf, -math.inf, math.inf, 0)


def estimate(
    before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]], error: float, whole: int
) -> Estimate:
    """Return the mean of the paired differences of windows' tokens, and an interval of Student's t over their blocks.

    `error` is how often the true mean is beyond either end. Of the `whole` text, which has so many tokens, the part
    that was not looked at alone is unknown: its interval is narrower by the root of that part. Infinite where a loss
    is no number.
    """
    total, changed = (float(np.concatenate(each).sum(dtype=np.float64)) for each in (before, after))
    tokens = sum(map(len, before))
    if not math.isfinite(changed):
        return Estimate(total / tokens, math.inf, math.inf, math.inf, math.inf, math.inf, tokens)
    means = np.concatenate(
        [_block_means(new.astype(np.float64) - old) for old, new in zip(before, after, strict=True) if len(old)]
    )
    delta = (changed - total) / tokens
    if len(means) < 2:
        return replace(UNKNOWN, loss=total / tokens, loss_zeroed=changed / tokens, tokens=tokens)
    half = student(1 - error, len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    left = 1 - tokens / whole
    here = half * math.sqrt(left)
    low, high, least, most = delta - half, delta + half, delta - here, delta + here
    return Estimate(total / tokens, changed / tokens, low, high, least, most, tokens, unseen(tokens, whole))


def unseen(tokens: int, whole: int) -> float:
    """Return what tokens of kinds that are not among these may add to the mean of the whole text: see UNSEEN_NATS."""
    return UNSEEN_NATS * 3 / tokens * (1 - tokens / whole)


def error_of_each(tokens: Sequence[int], whole: int, error: float) -> float:
    """Return how often each of several looks may be wrong, all alike, for all of them together to be so at `error`.

    A look is at so many `tokens` of the `whole` text, those of the looks before it among them, and asks whether the
    mean of the whole is above a value. Means are taken for normal: what several looks say hangs together, so that this
    is more than a share of the error (Pocock, 1977; here by simulation, for looks of any size at a text that ends).
    """
    if not tokens:
        return error
    information = 1 / (1 / np.array(tokens, np.float64) - 1 / whole)  # of the mean of a finite text
    steps = np.random.default_rng(0).standard_normal((SIMULATED, len(tokens)))
    steps *= np.sqrt(np.diff(information, prepend=0.0))
    lowest = (steps.cumsum(axis=1) / np.sqrt(information)).min(axis=1)
    return NormalDist().cdf(float(np.quantile(lowest, error)))


def student(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t by its expansion around the normal one (Abramowitz and Stegun, 26.7.5).

    Within 1 % of it for a probability of at most 0.999 and a freedom of at least 7.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def _block_means(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of blocks of tokens; what is left at the end is spread over them."""
    count = max(1, len(differences) // BLOCK_TOKENS)
    return np.array([block.mean() for block in np.array_split(differences, count)])
