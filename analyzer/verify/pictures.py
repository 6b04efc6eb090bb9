"""A verification as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzer.base.pictures import (
    BLUE,
    DPI,
    HEADER_HEIGHT,
    PANEL_HEIGHT,
    VERMILION,
    WIDTH,
    label_of,
    magnitudes_of,
    number_of,
    place_of,
    set_scale,
    write_picture,
)
from analyzer.verify.records import LayerMaxima, Profile, VerifyResult


def plot_verification(result: VerifyResult, path: Path) -> None:
    """Draw a result into a PNG file, written atomically; the same result gives the same bytes.

    Raises PlotError where the name does not end in .png, or the file cannot be written; it is then as it was.
    """
    write_picture(draw(result), path)


def draw(result: VerifyResult) -> Figure:
    """Return the picture: the down projections' largest inputs and outputs by layer, and what the weight makes.

    These are Figures 3 and 4 of arXiv 2411.07191; the last panel is left out where the result has no profile.
    """
    panels = 2 if result.profile is None else 3
    figure = Figure(figsize=(WIDTH, HEADER_HEIGHT + panels * PANEL_HEIGHT), dpi=DPI, layout="constrained")
    commit = result.commit and result.commit[: 19 if result.commit.startswith("sha256:") else 12]
    prompt = f"{len(result.tokens)} tokens of “{label_of(result.prompt, 70)}” in {result.dtype}"
    name = label_of(result.model, 70) + (f" ({label_of(commit, 20)})" if commit else "")
    figure.suptitle(f"{name}\n{prompt}", parse_math=False)
    axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    _draw_maxima(axes[0], result.layers, "input")
    _draw_maxima(axes[1], result.layers, "output")
    if result.profile is not None:
        _draw_profile(axes[2], result, result.profile)
    figure.align_ylabels()
    axes[-1].set_xlabel("Layer (0-based)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    if result.layers:
        axes[-1].set_xlim(result.layers[0].layer - 0.5, result.layers[-1].layer + 0.5)
    return figure


def _draw_maxima(axes: Axes, layers: Sequence[LayerMaxima], side: str) -> None:
    """Draw the largest magnitude of each layer's input or output, and name the channel of the largest of all."""
    numbers = [entry.layer for entry in layers]
    values = [entry.input_max if side == "input" else entry.output_max for entry in layers]
    magnitudes = magnitudes_of(values)
    axes.plot(numbers, magnitudes, color=BLUE, marker="o", markersize=4)
    axes.set_title(f"Down projections' {side}: largest magnitude over all positions and channels", fontsize=11)
    axes.set_ylabel(f"Largest |{side}| (dimensionless)")
    set_scale(axes, magnitudes)
    peak = max(range(len(values)), key=lambda i: np.nan_to_num(magnitudes[i]), default=None)
    if peak is None or not magnitudes[peak] > 0:
        return
    entry, left = layers[peak], numbers[peak] - numbers[0] > numbers[-1] - numbers[peak]  # where there is more room
    channel = f"col {entry.input_col}" if side == "input" else f"row {entry.output_row}"
    axes.annotate(
        f"layer {entry.layer}, {channel}: {number_of(values[peak])}",
        (numbers[peak], magnitudes[peak]),
        xytext=(-8 if left else 8, 4),
        textcoords="offset points",
        ha="right" if left else "left",
    )


def _draw_profile(axes: Axes, result: VerifyResult, profile: Profile) -> None:
    """Draw one entry of the residual stream through the layers, with and without one weight."""
    coordinate, position = profile.coordinate, profile.position
    is_super = any(w.coordinate == coordinate and w.is_super for w in (*result.super_weights, *result.asked))
    name = f"{'super weight' if is_super else 'weight'} ({place_of(coordinate)})"
    values, zeroed = magnitudes_of(profile.values), magnitudes_of(profile.values_zeroed)
    axes.plot(profile.layers, values, color=BLUE, marker="o", markersize=4, label=f"with the {name}")
    axes.plot(profile.layers, zeroed, "--", color=VERMILION, marker="s", markersize=4, label="with it set to zero")
    where = f"channel {coordinate.row} of the residual stream at position {position}"
    token = label_of(result.tokens[position], 20)
    axes.set_title(f"Super activation: {where}, “{token}”", fontsize=11, parse_math=False)
    axes.set_ylabel("|residual stream| after the block\n(dimensionless)")
    set_scale(axes, np.concatenate((values, zeroed)))
    axes.legend()
