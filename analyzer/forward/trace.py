"""What a prompt did in a model, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    outputs: Mapping[int, NDArray[np.float32]]  # layer that has an MLP -> [T, hidden_size]
    tower: str | None = None  # of a model with several

    def at(self, layer: int, position: int) -> Iterator[tuple[int | None, NDArray[np.float64]]]:
        """Yield each expert that had this position (null where there is one MLP) with what went in, [inner width].

        The router's weight is multiplied in, so that W[row] times it is what the MLP adds.
        """
        for entry in self.entries[layer]:
            for index in np.flatnonzero(entry.positions == position):
                yield entry.expert, entry.inputs[index].astype(np.float64) * float(entry.routed[index])
