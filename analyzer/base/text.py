"""What the renderers share: names, numbers and tables as text of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import tabulate

from analyzer.base.errors import shown
from analyzer.base.records import Coordinate

WIDTH = 100
tabulate.MIN_PADDING = 0  # else every header takes two columns more than it needs
ROW = tabulate.DataRow("", " ", "")
CLOSE = tabulate.TableFormat(None, tabulate.Line("", "-", " ", ""), None, None, ROW, ROW, 0, None)
"""Like its "simple", with one space between columns."""
WORDS = {
    "tower",
    "vanish",
    "appear",
    "positions",
    "status",
    "effect",
    "token",
    "change",
    "known",
    "down projections",
    "arm",
    "what",
    "most changed",
    "task",
    "metric",
}


def model_title(model: str, revision: str | None, commit: str | None) -> str:
    """Return the line that names a model at its commit."""
    at = f" ({short_commit(commit)})" if commit else ""
    return shown(name_at(model, revision), WIDTH - len(at)) + at


def name_at(model: str, revision: str | None) -> str:
    """Return a model's name as the command line takes it: with its revision, and after that the file in it."""
    repository, colon, file = model.partition(":")
    return f"{repository}@{revision}{colon}{file}" if revision else model


def short_commit(commit: str) -> str:
    """Return the first characters of a commit, which are enough to find it."""
    return commit[:19] if commit.startswith("sha256:") else commit[:12]


def place_name(weight: Any) -> str:
    """Return where a weight is, in words; also for a record that has a coordinate's fields."""
    tower = f"{shown(weight.tower, 40)} " if getattr(weight, "tower", None) else ""
    expert = "" if weight.expert is None else f"expert {weight.expert}, "
    mlp = "" if getattr(weight, "mlp", None) is None else f"MLP {weight.mlp}, "
    return f"{tower}layer {weight.layer}, {mlp}{expert}row {weight.row}, col {weight.col}"


def coordinate_cells(coordinates: Sequence[Coordinate]) -> tuple[list[str], list[list[object]]]:
    """Return the columns that say where weights are, and their cells: no tower, MLP or expert where none has one."""
    towers = any(coordinate.tower is not None for coordinate in coordinates)
    experts = any(coordinate.expert is not None for coordinate in coordinates)
    mlps = any(coordinate.mlp is not None for coordinate in coordinates)
    header = [
        *(["tower"] if towers else []),
        "layer",
        *(["mlp"] if mlps else []),
        *(["expert"] if experts else []),
        "row",
        "col",
    ]
    cells: list[list[object]] = [
        [
            *([shown(c.tower or "-", 20)] if towers else []),
            c.layer,
            *([cell(c.mlp)] if mlps else []),
            *([cell(c.expert)] if experts else []),
            c.row,
            c.col,
        ]
        for c in coordinates
    ]
    return header, cells


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of these cells, words to the left and numbers to the right; close together where it is wide."""
    cells = [[str(value) for value in row] for row in rows]
    aligned = ["left" if name in WORDS else "right" for name in header]
    for form in ("simple", CLOSE):
        text = tabulate.tabulate(cells, header, form, disable_numparse=True, colalign=aligned)
        if max(map(len, text.splitlines())) <= WIDTH:
            break
    return text


def fill(sentence: str) -> str:
    """Return a sentence in lines of the width."""
    return textwrap.fill(sentence, WIDTH)


def count_of(number: int, noun: str) -> str:
    """Return how many there are of what, in words."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def big(value: float) -> str:
    """Return a signed number, whole where it is large but not huge."""
    return f"{value:+,.0f}" if 100 <= abs(value) < 1e9 else f"{value:+.3g}"


def percent(part: float | None) -> str:
    """Return a part as a percentage, a dash where it is not known."""
    return "-" if part is None else f"{part:.0%}"


def signed(difference: float) -> str:
    """Return a difference of losses with its sign."""
    return f"{round(difference, 3) + 0.0:+.3f}"  # + 0.0: never "-0.000"


def plus_minus(difference: float, high: float) -> str:
    """Return a difference with half the width of its interval, as far as that is known."""
    return signed(difference) + (f" ±{high - difference:.3f}" if math.isfinite(high) else "")


def cell(value: object) -> str:
    """Return a table's cell: a weight's value, a word, or a dash for null."""
    return "-" if value is None else f"{value:+.5g}" if isinstance(value, float) else shown(value, 40)


def byte_size(count: int) -> str:
    """Return a number of bytes in the unit that fits."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"
