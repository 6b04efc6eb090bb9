"""Pure: coordinates -> where in the network they sit, as places on a drawing of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyzer.catalog.documents import place_of

WIDTH = 720  # of the whole drawing, in its own units
LEFT, TOP, RIGHT, BOTTOM = 60, 14, 706, 216  # the field that the marks are in
REMARK = 110  # the width of what is said beside a field that ends early
PADDING = 0.1  # of a layer's band, on either side of its columns
UNKNOWN_BAND = 64  # the width of a layer where nobody has said how many there are
UNKNOWN_ROWS = 0.1  # the part that is left open above the last row where nobody has said how many there are
MAX_BANDS = 200  # of shaded layers: more would be finer than can be seen
MAX_SIZE = 2**31  # as of the catalog's indices; sizes in a file have no limit
STEPS = tuple(step * 10**power for power in range(10) for step in (1, 2, 5))
LEAST_LAYERS = 3  # with something in them, to be worth a drawing where nobody has said how many there are
NAMED_PLACES = 12  # in the description; the table has them all


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a network is: null where nobody has said it."""

    layers: int | None = None
    rows: int | None = None
    cols: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A weight at (x, y); or a whole row from x to `x_end`, which is null for a weight."""

    kind: str
    label: str
    x: float
    x_end: float | None
    y: float


@dataclass(frozen=True, slots=True)
class Extent:
    """The layers through which a super activation lasts, on its channel."""

    label: str
    x: float
    x_end: float
    y: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at its place on an axis."""

    label: int
    place: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """Layers from left to right, rows from bottom to top, and inside a layer's band its columns from left to right.

    Where nobody has said how many columns there are, weights are in the middle of their layer's band.
    """

    marks: tuple[Mark, ...]
    extents: tuple[Extent, ...]
    layer_ticks: tuple[Tick, ...]
    row_ticks: tuple[Tick, ...]
    bands: tuple[tuple[float, float], ...]  # x and width of every second layer
    width: int  # of the whole drawing
    right: float  # where the last layer ends
    layers_known: bool
    rows_known: bool
    caption: str
    description: str


def draw(
    weights: Sequence[tuple[str, Mapping[str, Any]]], activations: Sequence[Mapping[str, Any]], sizes: Sizes
) -> Drawing:
    """Return the drawing of weights, each with its kind, and of super activations; there must be one or the other."""
    records = [record for _, record in weights]
    layers = _extent(sizes.layers, [w["layer"] for w in records] + [a["last_layer"] for a in activations])
    rows = _extent(sizes.rows, [w["row"] for w in records] + [a["channel"] for a in activations])
    band = (RIGHT - LEFT) / layers if sizes.layers else min((RIGHT - LEFT) / layers, UNKNOWN_BAND)
    highest = rows if sizes.rows else rows * (1 + UNKNOWN_ROWS)

    def x_of(layer: int, part: float) -> float:
        return round(LEFT + band * (min(layer, layers - 1) + PADDING + (1 - 2 * PADDING) * part), 1)

    def part_of(col: int) -> float:
        return (col + 0.5) / min(sizes.cols, MAX_SIZE) if sizes.cols else 0.5

    def y_of(row: int) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (row + 0.5) / highest, 1)

    marks = tuple(
        Mark(
            kind,
            place_of(record),
            x_of(record["layer"], 0.0 if record["col"] is None else part_of(record["col"])),
            x_of(record["layer"], 1.0) if record["col"] is None else None,
            y_of(record["row"]),
        )
        for kind, record in weights
    )
    extents = tuple(
        Extent(
            f"super activation on channel {a['channel']}, layers {a['layer']} to {a['last_layer']}",
            x_of(a["layer"], 0.5),
            x_of(a["last_layer"], 1.0),
            y_of(a["channel"]),
        )
        for a in activations
    )
    shaded = range(1, layers, 2) if layers <= MAX_BANDS else ()
    right = round(LEFT + band * layers, 1)
    return Drawing(
        marks=marks,
        extents=extents,
        layer_ticks=tuple(Tick(layer, x_of(layer, 0.5)) for layer in _ticks(layers, 16)),
        row_ticks=tuple(Tick(row, y_of(row)) for row in _ticks(rows, 6)),
        bands=tuple((round(LEFT + band * layer, 1), round(band, 1)) for layer in shaded),
        width=min(WIDTH, round(right) + REMARK),
        right=right,
        layers_known=sizes.layers is not None,
        rows_known=sizes.rows is not None,
        caption=_caption(sizes, layers=layers, rows=rows),
        description=_description(weights, activations),
    )


def _extent(size: int | None, used: Sequence[int]) -> int:
    """Return how far an axis goes: a size that nobody has said is the least that holds what is drawn."""
    return min(size, MAX_SIZE) if size else 1 + max(used, default=0)


def _ticks(count: int, most: int) -> range:
    step = next(step for step in STEPS if count / step <= most)
    return range(0, count, step)


def _caption(sizes: Sizes, *, layers: int, rows: int) -> str:
    drawn = {"deep": (sizes.layers, "layer", layers), "wide": (sizes.rows, "row", rows)}
    known = [f"{count:,} {name}s" for size, name, count in drawn.values() if size]
    known += [f"{min(sizes.cols, MAX_SIZE):,} columns"] if sizes.cols else []
    unknown = {how: f"{name} {count - 1:,}" for how, (size, name, count) in drawn.items() if not size}
    columns = ", columns from left to right in each layer" if sizes.cols else ""
    sentences = [f"Layers from left to right, rows (residual channels) upwards{columns}."]
    if known:
        sentences.append(f"The network has {_listed(known)}.")
    if unknown:
        sentences.append(
            f"How {_listed([*unknown])} the network is, is not known here: the drawing ends at "
            f"{_listed([*unknown.values()])}, the last named."
        )
    return " ".join(sentences)


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else "".join(parts)


def _description(weights: Sequence[tuple[str, Mapping[str, Any]]], activations: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[str]] = {}
    for kind, record in weights:
        kinds.setdefault(kind.replace("_", " "), []).append(place_of(record))
    sentences = []
    for kind, places in kinds.items():
        more = f" and {len(places) - NAMED_PLACES} more" if len(places) > NAMED_PLACES else ""
        sentences.append(f"{kind.capitalize()}: {', '.join(places[:NAMED_PLACES])}{more}.")
    if activations:
        channels = sorted({a["channel"] for a in activations})
        more = f" and {len(channels) - NAMED_PLACES} more" if len(channels) > NAMED_PLACES else ""
        sentences.append(f"Super activations on channels {', '.join(map(str, channels[:NAMED_PLACES]))}{more}.")
    return " ".join(sentences)
