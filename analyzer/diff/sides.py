"""What is compared: a saved result, a scan, or what the catalog knows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyzer.base.errors import ResultError, reason_of, shown
from analyzer.base.records import Coordinate, Fields, Outliers, Place, Unread
from analyzer.base.text import name_at
from analyzer.catalog.lookup import KnownCoordinate
from analyzer.scan.records import ScanResult

# What of each record is compared and shown, beside its coordinate.
OUTLIER_FIELDS = ("rank", "value")
SUPER_WEIGHT_FIELDS = ("value", "status", "effect", "loss", "loss_zeroed")
COORDINATE_FIELDS = ("layer", "expert", "row", "col")
STATUSES = ("confirmed", "coincident", "late", "rejected")
EFFECTS = ("critical", "inert", None)
MAX_INDEX = 1 << 31
MAX_RECORDS = 100_000  # outliers or super weights: the most that a scan keeps
MAX_PARTS = 10_000_000  # commas and brackets of a result; of 200,000 tensors and as many outliers it has 4 million
WHAT_TO_GIVE = "give what scan, verify or analyze printed with --json"

Lookup = Callable[[Sequence[Coordinate]], Mapping[Coordinate, float]]
"""Reads weights that were not ranked, as far as the model has them."""


@dataclass(frozen=True)
class Side:
    """One of the two things compared; `outliers` and `super_weights` are null where there was no scan or verification.

    `scanned` is where its down projections are, null where that is not known. `known` is what the catalog has of the
    model, by standing. `look_up` is there where the model itself is: a saved result knows only what was ranked.
    """

    name: str
    model: str | None
    commit: str | None
    model_type: str | None
    sizes: tuple[int | None, int | None, int | None]
    score: str | None
    prompt: str | None
    outliers: Outliers | None
    super_weights: Outliers | None
    scanned: frozenset[Place] | None = None
    known: Mapping[Coordinate, str] = field(default_factory=dict)
    look_up: Lookup | None = None
    unread: tuple[Unread, ...] = ()


def side_of_scan(result: ScanResult, look_up: Lookup | None = None) -> Side:
    """Return a scan as one side of a comparison."""
    return Side(
        name=name_at(result.model, result.revision),
        model=result.model,
        commit=result.commit,
        model_type=result.model_type,
        sizes=(result.num_layers, result.hidden_size, result.intermediate_size),
        score=result.score,
        prompt=None,
        outliers={o.coordinate: {"rank": o.rank, "value": o.value} for o in result.outliers},
        super_weights=None,
        scanned=frozenset(t.place for t in result.tensors),
        look_up=look_up,
        unread=result.unread,
    )


def parse_side(text: str, name: str) -> Side:
    """Return the result that `scan --json`, `verify --json` or `analyze --json` printed as one side.

    Raises ResultError where the text is none of them.
    """
    if sum(map(text.count, ",[{")) > MAX_PARTS:  # each takes some 100 bytes when it is read
        raise ResultError(f"{shown(name)} has more than {MAX_PARTS:,} parts, too many to be a saved result")
    try:
        loaded = json.loads(text)
        if "old_commit" in loaded:
            raise ResultError(f"{shown(name)} is itself a comparison: {WHAT_TO_GIVE}")
        if loaded.get("asked"):
            raise ResultError(f"{shown(name)} answers for single weights (--weight): {WHAT_TO_GIVE} without it")
        sizes = tuple(loaded.get(key) for key in ("num_layers", "hidden_size", "intermediate_size"))
        outliers = _by_coordinate(loaded.get("outliers"), OUTLIER_FIELDS)
        super_weights = _by_coordinate(loaded.get("super_weights"), SUPER_WEIGHT_FIELDS)
        scanned = _places(loaded.get("tensors"))
        unread = tuple(_unread(each) for each in loaded.get("unread") or ())
        texts = [loaded.get(key) for key in ("model", "commit", "model_type", "score", "prompt")]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ResultError(
            f"{shown(name)} is not a result saved with --json ({shown(reason_of(error), 120)})"
        ) from error
    if outliers is None and super_weights is None:
        raise ResultError(f"{shown(name)} holds neither outliers nor super weights: {WHAT_TO_GIVE}")
    model, commit, model_type, score, prompt = (text if isinstance(text, str) else None for text in texts)
    return Side(
        shown(name), model, commit, model_type, sizes, score, prompt, outliers, super_weights, scanned, unread=unread
    )


def known_weights(coordinates: Sequence[KnownCoordinate], scanned: Collection[Place]) -> dict[Coordinate, str]:
    """Return the standing of each weight that the catalog knows; rows without a column are no weights.

    The catalog names no towers: of a model that was `scanned` in several, its language is meant.
    """
    towers = {tower for tower, *_ in scanned} or {""}
    tower = "" if "" in towers else "language" if "language" in towers else min(towers) if len(towers) == 1 else ""
    known: dict[Coordinate, str] = {}
    for each in coordinates:
        if each.col is not None:
            standing = f"{each.standing}, {each.effect}" if each.effect else each.standing
            known.setdefault(
                Coordinate(each.layer, each.expert, each.row, each.col, each.tower or tower or None, each.mlp), standing
            )
    return known


def _places(tensors: Any) -> frozenset[Place] | None:
    """Return where a saved scan's down projections are."""
    if tensors is None:
        return None
    return frozenset(_coordinate({**tensor, "row": 0, "col": 0}).place for tensor in tensors)


