"""Comparisons -> CSV, a line for each weight or layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from analyzer.base.errors import shown
from analyzer.base.records import plain
from analyzer.diff.records import DiffResult, History
from analyzer.diff.tensors.records import TensorDiff
from analyzer.diff.tuned.records import Judged, TunedDiff

DIFF_COLUMNS = (
    "what", "kind", "tower", "layer", "mlp", "expert", "row", "col", "known", "old_rank", "new_rank", "old_value",
    "new_value", "old_status", "new_status", "old_effect", "new_effect", "old_loss", "new_loss", "old_loss_zeroed",
    "new_loss_zeroed", "ranked", "shared", "rank_correlation", "relative_change", "old_nonfinite", "new_nonfinite",
    "note",
)  # fmt: skip
TENSOR_COLUMNS = (
    "name", "state", "expected", "old_shape", "new_shape", "old_dtype", "new_dtype", "relative_change", "cosine",
    "unchanged", "nonfinite", "note",
)  # fmt: skip
TUNED_COLUMNS = (
    "tower", "layer", "mlp", "expert", "row", "col", "known",
    *(f"{side}_{field.name}" for side in ("old", "new") for field in fields(Judged)),
)  # fmt: skip
HISTORY_COLUMNS = ("revision", "commit", "tower", "layer", "mlp", "expert", "row", "col", "known", "rank", "value")


def diff_csv(result: DiffResult) -> str:
    """Return a comparison as one table: a line per super weight, outlier and layer."""
    rows: list[dict[str, Any]] = []
    for what, changes in (("super weight", result.super_weights), ("outlier", result.outliers)):
        for change in changes:
            sides = {
                f"{side}_{key}": value
                for side, said in (("old", change.old), ("new", change.new))
                for key, value in (said or {}).items()
            }
            row = {**plain(change), "what": what, **plain(sides)}
            rows.append(row)
    for layer in result.layers:
        row = plain(layer)
        largest = row.pop("largest_change") or {}
        place = {key: largest.get(key) for key in ("mlp", "expert", "row", "col")}
        values = {"old_value": largest.get("old"), "new_value": largest.get("new")}
        rows.append({**row, **place, **values, "what": "layer", "kind": layer.state})
    return _csv(DIFF_COLUMNS, rows)


def history_csv(history: History) -> str:
    """Return the weights followed as one table: a line per weight and revision."""
    return _csv(
        HISTORY_COLUMNS,
        (
            {**plain(weight), "revision": revision.revision, "commit": revision.commit, "value": value, "rank": rank}
            for weight in history.weights
            for revision, value, rank in zip(history.revisions, weight.values, weight.ranks, strict=True)
        ),
    )


def tensors_csv(result: TensorDiff) -> str:
    """Return a comparison of all tensors as one table, a line for each; `expected` where one differs."""
    unexpected = set(result.unexpected)
    rows = []
    for tensor in result.tensors:
        shapes = {
            f"{side}_shape": None if shape is None else "x".join(map(str, shape))
            for side, shape in (("old", tensor.old_shape), ("new", tensor.new_shape))
        }
        expected = tensor.name not in unexpected if tensor.differs else None
        rows.append({**plain(tensor), **shapes, "expected": expected})
    return _csv(TENSOR_COLUMNS, rows)


def tuned_csv(result: TunedDiff) -> str:
    """Return known weights in two models as one table, a line for each."""
    rows = []
    for weight in result.weights:
        row = plain(weight)
        sides = {f"{side}_{key}": value for side in ("old", "new") for key, value in row.pop(side).items()}
        rows.append({**row, **sides})
    return _csv(TUNED_COLUMNS, rows)


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _safe(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _safe(value: object) -> object:
    """Return a text from a file as one that no terminal obeys and no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    line = shown(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
