"""Pictures of a verification, and of a model's revisions; the only importer of matplotlib."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from analyzer.atomic import write_whole
from analyzer.diff_records import History
from analyzer.errors import PlotError, shown
from analyzer.records import Coordinate, LayerMaxima, Profile, VerifyResult

# Two colours of Okabe and Ito's palette, which the colour-blind tell apart; line and marker differ as well.
BLUE, VERMILION = "#0072B2", "#D55E00"
MAX_LINES = 8
STYLES = list(  # of that palette too
    zip(
        (BLUE, VERMILION, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"),
        "os^DvP*X",
        ("-", "--") * 4,
        strict=True,
    )
)
WIDTH, HEADER_HEIGHT, PANEL_HEIGHT, DPI = 10.0, 0.75, 3.25, 100  # inches, and pixels for each
LINEAR_SPAN = 100.0  # largest over smallest magnitude from which on the scale is logarithmic
MAX_SPAN = 1e8  # what is smaller than the largest by more than that is drawn as if next to zero


def check_plot(path: Path) -> None:
    """Raise the PlotError that plot_verification would, as far as it can be known before there is a result."""
    if path.suffix.lower() != ".png":
        raise PlotError(f"cannot draw {shown(path)}: only PNG is written, give a name that ends in .png")
    try:
        if path.is_dir():
            raise PlotError(f"cannot write {shown(path)}: it is a folder, give the name of a file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".plot."):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def plot_verification(result: VerifyResult, path: Path) -> None:
    """Draw a result into a PNG file, written atomically; the same result gives the same bytes.

    Raises PlotError where the name does not end in .png, or the file cannot be written; it is then as it was.
    """
    _write(draw(result), path)


def plot_history(history: History, path: Path) -> None:
    """Draw a model's revisions into a PNG file; see plot_verification."""
    _write(draw_history(history), path)


def _write(figure: Figure, path: Path) -> None:
    check_plot(path)
    data = io.BytesIO()
    FigureCanvasAgg(figure)  # no pyplot, whose state is global
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})  # which would name a version
    try:
        write_whole(path, data.getvalue())
    except OSError as error:
        raise _unwritable(path, error) from error


def draw(result: VerifyResult) -> Figure:
    """Return the picture: the down projections' largest inputs and outputs by layer, and what the weight makes.

    These are Figures 3 and 4 of arXiv 2411.07191; the last panel is left out where the result has no profile.
    """
    panels = 2 if result.profile is None else 3
    figure = Figure(figsize=(WIDTH, HEADER_HEIGHT + panels * PANEL_HEIGHT), dpi=DPI, layout="constrained")
    commit = result.commit and result.commit[: 19 if result.commit.startswith("sha256:") else 12]
    prompt = f"{len(result.tokens)} tokens of “{_label(result.prompt, 70)}” in {result.dtype}"
    name = _label(result.model, 70) + (f" ({_label(commit, 20)})" if commit else "")
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


