"""The loss of a text under interventions: all windows and interventions ride as rows of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from analyzer.forward.edits import Intervention
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Window

PASS_BYTES = 1 << 29  # of all rows' residual streams and attention masks in one pass over the weights
LOGIT_BYTES = 1 << 27


def losses(
    runner: Runner,
    windows: Sequence[Window],
    interventions: Sequence[Intervention],
    progress: Callable[[int], object] = lambda _: None,
) -> list[float]:
    """Return the mean negative log-likelihood, in nats per judged token, of each intervention over all windows.

    Infinite where it is not a number. The batch is split only where memory asks for it; `progress` is called with the
    number of (window, intervention) pairs just done.
    """
    totals = [0.0] * len(interventions)
    for length in sorted({len(window.ids) for window in windows}, reverse=True):
        same = [window for window in windows if len(window.ids) == length]
        pairs = [(window, index) for window in same for index in range(len(interventions))]
        rows = max(1, PASS_BYTES // (4 * length * (3 * runner.hidden_size + length)))
        for start in range(0, len(pairs), rows):
            part = pairs[start : start + rows]
            likelihoods = _likelihoods(
                runner, [window for window, _ in part], [interventions[index] for _, index in part], progress
            )
            for (_, index), nll in zip(part, likelihoods, strict=True):
                totals[index] += nll
    judged = sum(len(window.places) for window in windows)
    return [total / judged if math.isfinite(total) else math.inf for total in totals]


def _likelihoods(
    runner: Runner,
    windows: Sequence[Window],
    interventions: Sequence[Intervention],
    progress: Callable[[int], object],
) -> Iterator[float]:
    """Yield the summed negative log-likelihood of each window with its intervention, all in one pass over blocks."""
    states = runner.states([window.ids for window in windows], interventions)
    step = max(1, LOGIT_BYTES // (4 * runner.vocabulary))
    for row, window in enumerate(windows):
        total = 0.0
        for start in range(0, len(window.places), step):
            places, targets = (list(each[start : start + step]) for each in (window.places, window.targets))
            with runner.running():
                logits = runner.logits(states[row, places])
                wanted = torch.tensor(targets, device=logits.device)
                total += torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum").item()
        yield total
        progress(1)
