"""Pure: two results -> what changed between their outliers and their super weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analyzer.errors import ResultError, shown
from analyzer.records import Change, Coordinate, DiffResult, LayerChanges, ScanResult

KINDS = ("appeared", "vanished", "changed", "moved")

Fields = Mapping[str, Any]

# What of each record is compared and shown, beside its coordinate.
OUTLIER_FIELDS = ("rank", "value")
SUPER_WEIGHT_FIELDS = ("value", "status", "effect", "loss", "loss_zeroed")
COORDINATE_FIELDS = ("layer", "expert", "row", "col")


Lookup = Callable[[Sequence[Coordinate]], Mapping[Coordinate, float]]
"""Reads weights that were not ranked."""


@dataclass(frozen=True)
class Side:
    """One of the two things compared; null where it has not been scanned, or not been verified.

    `look_up` is there where the model itself is: a saved result knows only what was ranked.
    """

    name: str
    sizes: tuple[int | None, int | None, int | None]
    outliers: Mapping[Coordinate, Fields] | None
    super_weights: Mapping[Coordinate, Fields] | None
    look_up: Lookup | None = None


def side_of_scan(result: ScanResult, look_up: Lookup | None = None) -> Side:
    """Return a scan as one side of a comparison."""
    name = f"{result.model}@{result.revision}" if result.revision else result.model
    outliers: dict[Coordinate, Fields] = {
        outlier.coordinate: {"rank": outlier.rank, "value": outlier.value} for outlier in result.outliers
    }
    return Side(name, (result.num_layers, result.hidden_size, result.intermediate_size), outliers, None, look_up)


def parse_side(text: str, name: str) -> Side:
    """Return the result that `scan --json`, `verify --json` or `analyze --json` printed as one side.

    Raises ResultError where the text is none of them.
    """
    try:
        loaded = json.loads(text)
        sizes = tuple(loaded.get(key) for key in ("num_layers", "hidden_size", "intermediate_size"))
        outliers = _by_coordinate(loaded.get("outliers"), OUTLIER_FIELDS)
        super_weights = _by_coordinate(loaded.get("super_weights"), SUPER_WEIGHT_FIELDS)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ResultError(f"{shown(name)} is not a result saved with --json ({shown(error, 80)})") from error
    if outliers is None and super_weights is None:
        raise ResultError(
            f"{shown(name)} holds neither outliers nor super weights: save it with scan or analyze --json"
        )
    return Side(shown(name), sizes, outliers, super_weights)


def compare(old: Side, new: Side) -> DiffResult:
    """Return what changed from one side to the other, in order of rank or coordinate.

    An outlier appears or vanishes when it enters or leaves the ranked ones; what its weight is on the side where it
    has no rank is looked up where that side is a model. Raises ResultError where the sides have nothing in common
    to compare, ArchitectureError where one has weights that the other cannot have.
    """
    if any(a is not None and b is not None and a != b for a, b in zip(old.sizes, new.sizes, strict=True)):
        layers, rows, cols = zip(old.sizes, new.sizes, strict=True)
        raise ResultError(
            f"{old.name} and {new.name} cannot be compared: "
            f"layers {layers[0]} and {layers[1]}, rows {rows[0]} and {rows[1]}, columns {cols[0]} and {cols[1]}"
        )
    both_scanned = old.outliers is not None and new.outliers is not None
    both_verified = old.super_weights is not None and new.super_weights is not None
    if not both_scanned and not both_verified:
        raise ResultError(
            f"{old.name} and {new.name} have nothing in common to compare: one has outliers, the other super weights"
        )
    outliers: list[Change] = []
    layer_changes: tuple[LayerChanges, ...] = ()
    if old.outliers is not None and new.outliers is not None:
        changes = _changes(old.outliers, new.outliers, _outlier_kind)
        layer_changes = _per_layer(changes, old.outliers, new.outliers)
        outliers = _looked_up(changes, old.look_up, new.look_up)
    super_weights = None
    if old.super_weights is not None and new.super_weights is not None:
        super_weights = tuple(_changes(_found(old.super_weights), _found(new.super_weights), _super_weight_kind))
    return DiffResult(old.name, new.name, tuple(outliers), super_weights, layer_changes)


def _by_coordinate(records: Any, keys: Sequence[str]) -> dict[Coordinate, Fields] | None:
    if records is None:
        return None
    found: dict[Coordinate, Fields] = {}
    for record in records:
        layer, expert, row, col = (record[key] for key in COORDINATE_FIELDS)
        numbers = (layer, row, col, 0 if expert is None else expert)
        if any(type(n) is not int or n < 0 for n in numbers) or not isinstance(record["value"], int | float):
            raise ValueError(f"not a weight: {layer}, {expert}, {row}, {col} = {record['value']}")
        tower = record.get("tower")
        if tower is not None and not isinstance(tower, str):
            raise ValueError(f"not a tower: {tower}")
        found[Coordinate(layer, expert, row, col, tower)] = {key: record[key] for key in keys}
    return found


def _found(super_weights: Mapping[Coordinate, Fields]) -> dict[Coordinate, Fields]:
    """Leave out those that were looked at and rejected."""
    return {c: fields for c, fields in super_weights.items() if fields["status"] != "rejected"}


def _changes(
    old: Mapping[Coordinate, Fields],
    new: Mapping[Coordinate, Fields],
    kind: Callable[[Fields, Fields], str | None],
) -> list[Change]:
    changes = []
    for coordinate in {**new, **old}:
        before, after = old.get(coordinate), new.get(coordinate)
        if before is None:
            what: str | None = "appeared"
        elif after is None:
            what = "vanished"
        else:
            what = kind(before, after)
        if what is not None:
            changes.append(Change(what, coordinate.tower, *coordinate[:4], before, after))
    changes.sort(key=lambda c: (KINDS.index(c.kind), *c.coordinate.sort_key))
    return changes


def _looked_up(changes: Sequence[Change], old: Lookup | None, new: Lookup | None) -> list[Change]:
    """Fill in, where it can be read, the value that a weight has on the side where it has no rank."""

    def unranked(kind: str, look_up: Lookup | None) -> dict[Coordinate, Fields]:
        wanted = [c.coordinate for c in changes if c.kind == kind]
        values = look_up(wanted) if look_up and wanted else {}
        return {coordinate: {"rank": None, "value": value} for coordinate, value in values.items()}

    before, after = unranked("appeared", old), unranked("vanished", new)
    return [replace(c, old=c.old or before.get(c.coordinate), new=c.new or after.get(c.coordinate)) for c in changes]


def _outlier_kind(before: Fields, after: Fields) -> str | None:
    if before["value"] != after["value"]:
        return "changed"
    return "moved" if before["rank"] != after["rank"] else None


def _super_weight_kind(before: Fields, after: Fields) -> str | None:
    """Losses are measurements: what counts is the weight, its status and its effect."""
    return "changed" if any(before[key] != after[key] for key in ("value", "status", "effect")) else None


def _per_layer(
    changes: Sequence[Change], old: Mapping[Coordinate, Fields], new: Mapping[Coordinate, Fields]
) -> tuple[LayerChanges, ...]:
    counts = Counter((change.layer, change.kind) for change in changes)
    everything = Counter(coordinate.layer for coordinate in {**old, **new})
    result = []
    for layer, total in sorted(everything.items()):
        appeared, vanished, changed, moved = (counts[layer, kind] for kind in KINDS)
        result.append(
            LayerChanges(layer, appeared, vanished, changed, moved, total - appeared - vanished - changed - moved)
        )
    return tuple(result)