def draw_history(history: History) -> Figure:
    """Return the picture of a history: the magnitudes of up to MAX_LINES weights through the revisions."""
    figure = Figure(figsize=(WIDTH, HEADER_HEIGHT + 1.5 * PANEL_HEIGHT), dpi=DPI, layout="constrained")
    drawn = min(MAX_LINES, len(history.weights))
    figure.suptitle(
        f"{_label(history.model, 70)}\n"
        f"{drawn} of the {len(history.weights)} weights followed, those that rank best by {history.score}",
        parse_math=False,
    )
    axes = figure.subplots()
    numbers = range(len(history.revisions))
    for weight, (color, marker, line) in zip(history.weights[:MAX_LINES], STYLES, strict=False):
        values = _magnitudes([math.nan if value is None else value for value in weight.values])
        label = _place(weight.coordinate)
        axes.plot(numbers, values, color=color, marker=marker, linestyle=line, markersize=4, label=label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_ylabel("|weight| (dimensionless)")
    axes.set_xlabel("Revision")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    names = [_label(revision.revision, 14) for revision in history.revisions]
    axes.xaxis.set_major_formatter(lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else "")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="x", labelrotation=30)
    if history.weights:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_maxima(axes: Axes, layers: Sequence[LayerMaxima], side: str) -> None:
    """Draw the largest magnitude of each layer's input or output, and name the channel of the largest of all."""
    numbers = [entry.layer for entry in layers]
    values = [entry.input_max if side == "input" else entry.output_max for entry in layers]
    magnitudes = _magnitudes(values)
    axes.plot(numbers, magnitudes, color=BLUE, marker="o", markersize=4)
    axes.set_title(f"Down projections' {side}: largest magnitude over all positions and channels", fontsize=11)
    axes.set_ylabel(f"Largest |{side}| (dimensionless)")
    _scale(axes, magnitudes)
    peak = max(range(len(values)), key=lambda i: np.nan_to_num(magnitudes[i]), default=None)
    if peak is None or not magnitudes[peak] > 0:
        return
    entry, left = layers[peak], numbers[peak] - numbers[0] > numbers[-1] - numbers[peak]  # where there is more room
    channel = f"col {entry.input_col}" if side == "input" else f"row {entry.output_row}"
    axes.annotate(
        f"layer {entry.layer}, {channel}: {_number(values[peak])}",
        (numbers[peak], magnitudes[peak]),
        xytext=(-8 if left else 8, 4),
        textcoords="offset points",
        ha="right" if left else "left",
    )


def _draw_profile(axes: Axes, result: VerifyResult, profile: Profile) -> None:
    """Draw one entry of the residual stream through the layers, with and without one weight."""
    coordinate, position = profile.coordinate, profile.position
    confirmed = any(w.coordinate == coordinate and w.status == "confirmed" for w in result.super_weights)
    name = f"{'super weight' if confirmed else 'weight'} ({_place(coordinate)})"
    values, zeroed = _magnitudes(profile.values), _magnitudes(profile.values_zeroed)
    axes.plot(profile.layers, values, color=BLUE, marker="o", markersize=4, label=f"with the {name}")
    axes.plot(profile.layers, zeroed, "--", color=VERMILION, marker="s", markersize=4, label="with it set to zero")
    where = f"channel {coordinate.row} of the residual stream at position {position}"
    token = _label(result.tokens[position], 20)
    axes.set_title(f"Super activation: {where}, “{token}”", fontsize=11, parse_math=False)
    axes.set_ylabel("|residual stream| after the block\n(dimensionless)")
    _scale(axes, np.concatenate((values, zeroed)))
    axes.legend()


def _magnitudes(values: Sequence[float]) -> NDArray[np.float64]:
    """Return |values|, with a gap for what is not finite."""
    magnitudes = np.abs(np.array(values, dtype=np.float64))
    return np.where(np.isfinite(magnitudes), magnitudes, np.nan)


def _scale(axes: Axes, magnitudes: NDArray[np.float64]) -> None:
    """Give the axis a scale that starts at zero, or is logarithmic down to the smallest magnitude that is not zero."""
    axes.margins(y=0.15)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    positive = magnitudes[magnitudes > 0]
    if not positive.size:
        axes.set_ylim(0, 1)
    elif positive.max() <= LINEAR_SPAN * positive.min():
        axes.set_ylim(bottom=0)
    else:
        smallest = 10.0 ** math.floor(math.log10(max(positive.min(), positive.max() / MAX_SPAN)))
        axes.set_yscale("symlog", linthresh=smallest)  # zero has its place, below the smallest
        axes.set_ylim(bottom=0 if np.nanmin(magnitudes) < smallest else smallest)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _place(coordinate: Coordinate) -> str:
    expert = "" if coordinate.expert is None else f"expert {coordinate.expert}, "
    return f"layer {coordinate.layer}, {expert}row {coordinate.row}, col {coordinate.col}"


def _number(value: float) -> str:
    return f"{value:+,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:+.4g}"


def _label(text: str, limit: int) -> str:
    """Return `text` like `shown`, with what the font lacks escaped too: it would be drawn as boxes, and warned of."""
    font = get_font(findfont(FontProperties()))
    drawable = (c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown("".join(drawable), limit)


def _unwritable(path: Path, error: OSError) -> PlotError:
    return PlotError(f"cannot write {shown(path)}: {error.strerror}; give a file in a folder that you can write to")
