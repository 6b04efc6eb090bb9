"""The super activations of many windows, found in the passes that also give the untouched model's losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.progress import counted
from analyzer.experiments.lab.opening import Lab
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.losses.plain import token_losses
from analyzer.forward.observers import observed
from analyzer.verify.settings import DEFAULT_THRESHOLDS

SUNS_VALUE, SUNS_RATIO = 100.0, 1000.0  # arXiv 2402.17762


@dataclass(frozen=True)
class Activation:
    """A super activation of a window: it is one after the blocks `layer` to `last`, `value` in the first of them.

    `ratio` is the largest, over these blocks, of its magnitude over the layer's median; `is_massive` tells whether it
    somewhere meets the criterion of Sun et al. `other` is the channel that is nearest to the median where it begins.
    """

    layer: int
    last: int
    position: int
    channel: int
    value: float
    ratio: float
    is_massive: bool
    other: int

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What it shares with those of other windows: block, channel, and whether it is at the first position."""
        return self.layer, self.channel, self.position == 0


def find_activations(lab: Lab) -> tuple[NDArray[np.float64], list[list[Activation]]]:
    """Return the mean loss of each window, [windows], and the super activations in each, by verify's test."""
    runner, windows = lab.runner, lab.windows
    seen: dict[int, _Row] = {}

    def watch(numbers: Sequence[int]) -> AbstractContextManager[None]:
        here = [seen.setdefault(number, _Row(runner.length(windows[number].ids))) for number in numbers]

        def stream(layer: int, stream: torch.Tensor) -> None:
            for row, each in enumerate(here):
                each.look(layer, stream[row, : each.tokens].float().cpu().numpy())

        return observed(runner, stream=stream)

    pairs = [(window, UNTOUCHED) for window in windows]
    advance = counted(lab.progress, "super activations", len(pairs))
    losses = [float(each.mean(dtype=np.float64)) for each in token_losses(runner, pairs, advance, watch)]
    lab.known.losses.setdefault(runner, {}).update(zip(pairs, losses, strict=True))
    lab.runs += 1
    if not np.isfinite(losses).all():
        raise lab.not_finite()
    return np.array(losses), [list(seen[number].activations(runner.layers)) for number in range(len(windows))]


class _Row:
    """What is large in one window, layer by layer."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._layers: dict[int, Mapping[tuple[int, int], tuple[float, float]]] = {}
        """Of each layer, by position and channel, the value and its ratio to the median."""
        self._others: dict[tuple[int, int, int], int] = {}

    def look(self, layer: int, stream: NDArray[np.float32]) -> None:
        """Keep what is large in the stream after a layer, [T, hidden_size]."""
        magnitudes = np.abs(stream)
        middle = float(np.median(magnitudes))
        large = (magnitudes >= DEFAULT_THRESHOLDS.activation_ratio * middle) & (middle > 0)
        before = self._layers.get(layer - 1, {})
        here = self._layers[layer] = {
            (int(position), int(channel)): (float(value), abs(float(value)) / middle)
            for position, channel, value in zip(*np.nonzero(large), stream[large], strict=True)
        }
        new: dict[int, list[int]] = {}
        for position, channel in here:
            if (position, channel) not in before:
                new.setdefault(position, []).append(channel)
        for position, channels in new.items():
            distance = np.where(large[position], np.inf, np.abs(magnitudes[position] - middle))
            nearest = np.argsort(distance, kind="stable")[: len(channels)]
            for channel, other in zip(channels, nearest, strict=True):
                self._others[layer, position, channel] = int(other)

    def activations(self, layers: Sequence[int]) -> Iterator[Activation]:
        """Yield those that persist, in the order of blocks."""
        begun: dict[tuple[int, int], int] = {}
        for number, layer in enumerate(layers):
            here = self._layers.get(layer, {})
            following = self._layers.get(layers[number + 1], {}) if number + 1 < len(layers) else {}
            for place in here:
                first = begun.setdefault(place, number)
                if place not in following:
                    del begun[place]
                    if number - first >= DEFAULT_THRESHOLDS.persists:
                        yield self._activation(place, layers[first : number + 1])

    def _activation(self, place: tuple[int, int], layers: Sequence[int]) -> Activation:
        along = [self._layers[layer][place] for layer in layers]
        return Activation(
            layers[0],
            layers[-1],
            *place,
            value=along[0][0],
            ratio=max(ratio for _, ratio in along),
            is_massive=any(abs(value) > SUNS_VALUE and ratio >= SUNS_RATIO for value, ratio in along),
            other=self._others[layers[0], *place],
        )


def means_elsewhere(found: Sequence[Sequence[Activation]]) -> list[list[float | None]]:
    """Return for each activation of each window the mean over those of its kind in the other windows.

    Null where the other windows have none.
    """
    totals: dict[tuple[int, int, bool], tuple[float, int]] = {}
    by_window: list[dict[tuple[int, int, bool], tuple[float, int]]] = []
    for window in found:
        by_window.append({})
        for each in window:
            for sums in (totals, by_window[-1]):
                total, count = sums.get(each.kind, (0.0, 0))
                sums[each.kind] = total + each.value, count + 1

    def mean(window: int, kind: tuple[int, int, bool]) -> float | None:
        total, count = (a - b for a, b in zip(totals[kind], by_window[window][kind], strict=True))
        return total / count if count else None

    return [[mean(number, each.kind) for each in window] for number, window in enumerate(found)]
