"""Comparisons -> text of 100 columns that answers in one screen, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from analyzer.diff_records import Change, DiffResult, FollowedWeight, History, LayerChange
from analyzer.errors import shown
from analyzer.records import plain
from analyzer.text import byte_size, cell, coordinate_cells, count_of, fill, short_commit, table

SHOWN_WEIGHTS = 6
SHOWN_OUTLIERS = 10
SHOWN_LAYERS = 32
SHOWN_REVISIONS = 6  # as columns; as lines all of them


def render_diff(result: DiffResult) -> str:
    """Return a comparison as text: the super weights, the outliers, then the layers."""
    old, new = shown(result.old, 60), shown(result.new, 60)
    sections = [f"From {old} to {new}", *map(fill, result.notes)]
    if result.identical:
        what = [*(["outliers"] if result.outliers_among else []), *(["super weights"] if result.super_weights else [])]
        if result.outliers_among == "changed":
            what[0] = "down projections"
        sections = [fill(f"No differences between the {' and '.join(what or ['super weights'])} of {old} and {new}.")]
    else:
        sections += _super_weights(result)
        if result.outliers_among:
            sections += _outliers(result)
        if result.layers:
            sections.append(_layers(result.layers))
    if result.bytes_read:
        shared = f"; {byte_size(result.bytes_shared)} of each, in files that both share, were not read"
        sections.append(f"Read {byte_size(result.bytes_read)}" + (shared if result.bytes_shared else "") + ".")
    return "\n\n".join(sections)


def render_history(history: History) -> str:
    """Return a model's revisions as text: how each ranking differs from the one before, and the weights followed."""
    rows = [
        [
            shown(revision.revision, 40),
            short_commit(revision.commit or "-"),
            "-" if revision.shared is None else f"{revision.shared} of {revision.ranked}",
            _correlation(revision.rank_correlation),
            byte_size(revision.bytes_read),
        ]
        for revision in history.revisions
    ]
    sections = [
        f"{shown(history.model, 60)}, {count_of(len(rows), 'revision')}",
        f"Top outliers by {history.score}, against those of the revision before\n\n"
        + table(["revision", "commit", "shared", "rank corr", "read"], rows),
        _followed(history),
    ]
    return "\n\n".join(sections)


def diff_csv(result: DiffResult) -> str:
    """Return a comparison as one table: a line per super weight, outlier and layer."""
    rows: list[dict[str, Any]] = []
    for what, changes in (("super weight", result.super_weights), ("outlier", result.outliers)):
        for change in changes:
            fields = {
                f"{side}_{key}": value
                for side, said in (("old", change.old), ("new", change.new))
                for key, value in (said or {}).items()
            }
            row = {**plain(change), "what": what, **plain(fields)}
            rows.append(row)
    for layer in result.layers:
        fields = plain(layer)
        largest = fields.pop("largest_change") or {}
        place = {key: largest.get(key) for key in ("expert", "row", "col")}
        values = {"old_value": largest.get("old"), "new_value": largest.get("new")}
        rows.append({**fields, **place, **values, "what": "layer", "kind": layer.state})
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


DIFF_COLUMNS = (
    "what", "kind", "tower", "layer", "expert", "row", "col", "known", "old_rank", "new_rank", "old_value", "new_value",
    "old_status", "new_status", "old_effect", "new_effect", "old_loss", "new_loss", "old_loss_zeroed",
    "new_loss_zeroed", "ranked", "shared", "rank_correlation", "relative_change", "note",
)  # fmt: skip
HISTORY_COLUMNS = ("revision", "commit", "tower", "layer", "expert", "row", "col", "known", "rank", "value")


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


def _super_weights(result: DiffResult) -> list[str]:
    changes = result.super_weights
    differing = [change for change in changes if change.kind != "unchanged"]
    if result.super_weights_from == "verified":
        if not changes:
            return ["Super weights: none on either side."]
        if not differing:
            return [f"Super weights: the same, all {len(changes)}."]
        return [f"Super weights: {_tally(differing)}", _changes_table(differing, ("value", "status", "effect"))]
    if result.super_weights_from is None:
        return [fill("Super weights: none known of either; `superweight analyze` finds them.")]
    unknown = sum(change.kind == "unknown" for change in changes)
    if not differing:
        finding = f"the same value in both, all {len(changes)} that are known"
    else:
        changed = len(differing) - unknown
        finding = f"{changed} of {len(changes)} known ones {'has' if changed == 1 else 'have'} another value" + (
            f", {unknown} cannot be told from a saved scan" if unknown else ""
        )
    sentence = fill(f"Super weights: {finding}. What they do in both was not run: `superweight analyze` tells.")
    return [sentence, _known_table(changes)]


def _known_table(changes: Sequence[Change]) -> str:
    kept = changes[:SHOWN_WEIGHTS]
    header, places = coordinate_cells([change.coordinate for change in kept])
    rows = [
        [*place, shown(change.known, 30), _value(change.old), _value(change.new), change.kind]
        for change, place in zip(kept, places, strict=True)
    ]
    return table([*header, "known", "old value", "new value", "change"], rows) + _more(len(changes) - len(kept))


def _outliers(result: DiffResult) -> list[str]:
    among = "" if result.outliers_among == "all" else " of what differs"
    score = f" by {shown(result.score, 20)}" if result.score else ""
    if not result.outliers:
        count = result.outliers_unchanged
        return [f"Outliers: the same, all {count} at the top{score}{among}." if count else "Outliers: none."]
    unchanged = f"; {result.outliers_unchanged} unchanged" if result.outliers_unchanged else ""
    sentence = f"Outliers, at the top{score}{among}: {_tally(result.outliers)[:-1]}{unchanged}."
    order = sorted(result.outliers, key=lambda c: (_best_rank(c), c.coordinate.sort_key))
    return [fill(sentence), _changes_table(order, ("rank", "value"), SHOWN_OUTLIERS)]


