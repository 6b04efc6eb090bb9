"""Pictures: how they are drawn and written; all that imports matplotlib imports this."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from analyzer.base.atomic import check_writable, write_whole
from analyzer.base.errors import PlotError, shown
from analyzer.base.records import Coordinate

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
        check_writable(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, atomically. Raises PlotError like check_plot."""
    check_plot(path)
    try:
        write_whole(path, png_of(figure))
    except OSError as error:
        raise _unwritable(path, error) from error


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes for the same figure."""
    data = io.BytesIO()
    FigureCanvasAgg(figure)  # no pyplot, whose state is global
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})  # which would name a version
    return data.getvalue()


def magnitudes_of(values: Sequence[float]) -> NDArray[np.float64]:
    """Return |values|, with a gap for what is not finite."""
    magnitudes = np.abs(np.array(values, dtype=np.float64))
    return np.where(np.isfinite(magnitudes), magnitudes, np.nan)


def set_scale(axes: Axes, magnitudes: NDArray[np.float64]) -> None:
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


def place_of(coordinate: Coordinate) -> str:
    """Return where a weight is, in words."""
    expert = "" if coordinate.expert is None else f"expert {coordinate.expert}, "
    mlp = "" if coordinate.mlp is None else f"MLP {coordinate.mlp}, "
    return f"layer {coordinate.layer}, {mlp}{expert}row {coordinate.row}, col {coordinate.col}"


def number_of(value: float) -> str:
    """Return a signed number, whole where it is large but not huge."""
    return f"{value:+,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:+.4g}"


def label_of(text: str, limit: int) -> str:
    """Return `text` like `shown`, with what the font lacks escaped too: it would be drawn as boxes, and warned of."""
    font = get_font(findfont(FontProperties()))
    drawable = (c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown("".join(drawable), limit)


def _unwritable(path: Path, error: OSError) -> PlotError:
    return PlotError(f"cannot write {shown(path)}: {error.strerror}; give a file in a folder that you can write to")
