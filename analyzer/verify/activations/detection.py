"""Pure NumPy: super activations in a residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from analyzer.forward.trace import Stream, Trace
from analyzer.verify.records import LayerMaxima, OutlierFeature, SuperActivation
from analyzer.verify.settings import Thresholds


def medians(residual: Stream) -> NDArray[np.float32]:
    """Return the median |h| of each layer over positions and channels, [layers]."""
    return np.median(np.abs(residual), axis=(1, 2)).astype(np.float32)


def are_large(residual: Stream, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Tell which entries are as large as a super activation, [layers, T, hidden_size]."""
    middle = medians(residual)[:, None, None]
    return (np.abs(residual) >= thresholds.activation_ratio * middle) & (middle > 0)  # which else says nothing


def detect(
    residual: Stream, layers: Sequence[int], tokens: Sequence[str], thresholds: Thresholds
) -> tuple[tuple[SuperActivation, ...], tuple[SuperActivation, ...]]:
    """Return the super activations of one prompt, largest first, and the late ones: too near to the end to persist.

    The criterion is relative to the layer, since the absolute one of the literature (> 100, arXiv 2402.17762)
    does not hold across models. At how many positions a channel is as large does not matter. Where `residual` ends
    before the last block, what is late there means nothing.
    """
    middle, large = medians(residual), are_large(residual, thresholds)
    lasting: list[SuperActivation] = []
    late: list[SuperActivation] = []
    for position, channel in np.argwhere(large.any(axis=0)):
        for first, last in _runs(large[:, position, channel]):
            persists = last - first >= thresholds.persists
            if not persists and last < len(layers) - 1:
                continue
            along = residual[first : last + 1, position, channel]
            peak = int(np.argmax(np.abs(along)))
            (lasting if persists else late).append(
                SuperActivation(
                    layer=layers[first],
                    channel=int(channel),
                    position=int(position),
                    token=tokens[position],
                    value=float(along[peak]),
                    median_ratio=float(abs(along[peak]) / middle[first + peak]),
                    last_layer=layers[last],
                    positions=int(large[first + peak, :, channel].sum()),
                )
            )
    for found in (lasting, late):
        found.sort(key=lambda a: (-abs(a.value), a.layer, a.position, a.channel))
    return tuple(lasting), tuple(late)


def outlier_features(residual: Stream, layers: Sequence[int], thresholds: Thresholds) -> tuple[OutlierFeature, ...]:
    """Return the channels that are as large as a super activation at most positions, which is a property of them."""
    large = are_large(residual, thresholds)
    counts = large.sum(axis=1)  # [layers, hidden_size]
    everywhere = counts > thresholds.feature_positions * residual.shape[1]
    return tuple(
        OutlierFeature(int(channel), layers[first], layers[last], int(counts[first, channel]))
        for channel in np.flatnonzero(everywhere.any(axis=0))
        for first, last in _runs(everywhere[:, channel])
    )


def layer_maxima(trace: Trace) -> tuple[LayerMaxima, ...]:
    """Return the entries of largest magnitude, over all positions, of each layer's input, output and residual."""

    def largest(array: NDArray[np.float32]) -> tuple[float, int]:
        place = np.unravel_index(np.argmax(np.abs(array)), array.shape)
        return float(array[place]), int(place[-1])

    def largest_input(layer: int) -> tuple[float, int]:
        return max((largest(entry.inputs) for entry in trace.entries[layer]), key=lambda found: abs(found[0]))

    return tuple(
        LayerMaxima(layer, *largest_input(layer), *largest(trace.outputs[layer]), *largest(trace.residual[index]))
        for index, layer in enumerate(trace.layers)
        if layer in trace.outputs
    )


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(stop) - 1