def _best_rank(change: Change) -> int:
    ranks: list[int] = [side["rank"] for side in (change.old, change.new) if side and side["rank"] is not None]
    return min(ranks)


def _layers(layers: Sequence[LayerChange]) -> str:
    """Return a line per layer, runs of layers without a change as one, and of very many those that changed most."""
    kept = list(layers)
    if len(_runs(kept)) > SHOWN_LAYERS:
        kept.sort(key=lambda layer: (layer.state in ("same", "same file"), -(layer.relative_change or 0.0)))
        chosen = {id(layer) for layer in kept[:SHOWN_LAYERS]}
        kept = [layer for layer in layers if id(layer) in chosen]
    towers = any(layer.tower for layer in layers)
    experts = any(layer.largest_change and layer.largest_change.expert is not None for layer in layers)
    rows = []
    for run in _runs(kept):
        first, last = run[0], run[-1]
        number = str(first.layer) if first is last else f"{first.layer}-{last.layer}"
        place: list[object] = [*([shown(first.tower or "-", 20)] if towers else []), number]
        rows.append([*place, *_layer_cells(first, experts)])
    header = [*(["tower"] if towers else []), "layer", "change", "shared", "rank corr", "largest change"]
    header += [*(["expert"] if experts else []), "row", "col", "note"]
    if all(row[-1] == "" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = (
        "Where the change is: ||new - old|| / ||old||, the top outliers that both share, the weight that changed most"
    )
    more = len(layers) - len(kept)
    return f"{fill(text)}\n\n{table(header, rows)}" + (
        f"\n\n… and {more} more layers, of smaller changes (--json and --csv list all)" if more else ""
    )


def _runs(layers: Sequence[LayerChange]) -> list[list[LayerChange]]:
    """Join neighbouring layers of which there is nothing to say but that they are the same."""
    runs: list[list[LayerChange]] = []
    for layer in layers:
        last = runs[-1][-1] if runs else None
        quiet = layer.state in ("same", "same file") and layer.ranked is None
        if last and quiet and (last.state, last.tower, last.layer, last.ranked) == (
            layer.state, layer.tower, layer.layer - 1, None,
        ):  # fmt: skip
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _layer_cells(layer: LayerChange, experts: bool) -> list[object]:
    largest = layer.largest_change
    change = layer.state
    if layer.relative_change is not None:
        change = f"{layer.relative_change:.2%}" if layer.relative_change >= 1e-4 else f"{layer.relative_change:.0e}"
    return [
        change,
        "-" if layer.ranked is None else f"{layer.shared} of {layer.ranked}",
        _correlation(layer.rank_correlation),
        f"{largest.old:+.4g} to {largest.new:+.4g}" if largest else "-",
        *([cell(largest and largest.expert)] if experts else []),
        "-" if largest is None else largest.row,
        "-" if largest is None else largest.col,
        shown(layer.note or "", 40),
    ]


def _followed(history: History) -> str:
    """Return the weights followed, in at most six of the revisions: the first, the last, and evenly between."""
    if not history.weights:
        return "No outliers: no down projection has a finite weight."
    count = len(history.revisions)
    columns = sorted({round(i * (count - 1) / (SHOWN_REVISIONS - 1)) for i in range(SHOWN_REVISIONS)})
    kept = history.weights[: 2 * SHOWN_OUTLIERS]
    header, places = coordinate_cells([weight.coordinate for weight in kept])
    known = any(weight.known for weight in kept)
    rows = [
        [*place, *([shown(weight.known or "-", 18)] if known else []), *(_followed_cell(weight, i) for i in columns)]
        for weight, place in zip(kept, places, strict=True)
    ]
    header += [*(["known"] if known else []), *(shown(history.revisions[i].revision, 12) for i in columns)]
    lines = "Weights that rank best at any of them: value, and rank where it has one\n\n" + table(header, rows)
    hidden = count - len(columns)
    note = f"\n\n{count_of(hidden, 'revision')} between are left out (--json and --csv list all)" if hidden else ""
    return lines + _more(len(history.weights) - len(kept)) + note


def _followed_cell(weight: FollowedWeight, number: int) -> str:
    value, rank = weight.values[number], weight.ranks[number]
    return "-" if value is None else f"{value:+.4g}" + (f" #{rank}" if rank else "   ")


def _changes_table(changes: Sequence[Change], fields: Sequence[str], most: int = SHOWN_WEIGHTS) -> str:
    kept = changes[:most]
    header, places = coordinate_cells([change.coordinate for change in kept])
    rows = [
        [*place, *(cell(side[field] if side else None) for field in fields for side in (c.old, c.new)), c.kind]
        for c, place in zip(kept, places, strict=True)
    ]
    header += [f"{side} {field}" for field in fields for side in ("old", "new")]
    return table([*header, "change"], rows) + _more(len(changes) - len(kept))


def _tally(changes: Sequence[Change]) -> str:
    kinds = dict.fromkeys(change.kind for change in changes)
    return ", ".join(f"{sum(change.kind == kind for change in changes)} {kind}" for kind in kinds) + "."


def _more(count: int) -> str:
    return f"\n\n… and {count} more (--json and --csv list all)" if count > 0 else ""


def _value(side: Any) -> str:
    return cell(side["value"] if side else None)


def _correlation(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:+.2f}"
