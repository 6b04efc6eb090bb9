"""What is told over all prompts, taken in as each of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from analyzer.base.records import Coordinate, Place
from analyzer.forward.blocks.figures import MlpFigures
from analyzer.forward.runner import Runner
from analyzer.forward.trace import Stream
from analyzer.verify.activations.channels import Channels
from analyzer.verify.activations.headroom import headroom_of
from analyzer.verify.activations.over_prompts import OverPrompts, Routing
from analyzer.verify.activations.sinks import SinkCounts
from analyzer.verify.preparation import Prepared
from analyzer.verify.records import SuperActivation
from analyzer.verify.settings import Thresholds

Prompt = tuple[int, ...]


class Tally:
    """The figures of a verification over its prompts, each of which counts once."""

    def __init__(self, runner: Runner, prepared: Prepared, thresholds: Thresholds) -> None:
        self._runner, self._prepared, self._thresholds = runner, prepared, thresholds
        self._figures, self._sinks = MlpFigures(), SinkCounts(thresholds)
        self._channels: Channels | None = None
        self._tokens = 0
        self._seen: set[Prompt] = set()

    @contextmanager
    def watching(self, prompts: Sequence[Prompt], padded: Sequence[Sequence[int]]) -> Iterator[None]:
        """While the context lasts, see what MLPs do in prompts that were not seen yet, as they run: padded, or as such.

        Those that are prompts only without their special tokens are not looked at.
        """
        wanted = {self._prepared.ids, *self._prepared.prompts} - self._seen
        pairs = zip(prompts, padded, strict=True)
        lengths = {tuple(ids): self._runner.length(prompt) for prompt, ids in pairs if prompt in wanted}
        with self._figures.watching(self._runner, lengths):
            yield

    def add(
        self, prompt: Prompt, layers: Sequence[int], residual: Stream, activations: Sequence[SuperActivation]
    ) -> None:
        """Take in the stream after these layers, of a prompt whose MLPs were watched, and its super activations."""
        if prompt in self._seen or prompt not in {self._prepared.ids, *self._prepared.prompts}:
            return
        self._seen.add(prompt)
        if self._channels is None:
            self._channels = Channels(residual.shape[-1], self._thresholds)
        self._channels.add(layers, residual, activations)
        self._sinks.add(self._prepared.judged(prompt), activations)
        self._tokens += residual.shape[1]

    def told(self, weights: Iterable[Coordinate], *, causal: bool) -> OverPrompts:
        """Return all of it, of routing that of these weights' experts; a prefix only where the model is `causal`."""
        assert self._channels is not None  # the prompt ran
        figures, prepared = self._figures, self._prepared
        prefix = None
        if causal and prepared.begin is not None:
            prefix = self._sinks.prefix(prepared.begin, prepared.texts)
        return {
            "headroom": headroom_of(
                len(self._seen), self._channels.largest, figures.largest, figures.unseen, self._runner.tower
            ),
            "massive_channels": self._channels.massive(),
            "sinks": self._sinks.sinks(prepared.texts),
            "prefix": prefix,
            "routing": tuple(
                self._routing(place)
                for place in sorted({weight.place for weight in weights})
                if place in figures.routed
            ),
        }

    def _routing(self, place: Place) -> Routing:
        """Return how an expert was chosen."""
        at, routed = Coordinate.at(place, 0, 0), self._figures.routed[place]
        mean = routed.weight / routed.chosen if routed.weight is not None and routed.chosen else None
        return Routing(at.layer, place[3], routed.chosen, self._tokens, mean, at.tower, at.mlp)
