"""Pure: two results -> what changed between their super weights, their outliers, and their layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from analyzer.base.errors import ResultError, shown
from analyzer.base.records import Coordinate, Fields, Outliers
from analyzer.catalog.documents import is_super
from analyzer.diff.layers import layers_of_outliers
from analyzer.diff.records import Change, DiffResult, LayerChange, UnreadOf
from analyzer.diff.sides import (
    Side,
)

KINDS = ("appeared", "vanished", "changed", "moved", "unchanged")


def compare(
    old: Side,
    new: Side,
    *,
    layers: Sequence[LayerChange] | None = None,
    notes: Sequence[str] = (),
    bytes_shared: int = 0,
) -> DiffResult:
    """Return what changed from one side to the other.

    `layers` are those of `layers_of_pairs` where both sides are models, whose outliers then rank among what differs;
    else they are told from the outliers. An outlier appears or vanishes when it enters or leaves the ranked ones; what
    its weight is on the side where it has no rank is looked up where that side is a model. Raises ResultError where
    the sides have nothing in common to compare, or one has weights that the other cannot have. How many bytes were
    read is left to who read them.
    """
    _check_comparable(old, new, with_layers=layers is not None)
    among = "all" if layers is None else "changed"
    both_verified = old.super_weights is not None and new.super_weights is not None
    super_weights = _verified_changes(old, new) if both_verified else _known_changes(old, new)
    outliers: list[Change] = []
    unchanged = 0
    notes = [*_notes(old, new, both_verified), *notes]
    if old.outliers is not None and new.outliers is not None:
        before, after = old.outliers, new.outliers
        if layers is None:
            before, after, why = _in_common(old, before, new, after)
            notes += why
        changes = _changes(before, after, _outlier_kind)
        if layers is None:
            layers = layers_of_outliers(before, after, changes)
        unchanged = sum(change.kind == "unchanged" for change in changes)
        outliers = _looked_up([change for change in changes if change.kind != "unchanged"], old, new)
    scanned = old.outliers is not None and new.outliers is not None
    return DiffResult(
        old=old.name,
        new=new.name,
        old_model=old.model,
        new_model=new.model,
        old_commit=old.commit,
        new_commit=new.commit,
        score=(new.score or old.score) if scanned else None,
        super_weights_from="verified" if both_verified else "known" if super_weights else None,
        super_weights=tuple(super_weights),
        outliers_among=among if scanned else None,
        outliers=tuple(outliers),
        outliers_unchanged=unchanged,
        layers=tuple(layers or ()),
        notes=tuple(notes),
        bytes_read=0,
        bytes_shared=bytes_shared,
        unread=tuple(
            UnreadOf(name, each.names, each.count, each.shape, each.why)
            for name, side in (("old", old), ("new", new))
            for each in side.unread
        ),
    )


def _check_comparable(old: Side, new: Side, *, with_layers: bool) -> None:
    both_scanned = old.outliers is not None and new.outliers is not None
    both_verified = old.super_weights is not None and new.super_weights is not None
    looked_up = (old.super_weights is not None and new.look_up) or (new.super_weights is not None and old.look_up)
    if not both_scanned and not both_verified and not looked_up:
        raise ResultError(
            f"{old.name} and {new.name} have nothing in common to compare: one has outliers, the other super weights"
        )
    if both_scanned and old.score and new.score and old.score != new.score:
        raise ResultError(
            f"{old.name} is ranked by {shown(old.score, 20)}, {new.name} by {shown(new.score, 20)}: "
            "scan both with the same --score"
        )
    if not with_layers and any(
        a is not None and b is not None and a != b for a, b in zip(old.sizes[1:], new.sizes[1:], strict=True)
    ):
        layers, rows, cols = zip(old.sizes, new.sizes, strict=True)
        raise ResultError(
            f"{old.name} and {new.name} cannot be compared: "
            f"layers {layers[0]} and {layers[1]}, rows {rows[0]} and {rows[1]}, columns {cols[0]} and {cols[1]}"
        )


def _notes(old: Side, new: Side, both_verified: bool) -> list[str]:
    """Return what a reader should know before believing the comparison."""
    notes = []
    if old.model_type and new.model_type and old.model_type != new.model_type:
        types = f"{shown(old.model_type, 40)} and {shown(new.model_type, 40)}"
        notes.append(f"These are of different architectures ({types}): weights of one place need not correspond.")
    if both_verified and old.prompt != new.prompt:
        notes.append("They were verified with different prompts, which find different super activations.")
    return notes


def _in_common(old: Side, before: Outliers, new: Side, after: Outliers) -> tuple[Outliers, Outliers, list[str]]:
    """Return both rankings as far as both sides have them, with their ranks among that, and what was left out."""
    notes = []
    rankings = [sorted(side.items(), key=lambda item: item[1]["rank"]) for side in (before, after)]
    if old.scanned and new.scanned and old.scanned != new.scanned:
        both = old.scanned & new.scanned
        notes.append(f"They are scans of other layers: what is compared, and ranked, are {len(both)} down projections.")
        rankings = [[item for item in ranking if item[0].place in both] for ranking in rankings]
    length = min(map(len, rankings))
    if any(len(ranking) > length for ranking in rankings):
        notes.append(f"Only the top {length} are compared: one of them ranks no more.")
    cut = [
        {coordinate: {**fields, "rank": rank} for rank, (coordinate, fields) in enumerate(ranking[:length], start=1)}
        for ranking in rankings
    ]
    return cut[0], cut[1], notes


def _verified_changes(old: Side, new: Side) -> list[Change]:
    """Compare the super weights of two verifications, but for those that are rejected and not critical."""

    def found(side: Side) -> dict[Coordinate, Fields]:
        return {
            c: fields
            for c, fields in (side.super_weights or {}).items()
            if fields["status"] != "rejected" or is_super(fields)
        }

    return _changes(found(old), found(new), _super_weight_kind)


def _known_changes(old: Side, new: Side) -> list[Change]:
    """Compare the values of what one side alone, or the catalog, knows for super weights."""
    known: dict[Coordinate, str] = {}
    for side in (old, new):
        for coordinate, fields in (side.super_weights or {}).items():
            if is_super(fields):
                effect = fields["effect"]
                known[coordinate] = f"verified, {effect}" if effect else "verified"
        known = {**side.known, **known}
    values = [_values_of(side, sorted(known, key=lambda c: c.sort_key)) for side in (old, new)]
    changes = []
    for coordinate in known:
        before, after = values[0].get(coordinate), values[1].get(coordinate)
        sides_without = [side for side, value in ((old, before), (new, after)) if value is None]
        if len(sides_without) == 2 or any(not side.look_up for side in sides_without):
            kind = "unknown"  # neither has it, or it is a saved result's, which has only what was ranked
        else:
            kind = _known_kind(before, after)
        sides = [None if value is None else {"value": value} for value in (before, after)]
        changes.append(
            Change(kind, coordinate.tower, *coordinate[:4], sides[0], sides[1], known[coordinate], coordinate.mlp)
        )
    return sorted(changes, key=lambda c: (c.known or "", c.coordinate.sort_key))


def _known_kind(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "appeared" if before is None else "vanished"
    return "unchanged" if before == after or (math.isnan(before) and math.isnan(after)) else "changed"


def _values_of(side: Side, coordinates: Sequence[Coordinate]) -> dict[Coordinate, float]:
    if side.look_up:
        return dict(side.look_up(coordinates))
    listed = {**(side.outliers or {}), **(side.super_weights or {})}
    return {coordinate: listed[coordinate]["value"] for coordinate in coordinates if coordinate in listed}


def _changes(old: Outliers, new: Outliers, kind: Callable[[Fields, Fields], str]) -> list[Change]:
    """Return each weight of either side, with its kind of change, in the order of kinds and coordinates."""
    changes = []
    for coordinate in {**new, **old}:
        before, after = old.get(coordinate), new.get(coordinate)
        if before is None or after is None:
            what = "appeared" if before is None else "vanished"
        else:
            what = kind(before, after)
        changes.append(Change(what, coordinate.tower, *coordinate[:4], before, after, mlp=coordinate.mlp))
    return sorted(changes, key=lambda c: (KINDS.index(c.kind), *c.coordinate.sort_key))


def _looked_up(changes: Sequence[Change], old: Side, new: Side) -> list[Change]:
    """Fill in, where it can be read, the value that a weight has on the side where it has no rank."""

    def unranked(kind: str, side: Side) -> dict[Coordinate, Fields]:
        wanted = [c.coordinate for c in changes if c.kind == kind]
        if not side.look_up or not wanted:
            return {}
        values = side.look_up(wanted)
        for coordinate in wanted:
            if coordinate not in values:
                raise ResultError(f"{side.name} has no weight {coordinate}: the two are of different sizes")
        return {coordinate: {"rank": None, "value": value} for coordinate, value in values.items()}

    before, after = unranked("appeared", old), unranked("vanished", new)
    return [replace(c, old=c.old or before.get(c.coordinate), new=c.new or after.get(c.coordinate)) for c in changes]


def _outlier_kind(before: Fields, after: Fields) -> str:
    if before["value"] != after["value"]:
        return "changed"
    return "moved" if before["rank"] != after["rank"] else "unchanged"


def _super_weight_kind(before: Fields, after: Fields) -> str:
    """Losses are measurements: what counts is the weight, its status and its effect."""
    return "changed" if any(before[key] != after[key] for key in ("value", "status", "effect")) else "unchanged"
