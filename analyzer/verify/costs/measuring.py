"""Runs a text under interventions, a growing portion of it: first some tokens of a window, at last all of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.base.progress import Progress
from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.verify.costs.intervals import UNKNOWN, Estimate, estimate, unseen

if TYPE_CHECKING:
    from analyzer.forward.losses import Comparison
    from analyzer.model.tokens import Window

# Of the first window, which the first looks are at: as many as tell a control from what costs many times as much, and
# as many as tell what costs little. The other looks are at whole windows.
FEW_TOKENS, FIRST_TOKENS = 64, 192
# How often what costs just enough is taken for what does not, over all looks: each takes half of what is left of it.
ERROR = 0.05

Pair = tuple["Window", Intervention]
TokenLosses = Callable[[Sequence[Pair], Callable[[int], object]], "list[NDArray[np.float32]]"]
"""Returns the negative log-likelihood of each judged token: see forward/losses.py."""


class Measuring:
    """What interventions cost on one text, as far as each was looked at.

    The first looks are at the first tokens of a window, which in a causal model say what they would in the whole of
    it, the others at whole windows, about as many as were looked at before; the last one is at the whole text. Where
    the model is not `causal` all are at whole windows.
    """

    def __init__(
        self,
        run: TokenLosses,
        windows: Sequence[Window],
        progress: Progress,
        *,
        causal: bool,
        comparison: Comparison | None = None,
    ) -> None:
        """Run the untouched text. `run` puts into the `comparison` what it asks for."""
        self._run, self._windows, self._progress, self._comparison = run, windows, progress, comparison
        self._looks = _looks(windows, causal=causal)
        self.last = len(self._looks) - 1
        """The number of the look at the whole text; they are counted from 0."""
        self._tokens = sum(len(window.places) for window in windows)
        self._seen: dict[Intervention, dict[int, NDArray[np.float32]]] = {}
        self._times: Counter[Intervention] = Counter()
        self.look([UNTOUCHED], self.last, "evaluation text")
        self.loss = self.of(UNTOUCHED).loss
        """The untouched model's loss over the whole text, in nats per token."""
        self.unigram_loss = _entropy([target for window in windows for target in window.targets])
        """What one would lose who knew of each judged token but how often it is one in this text."""

    def look(self, interventions: Iterable[Intervention], number: int, what: str, *, compare: bool = False) -> None:
        """Run interventions on the part of the text that this look is at, but for windows that they were run on.

        What is to `compare` is compared with the untouched model, on all whole windows that it was run on.
        """
        asked = list(dict.fromkeys(interventions))
        if self._comparison is not None:
            self._comparison.asked |= set(asked) if compare else set()
            self._comparison.keeping = number < self.last
        todo = [
            (intervention, place, self._windows[place].prefix(tokens))
            for place, tokens in self._looks[number]
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
            self._times.update({intervention for intervention, *_ in todo})

    def of(self, intervention: Intervention) -> Estimate:
        """Return what an intervention costs, as far as it was looked at: anything where it was not."""
        seen, untouched = self._seen.get(intervention, {}), self._seen[UNTOUCHED]
        if not seen:
            return UNKNOWN
        places = sorted(seen)
        before = [untouched[place][: len(seen[place])] for place in places]
        error = ERROR / 2 ** self._times[intervention]
        return estimate(before, [seen[place] for place in places], error, self._tokens)

    def beyond(self, together: Intervention, parts: Sequence[Intervention]) -> Estimate:
        """Return what an intervention costs beyond the sum of what its parts do, each of which ran over the whole text.

        `loss` is then what one would expect of that sum.
        """
        untouched, whole = self._seen[UNTOUCHED], range(len(self._windows))
        added = [sum(self._seen[part][n] - untouched[n] for part in parts) for n in whole]
        expected = [(untouched[n] + added[n]).astype(np.float32) for n in whole]
        error = ERROR / 2 ** self._times[together]
        return estimate(expected, [self._seen[together][n] for n in whole], error, self._tokens)

    def compared(self, intervention: Intervention) -> tuple[float, float] | None:
        """Return the mean KL divergence of the untouched model from this, and how often their likeliest token agrees.

        Over the whole text; null where it was not compared. The divergence is infinite where it is no number.
        """
        found = {} if self._comparison is None else self._comparison.found
        parts = [found.get((window, intervention)) for window in self._windows]
        kept = [part for part in parts if part is not None]
        if len(kept) < len(parts):
            return None
        divergence, agrees = (np.concatenate(each).mean(dtype=np.float64) for each in zip(*kept, strict=True))
        return float(divergence) if math.isfinite(divergence) else math.inf, float(agrees)

    def first_to_say(self, least: float) -> int:
        """Return the number of the first look that may say of a cost that it is below `least`, in nats per token.

        Those before it are at so few tokens that others could make up for it.
        """
        counts = [sum(len(self._windows[place].prefix(n).places) for place, n in look) for look in self._looks]
        return next((number for number, n in enumerate(counts) if unseen(n, self._tokens) < least), self.last)

    def _missing(self, intervention: Intervention, place: int, tokens: int) -> bool:
        wanted = len(self._windows[place].prefix(tokens).places)
        return len(self._seen.get(intervention, {}).get(place, ())) < wanted


def _entropy(tokens: Sequence[int]) -> float:
    """Return the entropy of tokens by how often each is there, in nats."""
    counts = np.array(list(Counter(tokens).values()), np.float64)
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


def _looks(windows: Sequence[Window], *, causal: bool) -> list[list[tuple[int, int]]]:
    """Return what each look is at, windows each with its number of tokens; the last one is at all of them whole.

    The first window comes first, by its first tokens, and is not whole before the last look: what was seen of it is
    then run again. The others come by their length.
    """
    whole = [(place, len(window.ids)) for place, window in enumerate(windows)]
    looks = [[(0, tokens)] for tokens in (FEW_TOKENS, FIRST_TOKENS) if causal and tokens < whole[0][1]]
    others = sorted(whole[1:], key=lambda each: each[1])
    seen, more = 0, 1
    while more < len(windows) - seen:
        looks.append(others[seen : seen + more])
        seen += more
        more = seen
    return [*looks, whole]
