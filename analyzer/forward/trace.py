"""What a prompt did in a model, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.base.records import Place

Stream = NDArray[np.float32]
"""The residual stream after each block, [layers, T, hidden_size]; of several streams, all beside each other."""


ALIKE = 1e-2  # relative: more than the rounding of 16-bit floats


@dataclass(frozen=True)
class Entry:
    """What went into one down projection: for n tokens their positions, its inputs, and the router's weights.

    `place` is where the down projection is: of one that several layers share, in the first of them. The router's
    weights are 1 where it is not one of several experts. `part` is the number of the MLP that it is a part of, among
    those of the block.
    """

    place: Place
    positions: NDArray[np.int64]  # [n]
    inputs: NDArray[np.float32]  # [n, intermediate_size]
    routed: NDArray[np.float32]  # [n]
    part: int = 0

    @property
    def expert(self) -> int | None:
        """The expert, null where it is not one of several."""
        return None if self.place[3] < 0 else self.place[3]


@dataclass(frozen=True)
class Trace:
    """What one prompt did, in float32; each array's layers are those of `layers`, in their order.

    T is the number of tokens. `entering` and `residual` are the residual stream before and after each block; `outputs`
    what each MLP of a block gives, and `added` what becomes of that before it is summed up, where a norm follows it,
    each of several apart (Gemma 2, Gemma 4).
    """

    layers: tuple[int, ...]
    entering: Stream
    residual: NDArray[np.float32]  # [layers, T, hidden_size]
    entries: Mapping[int, tuple[Entry, ...]]
    outputs: Mapping[int, NDArray[np.float32]]  # layer that has an MLP -> [MLPs, T, hidden_size]
    added: Mapping[int, NDArray[np.float32]]  # the same

    @property
    def width(self) -> int:
        """How many channels an MLP writes; channel c of the streams is channel c % width of stream c // width."""
        return next((int(each.shape[-1]) for each in self.outputs.values()), int(self.residual.shape[-1]))

    def at(self, layer: int, position: int) -> Iterator[tuple[Place, NDArray[np.float64], NDArray[np.float64]]]:
        """Yield of each down projection that had this position what went in, [inner width], and the whole at each row.

        W[row] times the first, over the whole there, is the part that each column has in what the block's MLPs add.
        The router's weight is multiplied in. The whole, [hidden_size], is what the MLP gives, times what all MLPs of
        the block add over what this one does: a norm that follows it scales all its terms alike. Infinite where
        nothing is added.
        """
        added = self.added[layer][:, position].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            wholes = self.outputs[layer][:, position] * (added.sum(axis=0) / added)
        wholes[~np.isfinite(wholes) | (wholes == 0)] = np.inf
        for entry in self.entries[layer]:
            here = entry.positions == position  # more than once, where an expert is handed a token again
            if here.any():
                yield entry.place, entry.routed[here].astype(np.float64) @ entry.inputs[here], wholes[entry.part]


def factors_of(output: NDArray[np.float32], products: Sequence[NDArray[np.float32]]) -> list[float]:
    """Return what a mixture multiplies the products of each of its writers by, all [T, hidden_size]: 1, as a rule.

    Some multiply the sum of the experts, before they add what is shared (MiniMax-M3, Step-3.7). Found by least squares,
    each channel over its largest value, less its mean over tokens, which takes biases away. Where the output is more
    than such a sum, all are 1.
    """
    every = np.stack([output, *products]).astype(np.float64)
    every -= every.mean(axis=1, keepdims=True)
    every /= np.maximum(np.abs(every).max(axis=(0, 1)), np.finfo(np.float32).tiny)
    wanted, *columns = every.reshape(len(every), -1)
    found, *_ = np.linalg.lstsq(np.stack(columns, axis=1), wanted)
    rest = wanted - found @ columns
    if np.abs(rest).mean() > ALIKE * np.abs(wanted).mean():
        return [1.0] * len(products)
    return [
        float(factor) if column.any() and abs(factor - 1) > ALIKE else 1.0
        for factor, column in zip(found, columns, strict=True)
    ]
