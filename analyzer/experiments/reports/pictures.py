"""An experiment's result as a picture: its arms with their intervals, curves of a number, or tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.base.pictures import (
    BLUE,
    DPI,
    HEADER_HEIGHT,
    MAX_LINES,
    PANEL_HEIGHT,
    STYLES,
    VERMILION,
    WIDTH,
    label_of,
    write_picture,
)
from analyzer.experiments.lab.records import Measured, Result

ROW_HEIGHT = 0.3  # inches of an arm, or a token
SHOWN_TOKENS = 25


def plot_experiment(result: Result, path: Path) -> None:
    """Draw a result into a PNG file, written atomically; the same result gives the same bytes.

    Raises PlotError where the name does not end in .png, or the file cannot be written.
    """
    write_picture(draw(result), path)


def draw(result: Result) -> Figure:
    """Return the picture of a result: of its experiment's kind."""
    kind, arms = result.picture, result.outcome.arms
    tokens = result.outcome.more.get("tokens", ())[:SHOWN_TOKENS]
    lines = len(tokens) if kind == "tokens" else len(arms) if kind == "arms" else 0
    height = HEADER_HEIGHT + max(PANEL_HEIGHT, 1.0 + ROW_HEIGHT * lines)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    weights = ", ".join(str(weight.coordinate) for weight in result.weights[:4])
    figure.suptitle(f"{label_of(result.model, 70)}\n{result.experiment}: {label_of(weights, 80)}", parse_math=False)
    axes = figure.subplots()
    if kind == "tokens":
        _draw_tokens(axes, tokens)
    elif kind == "mean":
        _draw_means(axes, arms)
    elif kind == "arms":
        _draw_arms(axes, [arm for arm in arms if arm.cost is not None])
    else:
        _draw_curves(axes, arms, kind)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure


def _draw_arms(axes: Axes, arms: Sequence[Measured]) -> None:
    """Draw each arm's difference to the untouched model, the first at the top."""
    for place, arm in enumerate(arms):
        cost = arm.cost
        assert cost is not None
        (delta,) = _finite([cost.delta])
        axes.plot([delta], [place], marker="o", color=BLUE)
        if cost.delta_low is not None and cost.delta_high is not None:
            axes.plot(_finite([cost.delta_low, cost.delta_high]), [place, place], color=BLUE)
    axes.axvline(0.0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(arms)), [label_of(arm.name, 46) for arm in arms], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("Loss above the untouched model's (nats per token), with its 95 % interval")


def _draw_means(axes: Axes, arms: Sequence[Measured]) -> None:
    """Draw each arm's mean accuracy, the first at the top."""
    values = _finite([math.nan if arm.facts["mean"] is None else arm.facts["mean"] for arm in arms])
    axes.plot(values, range(len(arms)), color=BLUE, marker="o", linestyle="")
    axes.set_yticks(range(len(arms)), [label_of(arm.name, 46) for arm in arms], parse_math=False)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.set_xlabel("Mean accuracy of the tasks")


def _draw_curves(axes: Axes, arms: Sequence[Measured], along: str) -> None:
    """Draw the loss along a number that the arms have of this name, a line for each `of` that they are of."""
    original = next((arm.cost for arm in arms if arm.name == "original"), None)
    groups = list(dict.fromkeys(arm.facts["of"] for arm in arms if along in arm.facts and arm.name != "original"))
    for (color, marker, line), group in zip(STYLES, groups[:MAX_LINES], strict=False):
        points = sorted(
            (arm.facts[along], arm.cost) for arm in arms if arm.facts.get("of") in (group, "original") and arm.cost
        )
        values = _finite([cost.nll for _, cost in points])
        at = [number for number, _ in points]
        axes.plot(at, values, color=color, marker=marker, linestyle=line, markersize=4, label=label_of(group, 46))
    if original is not None:
        axes.axhline(original.nll, color="0.6", linewidth=1)
    axes.set_xlabel(along.capitalize())
    axes.set_ylabel("Loss (nats per token)")
    if groups:
        axes.legend()


def _draw_tokens(axes: Axes, tokens: Sequence[dict[str, object]]) -> None:
    """Draw each token's mean probability before and after, the most likely at the top."""
    places = range(len(tokens))
    for key, color, marker in (("before", BLUE, "o"), ("after", VERMILION, "s")):
        values = [float(str(each[key])) for each in tokens]
        axes.plot(values, places, color=color, marker=marker, linestyle="", label=key)
    axes.set_yticks(places, [label_of(repr(each["token"]), 24) for each in tokens], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("Mean probability of the next token")
    axes.legend()


def _finite(values: Sequence[float]) -> list[float]:
    """Return values, with gaps for those that are not finite."""
    return [value if math.isfinite(value) else math.nan for value in values]
