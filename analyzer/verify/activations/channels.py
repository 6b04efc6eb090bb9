"""Pure NumPy: which channels of the residual stream are massive, and how large it is, over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analyzer.forward.trace import Stream
from analyzer.verify.activations.detection import are_large
from analyzer.verify.activations.over_prompts import MassiveChannel
from analyzer.verify.records import SuperActivation
from analyzer.verify.settings import Thresholds

MOST_CHANNELS = 64


class Channels:
    """Figures of each channel after each block, taken in prompt by prompt; nothing of a prompt is kept."""

    def __init__(self, channels: int, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._largest: dict[int, NDArray[np.float32]] = {}
        self._massive: dict[int, NDArray[np.int64]] = {}  # in how many prompts
        self._prompts, self._carrying, self._everywhere = np.zeros((3, channels), np.int64)

    def add(self, layers: Sequence[int], residual: Stream, activations: Sequence[SuperActivation]) -> None:
        """Take in the stream of a prompt after these layers, and its super activations."""
        large = are_large(residual, self._thresholds)
        most = self._thresholds.feature_positions * residual.shape[1]
        for layer, here, stream in zip(layers, large, residual, strict=True):
            self._largest[layer] = np.maximum(self._largest.get(layer, np.float32(0)), np.abs(stream).max(axis=0))
            self._massive[layer] = self._massive.get(layer, np.int64(0)) + here.any(axis=0)
        self._prompts += large.any(axis=(0, 1))
        self._carrying[sorted({activation.channel for activation in activations})] += 1
        self._everywhere += (large.sum(axis=1) > most).any(axis=0)

    @property
    def largest(self) -> dict[int, float]:
        """The largest magnitude of the stream after each block that ran, in the order of the run."""
        return {layer: float(self._largest[layer].max()) for layer in sorted(self._largest)}

    def massive(self) -> tuple[MassiveChannel, ...]:
        """Return the massive channels, the largest first, so many at most."""
        found = [self._of(int(channel)) for channel in np.flatnonzero(self._prompts)]
        return tuple(sorted(found, key=lambda each: (-each.magnitude, each.channel))[:MOST_CHANNELS])

    def _of(self, channel: int) -> MassiveChannel:
        layers = tuple(layer for layer in sorted(self._massive) if self._massive[layer][channel])
        magnitudes = tuple(float(self._largest[layer][channel]) for layer in layers)
        return MassiveChannel(
            channel,
            magnitude=max(magnitudes),
            prompts=int(self._prompts[channel]),
            carrying=int(self._carrying[channel]),
            everywhere=int(self._everywhere[channel]),
            layers=layers,
            magnitudes=magnitudes,
        )
