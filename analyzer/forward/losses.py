"""The loss of a text under interventions, token by token: windows and interventions ride as rows of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Window

PASS_BYTES = 1 << 29  # of all rows' residual streams and attention masks in one pass over the weights

Watch = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Of the numbers of the rows of a pass, what it runs in: see observers.py."""


class Comparison:
    """What interventions make of what the model says, beside what it says untouched.

    Of the windows on which the untouched model was run it holds the states at the judged tokens, [places, hidden_size]
    each, so that what is `asked` for costs no pass over the blocks, but the head twice. `found` has of each window and
    intervention the KL divergence of the untouched from the other, in nats, [places], and whether the likeliest token
    is the same.
    """

    def __init__(self) -> None:
        self.asked: set[Intervention] = set()
        self.untouched: dict[Window, torch.Tensor] = {}
        self.found: dict[tuple[Window, Intervention], tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def lacks(self, window: Window, intervention: Intervention) -> bool:
        """Tell whether this is asked for, could be told, and is not there yet."""
        asked = intervention in self.asked and window in self.untouched
        return asked and (window, intervention) not in self.found


def token_losses(
    runner: Runner,
    pairs: Sequence[tuple[Window, Intervention]],
    progress: Callable[[int], object] = lambda _: None,
    watch: Watch = lambda _: nullcontext(),
    comparison: Comparison | None = None,
) -> list[NDArray[np.float32]]:
    """Return the negative log-likelihood of each judged token, in nats, of each window under its intervention.

    The batch is split only where memory asks for it; `progress` is called with the number of pairs just done. Each
    pass runs in the context that `watch` gives for the numbers of its pairs. What a `comparison` asks for is put there.
    """
    found: dict[int, NDArray[np.float32]] = {}
    for length in sorted({len(window.ids) for window, _ in pairs}, reverse=True):
        same = [place for place, (window, _) in enumerate(pairs) if len(window.ids) == length]
        rows = max(1, PASS_BYTES // (4 * length * (3 * runner.hidden_size + length)))
        for start in range(0, len(same), rows):
            part = same[start : start + rows]
            with watch(part):
                here = [pairs[place] for place in part]
                found |= zip(part, _likelihoods(runner, here, comparison), strict=True)
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


def _likelihoods(
    runner: Runner, pairs: Sequence[tuple[Window, Intervention]], comparison: Comparison | None
) -> list[NDArray[np.float32]]:
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
    if comparison is not None:
        _compare(runner, pairs, states, comparison)
    return found


def _compare(
    runner: Runner, pairs: Sequence[tuple[Window, Intervention]], states: torch.Tensor, comparison: Comparison
) -> None:
    """Keep the states of rows without edits, and compare with them those that are asked for."""
    for row, (window, intervention) in enumerate(pairs):
        here = states[row, list(window.places)]
        if intervention == UNTOUCHED:
            comparison.untouched[window] = here
        if not comparison.lacks(window, intervention):
            continue
        untouched = comparison.untouched[window]
        divergence, agrees = np.zeros(len(here), np.float32), np.ones(len(here), np.bool_)
        changed = (here != untouched).flatten(1).any(dim=1).cpu()  # NaN differs from all
        if changed.any():
            with runner.running():
                found = runner.blocks.divergences(untouched[changed], here[changed])
            divergence[changed.numpy()], agrees[changed.numpy()] = (each.cpu().numpy() for each in found)
        comparison.found[window, intervention] = divergence, agrees
