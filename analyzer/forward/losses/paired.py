"""The losses of a text under interventions beside those of the untouched model: estimated, exact, or compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.forward.losses.plain import likelihoods, states_of
from analyzer.forward.runner import Runner
from analyzer.model.ends.head import SAMPLED_STATES
from analyzer.model.ends.logits import Sampled
from analyzer.model.rows import Untouched
from analyzer.model.tokens import Window

SEED = 0  # of the samples of the vocabulary, and of what they are held against
SPREAD = 1.0  # in nats: where the logits change by more, the whole vocabulary tells
AUDITED = 16  # of so many tokens beside each other, one, by chance, is told by the whole vocabulary as well


class Told(NamedTuple):
    """What a window's judged tokens say under an intervention: their negative log-likelihoods, in nats, [places].

    `sampled` where some are estimates. Where it was compared with the untouched model, the KL divergence of that from
    this, in nats, and whether the likeliest token is the same.
    """

    losses: NDArray[np.float32]
    sampled: bool = False
    divergences: NDArray[np.float32] | None = None
    agrees: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class _Untouched:
    """What the untouched model says of a window: its states at the judged tokens, their losses, and samples."""

    states: torch.Tensor
    targets: torch.Tensor
    losses: torch.Tensor
    samples: Sequence[Sampled]
    audited: torch.Tensor
    """Which of the tokens were chosen by chance to be told by the whole vocabulary."""

    def first(self, count: int) -> _Untouched:
        """Return what it says of the first judged tokens."""
        first = slice(count)
        return _Untouched(
            self.states[first], self.targets[first], self.losses[first], self.samples, self.audited[first]
        )

    def changed(self, states: torch.Tensor) -> torch.Tensor:
        """Return where states [rows, places, hidden_size] are others, [rows, places]; NaN differs from all."""
        return (states != self.states).flatten(2).any(dim=2)


class PairedLosses:
    """The losses of one model on windows on which it is run untouched first."""

    def __init__(self, runner: Runner, kept_bytes: int) -> None:
        """At most so many bytes are kept of what blocks give for the untouched text, and of states as many."""
        self._runner, self._blocks, self._left = runner, Untouched(kept_bytes), kept_bytes
        self._generator = torch.Generator().manual_seed(SEED)
        self._known: dict[Window, _Untouched] = {}
        self._kept: dict[tuple[Window, Intervention], torch.Tensor] = {}

    def __call__(
        self,
        pairs: Sequence[tuple[Window, Intervention]],
        progress: Callable[[int], object] = lambda _: None,
        *,
        sampled: bool = False,
        compared: bool = False,
    ) -> list[Told]:
        """Return what is told of each window under its intervention; those of the untouched model come first.

        With `sampled`, losses are estimated from a sample of the vocabulary, where the model has a head and a
        vocabulary for that, and the states are kept: asked again for the same without it, no block runs again. With
        `compared`, losses are exact and held against the untouched model.
        """
        kept = {} if sampled else {n: self._kept.pop(pair) for n, pair in enumerate(pairs) if pair in self._kept}
        self._left += sum(states.nbytes for states in kept.values())
        rest = [number for number in range(len(pairs)) if number not in kept]
        found: dict[int, Told] = {}

        def tell(states: dict[int, torch.Tensor]) -> None:
            windows = {pairs[number][0] for number in states}
            beside = {number: kept.pop(number) for number in list(kept) if pairs[number][0] in windows}
            rows = {number: (*pairs[number], each) for number, each in (states | beside).items()}
            found.update(zip(rows, self._told(list(rows.values()), sampled=sampled, compared=compared), strict=True))
            progress(len(rows))

        for part, states in states_of(self._runner, [pairs[number] for number in rest], untouched=self._blocks):
            tell(dict(zip((rest[place] for place in part), states, strict=True)))
        if kept:
            tell(dict(kept))
        return [found[number] for number in range(len(pairs))]

    def _told(
        self, rows: Sequence[tuple[Window, Intervention, torch.Tensor]], *, sampled: bool, compared: bool
    ) -> list[Told]:
        told = {
            row: Told(self._learn(window, states))
            for row, (window, intervention, states) in enumerate(rows)
            if intervention == UNTOUCHED
        }
        plain: list[int] = []
        beside: dict[Window, tuple[_Untouched, list[int]]] = {}
        for row, (window, intervention, states) in enumerate(rows):
            if row in told:
                continue
            known = self._untouched(window) if sampled or compared else None
            if sampled and window in self._known:
                self._keep((window, intervention), states)
            if known is not None and (compared or known.samples):
                beside.setdefault(window, (known, []))[1].append(row)
            else:
                plain.append(row)
        exact = likelihoods(self._runner, [(rows[row][0], rows[row][2]) for row in plain])
        told |= {row: Told(losses) for row, losses in zip(plain, exact, strict=True)}
        tell = _compared if compared else _estimated
        for known, alike in beside.values():
            states = torch.stack([rows[row][2] for row in alike])
            told |= zip(alike, tell(self._runner, known, states), strict=True)
        return [told[row] for row in range(len(rows))]

    def _keep(self, pair: tuple[Window, Intervention], states: torch.Tensor) -> None:
        """Keep the states of a pair, if there is room."""
        if pair not in self._kept and states.nbytes <= self._left:
            self._left -= states.nbytes
            self._kept[pair] = states

    def _learn(self, window: Window, states: torch.Tensor) -> NDArray[np.float32]:
        """Keep what the untouched model says of a window, and return its losses."""
        targets = torch.tensor(window.targets, device=states.device)
        with self._runner.running():
            losses, samples = self._runner.blocks.output.sampled(states, targets, self._generator)
        starts = torch.arange(0, len(targets), AUDITED)
        places = starts + torch.randint(AUDITED, starts.shape, generator=self._generator)
        audited = torch.zeros(len(targets), dtype=torch.bool)
        audited[places[places < len(targets)]] = True
        self._known[window] = _Untouched(states, targets, losses, samples, audited.to(states.device))
        return losses.cpu().numpy()

    def _untouched(self, window: Window) -> _Untouched | None:
        """Return what the untouched model says of a window, or of one that this begins; null where it did not run."""
        if window in self._known:
            return self._known[window]
        whole = next((each for each in self._known if each.prefix(len(window.ids)) == window), None)
        return None if whole is None else self._known[whole].first(len(window.places))


def _compared(runner: Runner, known: _Untouched, states: torch.Tensor) -> list[Told]:
    """Return what is told of states [rows, places, hidden_size] by the whole vocabulary, and how it differs."""
    changed = known.changed(states)
    places = changed.any(dim=0)
    with runner.running():
        found = runner.blocks.output.divergences(known.states[places], states[:, places], known.targets[places])
    result = []
    for row, there in enumerate(changed):
        losses = known.losses.clone()
        divergences, agrees = torch.zeros_like(losses), torch.ones_like(losses, dtype=torch.bool)
        for whole, part in zip((losses, divergences, agrees), found, strict=True):
            whole[there] = part[row, there[places]]
        result.append(Told(losses.cpu().numpy(), False, divergences.cpu().numpy(), agrees.cpu().numpy()))
    return result


def _estimated(runner: Runner, known: _Untouched, states: torch.Tensor) -> list[Told]:
    """Return what is told of states [rows, places, hidden_size] by samples of the vocabulary.

    Where their logits change by much, the whole vocabulary tells. It does at tokens chosen by chance as well: what an
    estimate is off there counts for all those that it was chosen from, so that the sum over a text is right on average
    whatever the samples miss (the difference estimator of two-phase sampling), and its interval has it.
    """
    changed, losses = known.changed(states), known.losses.expand(len(states), -1).clone()
    whole = torch.zeros_like(changed)
    for number, sample in enumerate(known.samples):
        start = number * SAMPLED_STATES
        rows, places = changed[:, start : start + SAMPLED_STATES].nonzero(as_tuple=True)
        if len(rows):
            with runner.running():
                differences, spread = runner.blocks.output.differences(sample, places, states[rows, start + places])
            losses[rows, start + places] += differences
            whole[rows, start + places] = ~(spread < SPREAD)  # NaN is not
    rows, places = (whole | (changed & known.audited)).nonzero(as_tuple=True)
    exact = runner.likelihoods(states[rows, places], known.targets[places]).to(states.device)
    estimates = losses[rows, places]
    corrected = estimates + AUDITED * (exact - estimates)
    losses[rows, places] = torch.where(whole[rows, places], exact, corrected)
    return [Told(each, sampled=True) for each in losses.cpu().numpy()]
