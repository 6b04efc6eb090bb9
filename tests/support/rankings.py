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


def magnitudes(down):
    """Return what the weights are ranked by: -1 for those that are not."""
    return np.where(np.isfinite(down), np.abs(down), -1)


def place_key(place):
    layer, expert = place
    return layer, -1 if expert is None else expert


def ranking(downs, top):
    """Return the largest weights of all, in order: by magnitude, then by layer, expert, row and column."""
    ranked = {place: magnitudes(down) for place, down in downs.items()}
    lowest = np.partition(np.concatenate([down.ravel() for down in ranked.values()]), -top)[-top]
    found = [
        (*place, int(row), int(col), float(downs[place][row, col]))
        for place, down in ranked.items()
        for row, col in np.argwhere(down >= lowest)
    ]
    return sorted(found, key=lambda entry: (-abs(entry[4]), place_key(entry[:2]), entry[2:4]))[:top]


def rank_of(ranked, weight):
    """Return the rank of a weight among these magnitudes by place."""
    own = weight.layer, weight.expert
    magnitude = ranked[own][weight.row, weight.col]
    before = 0
    for place, others in ranked.items():
        before += np.count_nonzero(others > magnitude)
        if place == own:
            before += np.count_nonzero(others.ravel()[: weight.row * others.shape[1] + weight.col] == magnitude)
        elif place_key(place) < place_key(own):
            before += np.count_nonzero(others == magnitude)
    return 1 + before
