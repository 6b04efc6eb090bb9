"""Pure NumPy: the blocks that write a super activation, and the weights behind a write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analyzer.base.records import Coordinate, Place
from analyzer.forward.trace import Stream, Trace
from analyzer.verify.activations.detection import medians
from analyzer.verify.records import SuperActivation, Write
from analyzer.verify.settings import Thresholds


@dataclass(frozen=True)
class Attribution:
    """A weight, the write it has a part in, and the part: term / output of the down projection."""

    coordinate: Coordinate
    value: float
    share: float
    write: Write


def find_writes(
    entering: Stream,
    residual: Stream,
    layers: Sequence[int],
    activations: Sequence[SuperActivation],
    thresholds: Thresholds,
) -> list[tuple[int, int, int, float]]:
    """Return (layer, position, channel, change) of each block that writes a super activation, removing ones too.

    `entering` is the residual stream before each block, as `residual` is that after it. A write counts from the layer
    where the activation first appears at that place to the one after it was last seen.
    """
    bounds = thresholds.write_ratio * medians(residual)
    writes = []
    for channel, position in sorted({(a.channel, a.position) for a in activations}):
        here = [a for a in activations if (a.position, a.channel) == (position, channel)]
        start = layers.index(min(a.layer for a in here))
        stop = layers.index(max(a.last_layer for a in here)) + 1
        for index in range(start, min(stop, len(layers) - 1) + 1):
            change = float(residual[index, position, channel] - entering[index, position, channel])
            if abs(change) >= bounds[index] > 0:
                writes.append((layers[index], position, channel, change))
    return writes


def attribute(
    write: tuple[int, int, int, float],
    trace: Trace,
    weight_row: Callable[[Place, int], NDArray[np.float64]],
    thresholds: Thresholds,
) -> tuple[Write, list[Attribution]]:
    """Return a write and the weights with a share of at least the threshold in it, largest share first.

    What the MLPs add at (position, row) is the sum over c of W[row, c] * input[position, c] plus a bias, over the
    experts that had the position and all MLPs of the block: an exact decomposition, also where a norm follows that
    scales all channels alike. `weight_row` gives W[row] of the down projection at a place, [intermediate_size].
    """
    layer, position, channel, change = write
    found: list[Attribution] = []
    largest = 0.0
    record = Write(layer, channel, position, change, 0.0)
    if layer not in trace.outputs:  # it has no MLP
        return record, found
    for place, entered, whole in trace.at(layer, position):
        row = channel % trace.width
        weights = weight_row(place, row)
        shares = weights * entered / whole[row]
        largest = max(largest, float(shares.max()))
        found += [
            Attribution(Coordinate.at(place, row, int(col)), float(weights[col]), float(shares[col]), record)
            for col in np.flatnonzero(shares >= thresholds.share)
        ]
    record = replace(record, largest_share=largest)
    found = [replace(attribution, write=record) for attribution in found]
    return record, sorted(found, key=lambda attribution: (-attribution.share, attribution.coordinate.sort_key))


def collapse(
    coordinate: Coordinate,
    channel: int,
    position: int,
    activations: Sequence[SuperActivation],
    layers: Sequence[int],
    residual: Stream,
    residual_zeroed: Stream,
) -> float:
    """Return the part of the super activation's magnitude that zeroing the weight takes away.

    Each run of the activation at this channel, the weight's row in one of the streams, that ends at or after the
    weight's layer is judged at its peak from that layer on; the hardest hit counts, for one write can prepare a later
    one. Negative where it grows.
    """
    parts = []
    for activation in activations:
        if (activation.channel, activation.position) != (channel, position):
            continue
        first = layers.index(max(activation.layer, coordinate.layer))
        along = np.abs(residual[first : layers.index(activation.last_layer) + 1, position, channel])
        if along.size:
            peak = first + int(np.argmax(along))
            zeroed = abs(float(residual_zeroed[peak, position, channel]))
            parts.append(1.0 - zeroed / float(along.max()))
    return max(parts, default=0.0)
