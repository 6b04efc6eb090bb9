"""The loss of a text under interventions, token by token: windows and interventions ride as rows of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.forward.edits import Intervention
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Window

PASS_BYTES = 1 << 29  # of all rows' residual streams and attention masks in one pass over the weights

Watch = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Of the numbers of the rows of a pass, what it runs in: see observers.py."""


def token_losses(
    runner: Runner,
    pairs: Sequence[tuple[Window, Intervention]],
    progress: Callable[[int], object] = lambda _: None,
    watch: Watch = lambda _: nullcontext(),
) -> list[NDArray[np.float32]]:
    """Return the negative log-likelihood of each judged token, in nats, of each window under its intervention.

    The batch is split only where memory asks for it; `progress` is called with the number of pairs just done. Each
    pass runs in the context that `watch` gives for the numbers of its pairs.
    """
    found: dict[int, NDArray[np.float32]] = {}
    for length in sorted({len(window.ids) for window, _ in pairs}, reverse=True):
        same = [place for place, (window, _) in enumerate(pairs) if len(window.ids) == length]
        rows = max(1, PASS_BYTES // (4 * length * (3 * runner.hidden_size + length)))
        for start in range(0, len(same), rows):
            part = same[start : start + rows]
            with watch(part):
                found |= zip(part, _likelihoods(runner, [pairs[place] for place in part]), strict=True)
            progress(len(part))
    return [found[place] for place in range(len(pairs))]


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


def _likelihoods(runner: Runner, pairs: Sequence[tuple[Window, Intervention]]) -> list[NDArray[np.float32]]:
    """Return what token_losses does, all in one pass over the blocks, and the head once for each distinct state."""
    states = runner.states([window.ids for window, _ in pairs], [intervention for _, intervention in pairs])
    first: dict[Window, int] = {}
    judged: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    new: list[torch.Tensor] = []  # which of a row's judged states are not those of the first row of its window
    for row, (window, _) in enumerate(pairs):
        places = list(window.places)
        here, base = states[row, places], first.setdefault(window, row)
        is_new = torch.ones(len(places), dtype=torch.bool)
        if base != row:
            is_new = (here != states[base, places]).flatten(1).any(dim=1).cpu()
        new.append(is_new)
        judged.append(here[is_new])
        targets.append(torch.tensor(window.targets)[is_new])
    likelihoods = runner.likelihoods(torch.cat(judged), torch.cat(targets)).numpy()
    parts = np.split(likelihoods, np.cumsum([len(each) for each in judged])[:-1])
    found: list[NDArray[np.float32]] = []
    for row, (window, _) in enumerate(pairs):
        whole = parts[row] if first[window] == row else found[first[window]].copy()
        whole[new[row].numpy()] = parts[row]
        found.append(whole)
    return found
