"""Pure: at which positions and tokens super activations sit, over prompts, and what to put in front of a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from analyzer.verify.activations.over_prompts import Prefix, SinkPosition, Sinks, SinkToken
from analyzer.verify.records import SuperActivation
from analyzer.verify.settings import Thresholds

MOST_SINKS = 64
LEAST_PART = 0.1  # of the prompts, in which a token of the prefix carries a super activation
Texts = Callable[[Sequence[int]], tuple[str, ...]]


class SinkCounts:
    """Counts, taken in prompt by prompt; nothing of a prompt is kept.

    A super activation on a channel that is as large at more than half of the prompt's positions singles no position
    out, and is left out.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._lengths: Counter[int] = Counter()
        self._positions: Counter[int] = Counter()
        # By token, in how many prompts: that have it, where it carries one, at the first position, after it, and where
        # it first stands after it.
        self._having, self._carrying, self._at_start, self._later, self._first = (Counter[int]() for _ in range(5))
        self._by_layer: Counter[int] = Counter()  # positions after the first

    def add(self, ids: Sequence[int], activations: Sequence[SuperActivation]) -> None:
        """Take in a prompt and its super activations, whose positions are those of these ids."""
        most = self._thresholds.feature_positions * len(ids)
        own = [each for each in activations if each.positions is None or each.positions <= most]
        at = {each.position for each in own}
        self._lengths[len(ids)] += 1
        self._positions.update(at)
        self._having.update(set(ids))
        self._carrying.update({ids[position] for position in at})
        self._at_start.update({ids[position] for position in at if position == 0})
        later = {ids[position] for position in at if position > 0}
        self._later.update(later)
        self._first.update(token for token in later if ids.index(token, 1) in at)
        for layer in {layer for each in own for layer in range(each.layer, each.last_layer + 1)}:
            here = {each.position for each in own if each.layer <= layer <= each.last_layer and each.position > 0}
            self._by_layer[layer] += len(here)

    @property
    def prompts(self) -> int:
        """How many prompts there were."""
        return self._lengths.total()

    def sinks(self, texts: Texts) -> Sinks:
        """Return the positions and tokens, the most frequent first, so many of each at most."""
        positions = [
            SinkPosition(position, count, sum(n for length, n in self._lengths.items() if length > position))
            for position, count in _most_frequent(self._positions, MOST_SINKS)
        ]
        found = _most_frequent(self._carrying, MOST_SINKS)
        tokens = [
            SinkToken(token, text, count, self._having[token], self._at_start[token], self._first[token])
            for (token, count), text in zip(found, texts([token for token, _ in found]), strict=True)
        ]
        return Sinks(self.prompts, tuple(positions), tuple(tokens))

    def prefix(self, begin: int, texts: Texts) -> Prefix | None:
        """Return the tokens to put in front, `begin` the last of them; null where there is no super activation.

        The others are as many as positions after the first carry a super activation, on average over the prompts, in
        the layer where most do, rounded up: those that do so in the most prompts, and in a tenth of them at least.
        """
        if not self._positions:
            return None
        count = -(-max(self._by_layer.values(), default=0) // self.prompts)
        frequent = {n: c for n, c in self._later.items() if n != begin and c >= LEAST_PART * self.prompts}
        ids = (*(token for token, _ in _most_frequent(Counter(frequent), count)), begin)
        return Prefix(ids, texts(ids), count)


def _most_frequent(counts: Counter[int], most: int) -> list[tuple[int, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
