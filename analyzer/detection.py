"""Pure NumPy: super activations in a residual stream, the blocks that write them, and the weights behind a write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analyzer.records import Coordinate, LayerMaxima, OutlierFeature, SuperActivation, Write

Stream = NDArray[np.float32]
"""The residual stream after each block, [layers, T, hidden_size]."""


@dataclass(frozen=True)
class Entry:
    """What went into one down projection: for n tokens their positions, its inputs, and the router's weights.

    `expert` is null where it is not one of several; the router's weights are then 1.
    """

    expert: int | None
    positions: NDArray[np.int64]  # [n]
    inputs: NDArray[np.float32]  # [n, intermediate_size]
    routed: NDArray[np.float32]  # [n]


@dataclass(frozen=True)
class Trace:
    """What one prompt did, in float32; each array's layers are those of `layers`, in their order.

    T is the number of tokens. `entering` and `residual` are the residual stream before the first block and after
    each; `outputs` what each MLP adds.
    """

    layers: tuple[int, ...]
    entering: NDArray[np.float32]  # [T, hidden_size]
    residual: NDArray[np.float32]  # [layers, T, hidden_size]
    entries: Mapping[int, tuple[Entry, ...]]
    outputs: Mapping[int, NDArray[np.float32]]  # layer -> [T, hidden_size]

    def at(self, layer: int, position: int) -> Iterator[tuple[int | None, NDArray[np.float64]]]:
        """Yield each expert that had this position (null where there is one MLP) with what went in, [inner width].

        The router's weight is multiplied in, so that W[row] times it is what the MLP adds.
        """
        for entry in self.entries[layer]:
            for index in np.flatnonzero(entry.positions == position):
                yield entry.expert, entry.inputs[index].astype(np.float64) * float(entry.routed[index])


@dataclass(frozen=True)
class Thresholds:
    """What counts as what. Multiples are of the median |h| of the layer."""

    activation_ratio: float = 100.0
    """A super activation is at least this multiple."""
    persists: int = 2
    """It stays so for at least this many following blocks."""
    feature_positions: float = 0.5
    """A channel that large at more than this part of the positions is an outlier feature."""
    write_ratio: float = 100.0
    """A write changes the channel by at least this multiple."""
    share: float = 0.25
    """A weight with at least this part of a write's down-projection output is behind it."""
    collapse: float = 0.25
    """Zeroing collapses an activation if it takes at least this part of its magnitude away.

    The same as `share`: of a write that several weights share, each can take away no more than it brought.
    """


@dataclass(frozen=True)
class Attribution:
    """A weight, the write it has a part in, and the part: term / output of the down projection."""

    coordinate: Coordinate
    value: float
    share: float
    write: Write


def medians(residual: Stream) -> NDArray[np.float32]:
    """Return the median |h| of each layer over positions and channels, [layers]."""
    return np.median(np.abs(residual), axis=(1, 2)).astype(np.float32)


def detect(
    residual: Stream, layers: Sequence[int], tokens: Sequence[str], thresholds: Thresholds
) -> tuple[tuple[SuperActivation, ...], tuple[OutlierFeature, ...]]:
    """Return the super activations, largest first, and the outlier features of one prompt.

    The criterion is relative to the layer, since the absolute one of the literature (> 100, arXiv 2402.17762)
    does not hold across models.
    """
    middle = medians(residual)[:, None, None]
    # A median of zero says nothing about what is large.
    large = (np.abs(residual) >= thresholds.activation_ratio * middle) & (middle > 0)  # [layers, T, hidden_size]
    everywhere = large.sum(axis=1) > thresholds.feature_positions * residual.shape[1]  # [layers, hidden_size]
    activations = []
    large &= ~everywhere[:, None, :]
    for position, channel in np.argwhere(large.any(axis=0)):
        for first, last in _runs(large[:, position, channel]):
            if last - first < thresholds.persists:
                continue
            along = residual[first : last + 1, position, channel]
            peak = int(np.argmax(np.abs(along)))
            activations.append(
                SuperActivation(
                    layer=layers[first],
                    channel=int(channel),
                    position=int(position),
                    token=tokens[position],
                    value=float(along[peak]),
                    median_ratio=float(abs(along[peak]) / middle[first + peak, 0, 0]),
                    last_layer=layers[last],
                )
            )
    activations.sort(key=lambda a: (-abs(a.value), a.layer, a.position, a.channel))
    features = tuple(
        OutlierFeature(
            channel=int(channel),
            layer=layers[first],
            last_layer=layers[last],
            positions=int(
                (np.abs(residual[first, :, channel]) >= thresholds.activation_ratio * middle[first, 0, 0]).sum()
            ),
        )
        for channel in np.flatnonzero(everywhere.any(axis=0))
        for first, last in _runs(everywhere[:, channel])
    )
    return tuple(activations), features


