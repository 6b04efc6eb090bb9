"""A model's revisions as a picture."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzer.base.pictures import (
    DPI,
    HEADER_HEIGHT,
    MAX_LINES,
    PANEL_HEIGHT,
    STYLES,
    WIDTH,
    label_of,
    magnitudes_of,
    place_of,
    write_picture,
)
from analyzer.diff.records import History


def plot_history(history: History, path: Path) -> None:
    """Draw a model's revisions into a PNG file; see plot_verification."""
    write_picture(draw_history(history), path)


def draw_history(history: History) -> Figure:
    """Return the picture of a history: the magnitudes of up to MAX_LINES weights through the revisions."""
    figure = Figure(figsize=(WIDTH, HEADER_HEIGHT + 1.5 * PANEL_HEIGHT), dpi=DPI, layout="constrained")
    drawn = min(MAX_LINES, len(history.weights))
    figure.suptitle(
        f"{label_of(history.model, 70)}\n"
        f"{drawn} of the {len(history.weights)} weights followed, those that rank best by {history.score}",
        parse_math=False,
    )
    axes = figure.subplots()
    numbers = range(len(history.revisions))
    for weight, (color, marker, line) in zip(history.weights[:MAX_LINES], STYLES, strict=False):
        values = magnitudes_of([math.nan if value is None else value for value in weight.values])
        label = place_of(weight.coordinate)
        axes.plot(numbers, values, color=color, marker=marker, linestyle=line, markersize=4, label=label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_ylabel("|weight| (dimensionless)")
    axes.set_xlabel("Revision")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    names = [label_of(revision.revision, 14) for revision in history.revisions]
    axes.xaxis.set_major_formatter(lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else "")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="x", labelrotation=30)
    if history.weights:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