def _unread(record: Mapping[str, Any]) -> Unread:
    names, count, shape, why = (record[key] for key in ("names", "count", "shape", "why"))
    if not isinstance(names, str) or not isinstance(why, str) or type(count) is not int:
        raise ValueError(f"not what was left unread: {names}, {count}")
    return Unread(names, count, None if shape is None else tuple(int(size) for size in shape), why)


def _coordinate(record: Mapping[str, Any]) -> Coordinate:
    """Return where a saved record is. Raises ValueError where it is nowhere."""
    layer, expert, row, col = (record[key] for key in COORDINATE_FIELDS)
    mlp, tower = record.get("mlp"), record.get("tower")
    numbers = (layer, row, col, 0 if expert is None else expert, 0 if mlp is None else mlp)
    if any(type(n) is not int or not 0 <= n < MAX_INDEX for n in numbers):
        raise ValueError(f"not a weight's place: {layer}, {expert}, {row}, {col}")
    if tower is not None and not isinstance(tower, str):
        raise ValueError(f"not a tower: {tower}")
    return Coordinate(layer, expert, row, col, tower, mlp)


def _by_coordinate(records: Any, keys: Sequence[str]) -> dict[Coordinate, Fields] | None:
    if records is None:
        return None
    if len(records) > MAX_RECORDS:
        raise ValueError(f"{len(records):,} records in a list, a scan keeps at most {MAX_RECORDS:,}")
    found: dict[Coordinate, Fields] = {}
    for record in records:
        coordinate, value = _coordinate(record), record["value"]
        if not _is_number(value):
            raise ValueError(f"not a weight: {coordinate} = {value}")
        if type(record.get("rank", 1)) is not int:
            raise ValueError(f"not a rank: {record['rank']}")
        if record.get("status", STATUSES[0]) not in STATUSES or record.get("effect") not in EFFECTS:
            raise ValueError(f"neither a status nor an effect: {record['status']}, {record['effect']}")
        if not all(record.get(key) is None or _is_number(record[key]) for key in ("loss", "loss_zeroed")):
            raise ValueError(f"not a loss: {record['loss']}, {record['loss_zeroed']}")
        if coordinate in found:
            raise ValueError(f"twice: {coordinate}")
        found[coordinate] = {
            **{key: record[key] for key in keys},
            "value": float(value),
        }
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
