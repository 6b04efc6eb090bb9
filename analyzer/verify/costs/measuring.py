"""Runs a text under interventions, a growing portion of it: first some tokens of a window, at last all of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from analyzer.base.progress import Progress
from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.verify.costs.intervals import UNKNOWN, Estimate, error_of_each, estimate, unseen

if TYPE_CHECKING:
    from analyzer.forward.losses.paired import Told
    from analyzer.model.tokens import Window

# Of the first window, which the first looks are at: as many as tell a control from what costs many times as much, and
# as many as tell what costs little. The other looks are at whole windows.
FEW_TOKENS, FIRST_TOKENS = 64, 192
# How often what costs just enough is taken for what does not, over all looks; and at most in one of them.
ERROR, MOST_ERROR = 0.05, 0.025

Pair = tuple["Window", Intervention]


class Tell(Protocol):
    """Tells of windows under interventions: PairedLosses of forward/losses/paired.py does."""

    def __call__(
        self, pairs: Sequence[Pair], progress: Callable[[int], object], *, sampled: bool, compared: bool
    ) -> list[Told]:
        """Return what is told of each pair."""


class Measuring:
    """What interventions cost on one text, as far as each was looked at.

    The first looks are at the first tokens of a window, which in a causal model say what they would in the whole of
    it, the others at whole windows, about as many as were looked at before; the last one is at the whole text. Where
    the model is not `causal` all are at whole windows. Losses may be estimates but in the last look.
    """

    def __init__(
        self, tell: Tell, windows: Sequence[Window], progress: Progress, *, causal: bool, increase: float
    ) -> None:
        """Run the untouched text. What looks are to tell is what costs at least `increase` times its loss."""
        self._tell, self._windows, self._progress = tell, windows, progress
        self._looks = _looks(windows, causal=causal)
        self.last = len(self._looks) - 1
        """The number of the look at the whole text; they are counted from 0."""
        self._tokens = sum(len(window.places) for window in windows)
        self._seen: dict[Intervention, dict[int, Told]] = {}
        self.look([UNTOUCHED], self.last, "evaluation text")
        self.loss = float(np.concatenate(self._whole(UNTOUCHED)).sum(dtype=np.float64)) / self._tokens
        """The untouched model's loss over the whole text, in nats per token."""
        self.unigram_loss = _entropy([target for window in windows for target in window.targets])
        """What one would lose who knew of each judged token but how often it is one in this text."""
        self.least = increase * self.loss
        """What is enough, in nats per token."""
        counts = [sum(len(windows[place].prefix(n).places) for place, n in look) for look in self._looks]
        self.first = next((n for n, count in enumerate(counts) if unseen(count, self._tokens) < self.least), self.last)
        """The number of the first look that may say of a cost that it is too little.

        Those before it are at so few tokens that others could make up for it.
        """
        self._error = min(MOST_ERROR, error_of_each(self._seen_by_looks(), self._tokens, ERROR))

    def look(self, interventions: Iterable[Intervention], number: int, what: str, *, compare: bool = False) -> None:
        """Run interventions on the part of the text that this look is at, but for windows that they were run on.

        A look before the last that would complete the text is left out: the last one tells exactly. What is to
        `compare` is compared with the untouched model, on all whole windows that it was run on.
        """
        asked, last = list(dict.fromkeys(interventions)), number == self.last
        if not last:
            asked = [each for each in asked if self._left(each, self._looks[number])]
        self._run(asked, self._looks[number], what, exact=last, compare=compare)

    def look_at_window(self, interventions: Iterable[Intervention], what: str) -> None:
        """Run interventions on all of the window of which the first looks are at a part, if there is more text."""
        if self._looks[0][0][0] == 0 and len(self._windows) > 1:
            self._run(list(dict.fromkeys(interventions)), self._looks[self.last][:1], what)

    def _run(
        self,
        asked: Sequence[Intervention],
        part: Sequence[tuple[int, int]],
        what: str,
        *,
        exact: bool = False,
        compare: bool = False,
    ) -> None:
        todo = [
            (intervention, place, self._windows[place].prefix(tokens))
            for place, tokens in part
            for intervention in asked
            if self._missing(intervention, place, tokens, exact=exact, compared=compare)
        ]
        done = 0

        def advance(pairs: int) -> None:
            nonlocal done
            done += pairs
            self._progress(what, done, len(todo))

        if todo:
            self._progress(what, 0, len(todo))
            pairs = [(window, intervention) for intervention, _, window in todo]
            found = self._tell(pairs, advance, sampled=not exact, compared=compare)
            for (intervention, place, _), told in zip(todo, found, strict=True):
                self._seen.setdefault(intervention, {})[place] = told

    def of(self, intervention: Intervention) -> Estimate:
        """Return what an intervention costs, as far as it was looked at: anything where it was not."""
        seen, untouched = self._seen.get(intervention, {}), self._seen[UNTOUCHED]
        if not seen:
            return UNKNOWN
        after = [seen[place].losses for place in sorted(seen)]
        before = [untouched[place].losses[: len(losses)] for place, losses in zip(sorted(seen), after, strict=True)]
        return estimate(before, after, self._error, self._tokens)

    def beyond(self, together: Intervention, parts: Sequence[Intervention]) -> Estimate:
        """Return what an intervention costs beyond the sum of what its parts do, each of which ran over the whole text.

        `loss` is then what one would expect of that sum.
        """
        untouched, *alone = (self._whole(each) for each in (UNTOUCHED, *parts))
        added = [sum(each[n] - before for each in alone) for n, before in enumerate(untouched)]
        expected = [(before + more).astype(np.float32) for before, more in zip(untouched, added, strict=True)]
        return estimate(expected, self._whole(together), self._error, self._tokens)

    def compared(self, intervention: Intervention) -> tuple[float, float] | None:
        """Return the mean KL divergence of the untouched model from this, and how often their likeliest token agrees.

        Over the whole text; null where it was not compared. The divergence is infinite where it is no number.
        """
        seen = self._seen.get(intervention, {})
        told = [(each.divergences, each.agrees) for each in seen.values() if each.divergences is not None]
        if len(told) < len(self._windows):
            return None
        divergence, agrees = (np.concatenate(each).mean(dtype=np.float64) for each in zip(*told, strict=True))
        return float(divergence) if math.isfinite(divergence) else math.inf, float(agrees)

    def _seen_by_looks(self) -> list[int]:
        """Return how many tokens were looked at after each look that may say something, but the last."""
        seen: dict[int, int] = {}  # by window: a second look at the first one is at its first tokens again
        tokens = []
        for look in self._looks[self.first : self.last]:
            seen |= {place: len(self._windows[place].prefix(count).places) for place, count in look}
            tokens.append(sum(seen.values()))
        return tokens

    def _left(self, intervention: Intervention, part: Iterable[tuple[int, int]]) -> bool:
        """Tell whether a part of the text is still unseen once an intervention was run on this part of it."""
        tokens = {place: len(told.losses) for place, told in self._seen.get(intervention, {}).items()}
        tokens |= {place: len(self._windows[place].prefix(count).places) for place, count in part}
        return sum(tokens.values()) < self._tokens

    def _whole(self, intervention: Intervention) -> list[NDArray[np.float32]]:
        return [self._seen[intervention][place].losses for place in range(len(self._windows))]

    def _missing(self, intervention: Intervention, place: int, tokens: int, *, exact: bool, compared: bool) -> bool:
        told, wanted = self._seen.get(intervention, {}).get(place), len(self._windows[place].prefix(tokens).places)
        if told is None or len(told.losses) < wanted:
            return True
        return (exact and told.sampled) or (compared and told.divergences is None)


def _entropy(tokens: Sequence[int]) -> float:
    """Return the entropy of tokens by how often each is there, in nats."""
    counts = np.array(list(Counter(tokens).values()), np.float64)
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


def _looks(windows: Sequence[Window], *, causal: bool) -> list[list[tuple[int, int]]]:
    """Return what each look is at, windows each with its number of tokens; the last one is at all of them whole.

    The first window comes first, by its first tokens, and is not whole before the last look, nor are all tokens judged
    that are in it: the last look is at little else that is new, and what was seen of it is run again then. The others
    come by their length.
    """
    whole = [(place, len(window.ids)) for place, window in enumerate(windows)]
    first, judged = windows[0], len(windows[0].places)
    parts = [n for n in (FEW_TOKENS, FIRST_TOKENS) if causal and len(first.prefix(n).places) < judged]
    looks = [[(0, tokens)] for tokens in parts]
    others = sorted(whole[1:], key=lambda each: each[1])
    seen, more = 0, 1
    while seen < len(others):
        looks.append(others[seen : seen + more])
        seen += more
        more = seen
    return [*looks, whole]
