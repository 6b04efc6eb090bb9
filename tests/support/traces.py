"""Traces that are made up, so that every answer is known."""

import numpy as np

from analyzer.base.records import Coordinate
from analyzer.forward.trace import Entry, Trace


def entry(inputs, *, expert=None, positions=(0,), routed=None, part=0):
    inputs = np.array(inputs, np.float32).reshape(len(positions), -1)
    routed = np.ones(len(positions), np.float32) if routed is None else np.array(routed, np.float32)
    return Entry(Coordinate(5, expert, 0, 0).place, np.array(positions), inputs, routed, part)


def trace_of(entries, outputs, *, layer=5, residual=None, added=None):
    """`outputs` are those of the block's one MLP, [T, hidden_size], or of each, [MLPs, T, hidden_size]."""
    outputs = np.array(outputs, np.float32)
    outputs = outputs.reshape(-1, *outputs.shape[-2:])
    residual = np.zeros((1, *outputs.shape[1:]), np.float32) if residual is None else residual
    added = outputs if added is None else np.array(added, np.float32)
    return Trace(
        (layer,), np.zeros_like(outputs[0]), residual, {layer: tuple(entries)}, {layer: outputs}, {layer: added}
    )