def find_writes(
    entering: NDArray[np.float32],
    residual: Stream,
    layers: Sequence[int],
    activations: Sequence[SuperActivation],
    thresholds: Thresholds,
) -> list[tuple[int, int, int, float]]:
    """Return (layer, position, channel, change) of each block that writes a super activation, removing ones too.

    `entering` is the residual stream before the first block, [T, hidden_size]. A write counts from the layer where
    the activation first appears at that place to the one after it was last seen.
    """
    before = np.concatenate((entering[None], residual[:-1]))
    bounds = thresholds.write_ratio * medians(residual)
    writes = []
    for position, channel in sorted({(a.position, a.channel) for a in activations}):
        here = [a for a in activations if (a.position, a.channel) == (position, channel)]
        start = layers.index(min(a.layer for a in here))
        stop = layers.index(max(a.last_layer for a in here)) + 1
        for index in range(start, min(stop, len(layers) - 1) + 1):
            change = float(residual[index, position, channel] - before[index, position, channel])
            if abs(change) >= bounds[index] > 0:
                writes.append((layers[index], position, channel, change))
    return writes


def attribute(
    write: tuple[int, int, int, float],
    trace: Trace,
    weight_row: Callable[[int, int | None, int], NDArray[np.float64]],
    thresholds: Thresholds,
) -> tuple[Write, list[Attribution]]:
    """Return a write and the weights with a share of at least the threshold in it, largest share first.

    What the MLP adds at (position, row) is the sum over c of W[row, c] * input[position, c] plus a bias, and over the
    experts that had the position: an exact decomposition, also where a norm follows that scales all channels alike.
    `weight_row` gives W[row] of a (layer, expert, row), [intermediate_size].
    """
    layer, position, channel, change = write
    total = float(trace.outputs[layer][position, channel])
    found: list[Attribution] = []
    largest = 0.0
    record = Write(layer, channel, position, change, 0.0)
    for expert, entered in trace.at(layer, position):
        row = weight_row(layer, expert, channel)
        shares = row * entered / total if total else np.zeros_like(row)
        largest = max(largest, float(shares.max()))
        found += [
            Attribution(Coordinate(layer, expert, channel, int(col)), float(row[col]), float(shares[col]), record)
            for col in np.flatnonzero(shares >= thresholds.share)
        ]
    record = replace(record, largest_share=largest)
    found = [replace(attribution, write=record) for attribution in found]
    return record, sorted(found, key=lambda attribution: (-attribution.share, attribution.coordinate.sort_key))


def collapse(
    coordinate: Coordinate,
    position: int,
    activations: Sequence[SuperActivation],
    layers: Sequence[int],
    residual: Stream,
    residual_zeroed: Stream,
) -> float:
    """Return the part of the super activation's magnitude that zeroing the weight takes away.

    Each run of the activation at the weight's row that ends at or after the weight's layer is judged at its peak
    from that layer on; the hardest hit counts, for one write can prepare a later one. Negative where it grows.
    """
    parts = []
    for activation in activations:
        if (activation.channel, activation.position) != (coordinate.row, position):
            continue
        first = layers.index(max(activation.layer, coordinate.layer))
        along = np.abs(residual[first : layers.index(activation.last_layer) + 1, position, coordinate.row])
        if along.size:
            peak = first + int(np.argmax(along))
            zeroed = abs(float(residual_zeroed[peak, position, coordinate.row]))
            parts.append(1.0 - zeroed / float(along.max()))
    return max(parts, default=0.0)


def layer_maxima(trace: Trace) -> tuple[LayerMaxima, ...]:
    """Return the entries of largest magnitude, over all positions, of each layer's input, output and residual."""

    def largest(array: NDArray[np.float32]) -> tuple[float, int]:
        position, channel = np.unravel_index(np.argmax(np.abs(array)), array.shape)
        return float(array[position, channel]), int(channel)

    def largest_input(layer: int) -> tuple[float, int]:
        return max((largest(entry.inputs) for entry in trace.entries[layer]), key=lambda found: abs(found[0]))

    return tuple(
        LayerMaxima(layer, *largest_input(layer), *largest(trace.outputs[layer]), *largest(trace.residual[index]))
        for index, layer in enumerate(trace.layers)
    )


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(stop) - 1
