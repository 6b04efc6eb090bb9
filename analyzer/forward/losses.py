"""The loss of a text under interventions, token by token: windows and interventions ride as rows of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.forward.runner import Runner
from analyzer.model.rows import Untouched
from analyzer.model.tokens import Window

PASS_BYTES = 1 << 29  # of all rows' residual streams and attention masks in one pass over the weights

Watch = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Of the numbers of the rows of a pass, what it runs in: see observers.py."""


class Comparison:
    """What interventions make of what the model says, beside what it says untouched.

    Of the windows on which the untouched model was run before it holds the states at the judged tokens, [places,
    hidden_size] each, and their losses, so that what is `asked` for costs no pass over the blocks of its own. While
    it is `keeping`, it holds the states of all else on these windows too, since they may be asked for later. `found`
    has of each window and intervention the KL divergence of the untouched from the other, in nats, [places], and
    whether the likeliest token is the same.
    """

    def __init__(self) -> None:
        self.asked: set[Intervention] = set()
        self.keeping = False
        self.untouched: dict[Window, tuple[torch.Tensor, NDArray[np.float32]]] = {}
        self.kept: dict[tuple[Window, Intervention], torch.Tensor] = {}
        self.found: dict[tuple[Window, Intervention], tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def lacks(self, window: Window, intervention: Intervention) -> bool:
        """Tell whether this is asked for, could be told, and is not there yet."""
        asked = intervention in self.asked and window in self.untouched
        return asked and (window, intervention) not in self.found

    def compare(
        self, runner: Runner, window: Window, states: Mapping[Intervention, torch.Tensor]
    ) -> list[NDArray[np.float32]]:
        """Put what is `found` of each intervention's states at the judged tokens of a window; return their losses."""
        untouched, losses = self.untouched[window]
        here = torch.stack(list(states.values()))
        changed = (here != untouched).flatten(2).any(dim=2)  # [rows, places]; NaN differs from all
        places = changed.any(dim=0)
        targets = torch.tensor(window.targets, device=here.device)
        with runner.running():
            told = runner.blocks.divergences(untouched[places], here[:, places], targets[places])
        result = []
        for row, intervention in enumerate(states):
            own, divergence, agrees = losses.copy(), np.zeros(len(losses), np.float32), np.ones(len(losses), np.bool_)
            there, among = changed[row].cpu().numpy(), changed[row, places]
            for whole, part in zip((own, divergence, agrees), told, strict=True):
                whole[there] = part[row, among].cpu().numpy()
            self.found[window, intervention] = divergence, agrees
            result.append(own)
        return result


def token_losses(
    runner: Runner,
    pairs: Sequence[tuple[Window, Intervention]],
    progress: Callable[[int], object] = lambda _: None,
    watch: Watch | None = None,
    comparison: Comparison | None = None,
    untouched: Untouched | None = None,
) -> list[NDArray[np.float32]]:
    """Return the negative log-likelihood of each judged token, in nats, of each window under its intervention.

    The batch is split only where memory asks for it; `progress` is called with the number of pairs just done. Each
    pass runs in the context that `watch` gives for the numbers of its pairs, of one where rows do not run together.
    What a `comparison` asks for is put there. What `untouched` keeps of a block is not run again, and so not watched.
    """
    if comparison is not None:
        _compare_kept(runner, comparison)
    found: dict[int, NDArray[np.float32]] = {}
    for length in sorted({len(window.ids) for window, _ in pairs}, reverse=True):
        same = [place for place, (window, _) in enumerate(pairs) if len(window.ids) == length]
        rows = 1 if watch is not None and runner.one_by_one else rows_in_pass(runner, length)
        for start in range(0, len(same), rows):
            part = same[start : start + rows]
            with nullcontext() if watch is None else watch(part):
                here = [pairs[place] for place in part]
                found |= zip(part, _likelihoods(runner, here, comparison, untouched), strict=True)
            progress(len(part))
    return [found[place] for place in range(len(pairs))]


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


def _likelihoods(
    runner: Runner,
    pairs: Sequence[tuple[Window, Intervention]],
    comparison: Comparison | None,
    untouched: Untouched | None,
) -> list[NDArray[np.float32]]:
    """Return what token_losses does, all in one pass over the blocks, and the head once for each distinct state."""
    prompts, interventions = [window.ids for window, _ in pairs], [intervention for _, intervention in pairs]
    states = runner.states(prompts, interventions, untouched)
    judged = [states[row, list(window.places)] for row, (window, _) in enumerate(pairs)]
    compared = [] if comparison is None else [row for row, pair in enumerate(pairs) if comparison.lacks(*pair)]
    plain = [row for row in range(len(pairs)) if row not in compared]
    found = dict(zip(plain, _plain_likelihoods(runner, [(pairs[row][0], judged[row]) for row in plain]), strict=True))
    if comparison is not None:
        for row in plain:
            window, intervention = pairs[row]
            if intervention == UNTOUCHED:
                comparison.untouched[window] = judged[row], found[row]
            elif comparison.keeping and window in comparison.untouched:
                comparison.kept[window, intervention] = judged[row]
        for window in dict.fromkeys(pairs[row][0] for row in compared):
            asked = {pairs[row][1]: judged[row] for row in compared if pairs[row][0] == window}
            losses_of = dict(zip(asked, comparison.compare(runner, window, asked), strict=True))
            found |= {row: losses_of[pairs[row][1]] for row in compared if pairs[row][0] == window}
    return [found[row] for row in range(len(pairs))]


def _plain_likelihoods(runner: Runner, judged: Sequence[tuple[Window, torch.Tensor]]) -> list[NDArray[np.float32]]:
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
    likelihoods = runner.likelihoods(states, torch.cat(targets)).numpy()
    parts = np.split(likelihoods, np.cumsum([len(each) for each in targets])[:-1])
    found: list[NDArray[np.float32]] = []
    for row, (window, _) in enumerate(judged):
        whole = parts[row] if first[window] == row else found[first[window]].copy()
        whole[new[row].numpy()] = parts[row]
        found.append(whole)
    return found


def _compare_kept(runner: Runner, comparison: Comparison) -> None:
    """Compare what is asked for and was run before."""
    wanted = [pair for pair in comparison.kept if comparison.lacks(*pair)]
    for window in dict.fromkeys(window for window, _ in wanted):
        comparison.compare(runner, window, {i: comparison.kept.pop((w, i)) for w, i in wanted if w == window})
