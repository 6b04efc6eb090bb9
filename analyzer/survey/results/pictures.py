"""What a survey has found, as pictures: where super weights sit, their values and shares, what tells their effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from analyzer.base.pictures import BLUE, DPI, HEADER_HEIGHT, PANEL_HEIGHT, VERMILION, WIDTH, label_of
from analyzer.survey.results.findings import CANDIDATE, CRITICAL, INERT, KINDS, OUTLIER, UNMEASURED, Weight
from analyzer.survey.results.prediction import RANKS, SCORES, Prediction, correlation_said, score_said

MARKS = {
    CRITICAL: (VERMILION, "o", "critical"),
    INERT: (BLUE, "s", "inert"),
    UNMEASURED: ("#009E73", "^", "effect not measured"),
    CANDIDATE: ("0.55", "x", "judged, no super weight"),
    OUTLIER: ("0.25", "D", "only scanned: the first outlier"),
}
LINEAR = ("zscore", "share")  # scores that may be negative
ROW_HEIGHT = 0.42  # inches of a family
SMALLEST = 1e-3  # nats per token: below it effects are drawn on a linear scale


def draw_places(weights: Sequence[Weight], families: Sequence[str]) -> Figure:
    """Return where weights of these families sit: by depth, and by channel of the residual stream."""
    figure = _figure(1.3 + ROW_HEIGHT * len(families))
    axes = figure.subplots(1, 2, sharey=True)
    rows = {family: number for number, family in enumerate(families)}
    for panel, name in zip(axes, ("depth", "across"), strict=True):

        def at(weight: Weight, name: str = name) -> tuple[float | None, float | None]:
            lane = 0.75 * (KINDS.index(weight.kind) - 2) / len(KINDS)  # kinds side by side within a family
            return getattr(weight, name), rows[weight.family] + lane

        _scatter(panel, [weight for weight in weights if weight.family in rows], at)
        panel.set_xlim(-0.03, 1.03)
        panel.grid(color="0.9")
    axes[0].set_yticks(range(len(families)), [label_of(each, 30) for each in families], parse_math=False)
    axes[0].set_ylim(len(families) - 0.5, -0.5)
    axes[0].set_xlabel("Depth: 0 is the first block, 1 the last")
    axes[1].set_xlabel("Row: its place among the channels, 0 to 1")
    _legend(figure, axes)
    return figure


def draw_shares(weights: Sequence[Weight]) -> Figure:
    """Return the values of super weights against their shares of what their blocks write."""
    figure = _figure(PANEL_HEIGHT + HEADER_HEIGHT)
    axes = figure.subplots()
    _scatter(axes, weights, lambda weight: (weight.magnitude or None, weight.share))
    _spread(axes, [weight.magnitude for weight in weights if weight.magnitude and weight.share is not None])
    axes.set_xlabel("|W|")
    axes.set_ylabel("Share of the write")
    axes.grid(color="0.9")
    _legend(figure, [axes])
    return figure


def draw_effects(weights: Sequence[Weight], predictions: Sequence[Prediction]) -> Figure:
    """Return what zeroing weights alone costs, against each score, with the correlations."""
    figure = _figure(3 * PANEL_HEIGHT + HEADER_HEIGHT)
    panels = figure.subplots(3, 2, sharey=True).ravel()
    known = {each.score: each for each in predictions if each.alone}
    alone = [weight for weight in weights if not weight.zeroed_with]
    for axes, score in zip(panels, SCORES, strict=True):

        def at(weight: Weight, score: str = score) -> tuple[float | None, float | None]:
            return getattr(weight, score) or None, weight.delta

        _scatter(axes, alone, at)
        axes.axhline(0.0, color="0.6", linewidth=1)
        known_of = [x for x, y in map(at, alone) if x is not None and y is not None]
        if known_of:
            axes.set_yscale("symlog", linthresh=SMALLEST)
        if score not in LINEAR:
            _spread(axes, known_of, whole=score in RANKS)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_title(correlation_said(known[score]), fontsize="medium")
        axes.set_xlabel(score_said(score) + (", 1 is the best" if score in RANKS else ""))
        axes.grid(color="0.9")
    for axes in panels[::2]:
        axes.set_ylabel("Δ loss (nats per token)")
    _legend(figure, panels)
    return figure


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def _scatter(axes: Axes, weights: Sequence[Weight], at: Callable[[Weight], tuple[float | None, float | None]]) -> None:
    """Draw each weight where it is, those that matter most on top; what has no place is left out."""
    for kind in reversed(KINDS):
        color, marker, label = MARKS[kind]
        points = [point for weight in weights if weight.kind == kind and None not in (point := at(weight))]
        if points:
            x, y = np.array(points, dtype=np.float64).T
            look: dict[str, Any] = {"marker": marker, "linewidths": 1.2}
            look |= {} if marker == "x" else {"edgecolors": "white", "linewidths": 0.5}
            axes.scatter(x, y, s=32, c=color, label=label, alpha=0.75, zorder=3, **look)


def _spread(axes: Axes, values: Sequence[float], *, whole: bool = False) -> None:
    """Lay what is above zero out by powers of ten where it spans one, so that there are numbers on the axis."""
    if values and max(values) >= 10 * min(values):
        few = max(values) < 1000 * min(values)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Name the marks that are drawn, once for all panels."""
    marks = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for _, _, label in MARKS.values() if label in marks]
    if labels:
        figure.legend(
            [marks[label] for label in labels], labels, loc="outside upper left", ncols=len(labels), frameon=False
        )
