"""Runs a text under interventions, a growing portion of it: first some tokens of one window, at last all of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.base.progress import Progress
from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.verify.costs.intervals import UNKNOWN, Estimate, estimate

if TYPE_CHECKING:
    from analyzer.model.tokens import Window

FIRST_TOKENS = 64  # of a window; each further look is at twice as many, of the next window
ERROR = 0.05  # how often what costs just enough is taken for what does not, over all looks

Pair = tuple["Window", Intervention]
TokenLosses = Callable[[Sequence[Pair], Callable[[int], object]], "list[NDArray[np.float32]]"]
"""Returns the negative log-likelihood of each judged token: see forward/losses.py."""


class Measuring:
    """What interventions cost on one text, as far as each was looked at.

    The first looks are at the first tokens of a window, which in a causal model say what they would in the whole of
    it, the others at whole windows; the last one is at the whole text. Where the model is not `causal` all are at whole
    windows.
    """

    def __init__(self, run: TokenLosses, windows: Sequence[Window], progress: Progress, *, causal: bool) -> None:
        """Run the untouched text."""
        self._run, self._windows, self._progress = run, windows, progress
        self._looks = _looks(windows, causal=causal)
        self.last = len(self._looks)
        """The number of the look at the whole text; they are counted from 0."""
        self._seen: dict[Intervention, dict[int, NDArray[np.float32]]] = {}
        self.look([UNTOUCHED], self.last, "evaluation text")
        self.loss = self.of(UNTOUCHED).loss
        """The untouched model's loss over the whole text, in nats per token."""

    def look(self, interventions: Iterable[Intervention], number: int, what: str) -> None:
        """Run interventions on the part of the text that this look is at, but for windows that they were run on."""
        whole = [(place, len(window.ids)) for place, window in enumerate(self._windows)]
        parts = whole if number == self.last else [self._looks[number]]
        asked = list(dict.fromkeys(interventions))
        todo = [
            (intervention, place, self._windows[place].prefix(tokens))
            for place, tokens in parts
            for intervention in asked
            if self._missing(intervention, place, tokens)
        ]
        done = 0

        def advance(pairs: int) -> None:
            nonlocal done
            done += pairs
            self._progress(what, done, len(todo))

        if todo:
            self._progress(what, 0, len(todo))
            found = self._run([(window, intervention) for intervention, _, window in todo], advance)
            for (intervention, place, _), losses in zip(todo, found, strict=True):
                self._seen.setdefault(intervention, {})[place] = losses

    def of(self, intervention: Intervention) -> Estimate:
        """Return what an intervention costs, as far as it was looked at: anything where it was not."""
        seen, untouched = self._seen.get(intervention, {}), self._seen[UNTOUCHED]
        if not seen:
            return UNKNOWN
        places = sorted(seen)
        before = [untouched[place][: len(seen[place])] for place in places]
        whole = sum(len(window.places) for window in self._windows)
        return estimate(before, [seen[place] for place in places], ERROR / (self.last + 1), whole)

    def _missing(self, intervention: Intervention, place: int, tokens: int) -> bool:
        wanted = len(self._windows[place].prefix(tokens).places)
        return len(self._seen.get(intervention, {}).get(place, ())) < wanted


def _looks(windows: Sequence[Window], *, causal: bool) -> list[tuple[int, int]]:
    """Return the windows that looks before the last are at, each with its number of tokens.

    Parts of windows come first, then whole ones, those before others of which there was no part.
    """
    parts: list[tuple[int, int]] = []
    place, tokens = 0, FIRST_TOKENS
    while causal and tokens < len(windows[place].ids):
        parts.append((place, tokens))
        place, tokens = len(parts) % len(windows), tokens * 2
    begun = {place for place, _ in parts}
    order = sorted(range(len(windows)), key=lambda place: place in begun)
    return [*parts, *((place, len(windows[place].ids)) for place in order[:-1])]
