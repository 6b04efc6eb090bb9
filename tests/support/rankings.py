"""Rankings the slow way: every weight of a model in one list."""

import math

import numpy as np


def sort_all(downs):
    """Rank every weight of {(layer, expert): [rows, cols]} the slow way: by magnitude, then by coordinate."""
    everything = [
        (layer, expert, row, col, float(value))
        for (layer, expert), down in downs.items()
        for (row, col), value in np.ndenumerate(down.astype(np.float64))
        if math.isfinite(value)
    ]
    return sorted(everything, key=lambda e: (-abs(e[4]), e[0], -1 if e[1] is None else e[1], e[2], e[3]))


def by_layer(downs):
    return {(layer, None): down for layer, down in enumerate(downs)}
