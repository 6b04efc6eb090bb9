"""The loss of a text under interventions, token by token: windows and interventions ride as rows of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.forward.edits import Intervention
from analyzer.forward.runner import Runner
from analyzer.model.rows import Untouched
from analyzer.model.tokens import Window

PASS_BYTES = 1 << 29  # of all rows' residual streams and attention masks in one pass over the weights

Watch = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Of the numbers of the rows of a pass, what it runs in: see observers.py."""


def token_losses(
    runner: Runner,
    pairs: Sequence[tuple[Window, Intervention]],
    progress: Callable[[int], object] = lambda _: None,
    watch: Watch | None = None,
) -> list[NDArray[np.float32]]:
    """Return the negative log-likelihood of each judged token, in nats, of each window under its intervention.

    The batch is split only where memory asks for it; `progress` is called with the number of pairs just done. Each
    pass runs in the context that `watch` gives for the numbers of its pairs, of one where rows do not run together.
    """
    found: dict[int, NDArray[np.float32]] = {}
    for part, states in states_of(runner, pairs, watch=watch):
        windows = [pairs[place][0] for place in part]
        found |= zip(part, likelihoods(runner, list(zip(windows, states, strict=True))), strict=True)
        progress(len(part))
    return [found[place] for place in range(len(pairs))]


def states_of(
    runner: Runner,
    pairs: Sequence[tuple[Window, Intervention]],
    *,
    watch: Watch | None = None,
    untouched: Untouched | None = None,
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Yield the numbers of the pairs of each pass, and the states at the judged tokens of each, [places, hidden_size].

    What `untouched` keeps of a block is not run again, and so not watched.
    """
    for length in sorted({len(window.ids) for window, _ in pairs}, reverse=True):
        same = [place for place, (window, _) in enumerate(pairs) if len(window.ids) == length]
        rows = 1 if watch is not None and runner.one_by_one else rows_in_pass(runner, length)
        for start in range(0, len(same), rows):
            part = same[start : start + rows]
            windows, interventions = zip(*(pairs[place] for place in part), strict=True)
            with nullcontext() if watch is None else watch(part):
                states = runner.states([window.ids for window in windows], interventions, untouched)
            yield part, [states[row, list(window.places)] for row, window in enumerate(windows)]


def rows_in_pass(runner: Runner, length: int) -> int:
    """Return how many rows of so many tokens ride in one pass over the weights, by what memory bears."""
    return max(1, PASS_BYTES // (4 * length * (3 * runner.hidden_size + length)))


def losses(
    runner: Runner,
    windows: Sequence[Window],
    interventions: Sequence[Intervention],
    progress: Callable[[int], object] = lambda _: None,
) -> list[float]:
    """Return the mean negative log-likelihood, in nats per judged token, of each intervention over all windows.

    Infinite where it is not a number.
    """
    pairs = [(window, intervention) for window in windows for intervention in interventions]
    found = token_losses(runner, pairs, progress)
    means = [
        float(np.concatenate(found[number :: len(interventions)]).mean(dtype=np.float64))
        for number in range(len(interventions))
    ]
    return [mean if math.isfinite(mean) else math.inf for mean in means]


def likelihoods(runner: Runner, judged: Sequence[tuple[Window, torch.Tensor]]) -> list[NDArray[np.float32]]:
    """Return the losses of rows' states at the judged tokens; what is as in a window's first row is as there."""
    if not judged:
        return []
    first: dict[Window, int] = {}
    targets: list[torch.Tensor] = []
    new: list[torch.Tensor] = []  # which of a row's judged states are not those of the first row of its window
    for row, (window, here) in enumerate(judged):
        base = first.setdefault(window, row)
        is_new = torch.ones(len(here), dtype=torch.bool)
        if base != row:
            is_new = (here != judged[base][1]).flatten(1).any(dim=1).cpu()
        new.append(is_new)
        targets.append(torch.tensor(window.targets)[is_new])
    states = torch.cat([here[is_new] for (_, here), is_new in zip(judged, new, strict=True)])
    told = runner.likelihoods(states, torch.cat(targets)).numpy()
    parts = np.split(told, np.cumsum([len(each) for each in targets])[:-1])
    found: list[NDArray[np.float32]] = []
    for row, (window, _) in enumerate(judged):
        whole = parts[row] if first[window] == row else found[first[window]].copy()
        whole[new[row].numpy()] = parts[row]
        found.append(whole)
    return found
