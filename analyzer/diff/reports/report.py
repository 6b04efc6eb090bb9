"""Comparisons -> text of 100 columns that answers in one screen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analyzer.base.errors import shown
from analyzer.base.text import WIDTH, byte_size, cell, coordinate_cells, count_of, fill, short_commit, table
from analyzer.catalog.documents import is_super
from analyzer.diff.records import Change, DiffResult, FollowedWeight, History, LayerChange

SHOWN_WEIGHTS = 6
SHOWN_NAME = 60  # characters
SHOWN_NOTES = 6
SHOWN_OUTLIERS = 10
SHOWN_LAYERS = 32
SHOWN_REVISIONS = 6  # as columns at most; as lines all of them


def render_diff(result: DiffResult) -> str:
    """Return a comparison as text: the super weights, the outliers, then the layers."""
    old = _name(result.old, result.old_model, result.old_commit)
    new = _name(result.new, result.new_model, result.new_commit)
    sections = [fill(f"From {old} to {new}"), *map(fill, result.notes)]
    if result.identical:
        sections += [_identical(result)]
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


def _name(name: str, model: str | None, commit: str | None) -> str:
    """Return a side's name with its model, where that is not its name, and its commit."""
    known = [shown(model, 60)] if model and not name.startswith(model) else []
    known += [short_commit(shown(commit, 80))] if commit else []
    whole = shown(name)
    end = whole if len(whole) <= SHOWN_NAME else f"…{whole[1 - SHOWN_NAME :]}"  # of a path, the file
    return f"{end} ({' at '.join(known)})" if known else end


def _identical(result: DiffResult) -> str:
    kinds = [change.kind for change in result.super_weights]
    ranked = {"all": "outliers", "changed": "down projections"}
    what = [*([ranked[result.outliers_among]] if result.outliers_among else [])]
    what += ["super weights"] if "unchanged" in kinds or not what else []
    sentence = f"No differences between the {' and '.join(what)} of the two."
    if result.outliers_among == "all":
        count = result.outliers_unchanged
        sentence += f" What was saved are the {count} top outliers: of other weights nothing is known."
    if unknown := kinds.count("unknown"):
        sentence += f" Of {count_of(unknown, 'known super weight')} nothing is known there either."
    return fill(sentence)


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


def _super_weights(result: DiffResult) -> list[str]:
    changes = result.super_weights
    if result.super_weights_from == "verified":
        return _verified(changes)
    if result.super_weights_from is None:
        return ["Super weights: none known of either; `superweight analyze` finds them."]
    kinds = Counter(change.kind for change in changes)
    told = len(changes) - kinds["unknown"]
    changed = told - kinds["unchanged"]
    if not told:
        finding = f"of the {len(changes)} known ones nothing can be told here"
    elif not changed:
        finding = f"the same value in both, all {told} known ones"
    else:
        finding = f"{changed} of {told} known ones {'has' if changed == 1 else 'have'} another value"
    if told and kinds["unknown"]:
        finding += f"; of {kinds['unknown']} more nothing can be told here"
    sentence = fill(f"Super weights: {finding}. What they do in both was not run: `superweight analyze` tells.")
    order = sorted(changes, key=lambda c: (c.kind == "unchanged", c.kind == "unknown"))
    kept = order[:SHOWN_WEIGHTS]
    header, places = coordinate_cells([change.coordinate for change in kept])
    rows = [
        [*place, shown(change.known, 30), _value(change.old), _value(change.new), change.kind]
        for change, place in zip(kept, places, strict=True)
    ]
    return [
        sentence,
        table([*header, "known", "old value", "new value", "change"], rows) + _more(len(order) - len(kept)),
    ]


def _verified(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return ["Super weights: none on either side."]
    differing = [change for change in changes if change.kind != "unchanged"]
    if not differing:
        return [f"Super weights: the same, all {len(changes)}."]
    critical = [
        sum(side is not None and side["effect"] == "critical" for side in sides)
        for sides in ([change.old for change in changes], [change.new for change in changes])
    ]
    sentence = (
        f"Super weights: {_tally(differing)} Critical are {critical[0]} of the old ones and {critical[1]} of the new."
    )
    differing.sort(key=lambda c: -max(abs(_increase(side) or 0.0) for side in (c.old, c.new)))
    kept = differing[:SHOWN_OUTLIERS]
    header, places = coordinate_cells([change.coordinate for change in kept])
    rows = [
        [
            *place,
            _two(_said(c.old), _said(c.new)),
            _two(_found(c.old), _found(c.new)),
            _two(_signed(_increase(c.old)), _signed(_increase(c.new))),
        ]
        for c, place in zip(kept, places, strict=True)
    ]
    header += ["value", "effect", "Δ loss"]
    return [fill(sentence), table(header, rows) + _more(len(differing) - len(kept))]


def _increase(side: Mapping[str, Any] | None) -> float | None:
    """Return by how much zeroing a weight raises the loss, where that was measured."""
    if side is None or side["loss"] is None or side["loss_zeroed"] is None:
        return None
    return float(side["loss_zeroed"] - side["loss"])


def _said(side: Mapping[str, Any] | None) -> str | None:
    return cell(side["value"]) if side else None


def _found(side: Mapping[str, Any] | None) -> str | None:
    """Return a weight's effect, or its status where it is no super weight or its effect was not measured."""
    if side is None:
        return None
    return str((is_super(side) and side["effect"]) or side["status"])


def _signed(number: float | None) -> str | None:
    return None if number is None else f"{number:+.3f}"


def _two(old: str | None, new: str | None) -> str:
    """Return what there is in the old and in the new version, once where it is the same."""
    return (old or "-") if old == new else f"{old or '-'} to {new or '-'}"


def _outliers(result: DiffResult) -> list[str]:
    among = "" if result.outliers_among == "all" else " of what differs"
    score = f" by {shown(result.score, 20)}" if result.score else ""
    count = result.outliers_unchanged
    if not result.outliers:
        return [f"Outliers: the same, all {count} at the top{score}{among}." if count else "Outliers: none."]
    unchanged = f"; {count} unchanged" if count else ""
    sentence = f"Outliers, at the top{score}{among}: {_tally(result.outliers)[:-1]}{unchanged}."
    come_and_go = ("appeared", "vanished")
    order = sorted(result.outliers, key=lambda c: (c.kind not in come_and_go, _best_rank(c), c.coordinate.sort_key))
    kept = order[:SHOWN_OUTLIERS]
    header, places = coordinate_cells([change.coordinate for change in kept])
    rows = [
        [
            *place,
            *(cell(side[field] if side else None) for field in ("rank", "value") for side in (c.old, c.new)),
            c.kind,
        ]
        for c, place in zip(kept, places, strict=True)
    ]
    header += ["old rank", "new rank", "old value", "new value", "change"]
    return [fill(sentence), table(header, rows) + _more(len(order) - len(kept))]


def _best_rank(change: Change) -> int:
    ranks: list[int] = [side["rank"] for side in (change.old, change.new) if side and side["rank"] is not None]
    return min(ranks)


def _layers(layers: Sequence[LayerChange]) -> str:
    """Return a line per layer, runs of layers without a change as one, and of very many those that changed most."""
    kept = list(layers)
    if len(_runs(kept)) > SHOWN_LAYERS:
        chosen = {id(layer) for layer in sorted(layers, key=_quietness)[:SHOWN_LAYERS]}
        kept = [layer for layer in layers if id(layer) in chosen]
    saved = all(layer.state == "ranked" for layer in layers)
    towers = any(layer.tower for layer in layers)
    experts = any(layer.largest_change and layer.largest_change.expert is not None for layer in layers)
    rows = []
    for run in _runs(kept):
        first, last = run[0], run[-1]
        number = str(first.layer) if first is last else f"{first.layer}-{last.layer}"
        rows.append(
            [
                *([shown(first.tower or "-", 12)] if towers else []),
                number,
                *([] if saved else [_amount(first)]),
                "-" if first.ranked is None else f"{first.shared} of {first.ranked}",
                _correlation(first.rank_correlation),
                *_largest_cells(first, experts),
            ]
        )
    header = [*(["tower"] if towers else []), "layer", *([] if saved else ["change"]), "shared", "rank corr"]
    header += ["largest change", *(["expert"] if experts else []), "row", "col"]
    what = "" if saved else "how far its weights moved (||new - old|| / ||old||), "
    text = f"By layer: {what}how many of its top outliers both share, which of its weights moved most"
    more = len(layers) - len(kept)
    sections = [fill(text), table(header, rows) + (f"\n\n… and {more} more layers (--json and --csv)" if more else "")]
    return "\n\n".join([*sections, *_not_finite(layers), *_layer_notes(layers)])


def _not_finite(layers: Sequence[LayerChange]) -> list[str]:
    broken = [layer for layer in layers if not layer.is_finite]
    if not broken:
        return []
    old, new = (sum(getattr(layer, f"{side}_nonfinite") or 0 for layer in broken) for side in ("old", "new"))
    return [
        fill(
            f"NaN or infinite, and left out of how far weights moved: {count_of(old, 'weight')} of the old and {new:,} "
            f"of the new one, in layer{'s' if broken[1:] else ''} {_listed(broken)}."
        )
    ]


def _quietness(layer: LayerChange) -> tuple[bool, bool, bool, float, float, float]:
    """Return what puts first the layers of which most is to be said."""
    largest = layer.largest_change
    return (
        layer.state in ("same", "same file"),
        layer.is_finite,
        layer.state != "incomparable",
        -(layer.relative_change or 0.0),
        -(abs(largest.new - largest.old) if largest else 0.0),
        (layer.shared or 0) / (layer.ranked or 1),
    )


def _layer_notes(layers: Sequence[LayerChange]) -> list[str]:
    """Return the notes, each once with its layers."""
    groups: dict[str, list[LayerChange]] = {}
    for layer in layers:
        if layer.note:
            groups.setdefault(layer.note, []).append(layer)
    lines = [
        fill(f"Layer{'s' if them[1:] else ''} {_listed(them)}: {shown(note)}.")
        for note, them in list(groups.items())[:SHOWN_NOTES]
    ]
    return ["\n".join(lines) + _more(len(groups) - len(lines))] if lines else []


def _listed(layers: Sequence[LayerChange]) -> str:
    names = [f"{shown(layer.tower, 12)} {layer.layer}" if layer.tower else str(layer.layer) for layer in layers]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")


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


def _amount(layer: LayerChange) -> str:
    """Return how far a layer's weights moved, or what else there is to say."""
    change = layer.relative_change
    if not change and not layer.is_finite:
        return "not finite"
    if change is None or not math.isfinite(change):
        return layer.state
    if change >= 10:
        return f"{change:.3g} x"
    return f"{change:.2%}" if change >= 1e-4 else f"{change:.0e}"


def _largest_cells(layer: LayerChange, experts: bool) -> list[object]:
    largest = layer.largest_change
    if largest is None:
        return ["-", *(["-"] if experts else []), "-", "-"]
    expert = [cell(largest.expert)] if experts else []
    return [f"{largest.old:+.3g} to {largest.new:+.3g}", *expert, largest.row, largest.col]


def _followed(history: History) -> str:
    """Return the weights followed, in as many of the revisions as fit: the first, the last, and evenly between."""
    if not history.weights:
        return "No outliers: no down projection has a finite weight."
    kept = history.weights[: 2 * SHOWN_OUTLIERS]
    known = any(weight.known for weight in kept)
    header, places = coordinate_cells([weight.coordinate for weight in kept])
    header += ["known"] if known else []
    count = len(history.revisions)
    for most in range(SHOWN_REVISIONS, 1, -1):
        columns = sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
        rows = [
            [
                *place,
                *([shown(weight.known or "-", 18)] if known else []),
                *(_followed_cell(weight, i) for i in columns),
            ]
            for weight, place in zip(kept, places, strict=True)
        ]
        lines = table([*header, *(_middle_cut(shown(history.revisions[i].revision), 12) for i in columns)], rows)
        if len(lines.partition("\n")[0]) <= WIDTH:
            break
    hidden = count - len(columns)
    note = f"\n\n{count_of(hidden, 'revision')} between left out (--json and --csv list all)" if hidden else ""
    title = "Weights that rank best at any of them: value, and rank where it has one"
    return f"{title}\n\n{lines}{_more(len(history.weights) - len(kept))}{note}"


def _middle_cut(text: str, most: int) -> str:
    """Return a name with its end, by which the names of revisions mostly differ."""
    return text if len(text) <= most else f"{text[: most - 8]}…{text[-7:]}"


def _followed_cell(weight: FollowedWeight, number: int) -> str:
    value, rank = weight.values[number], weight.ranks[number]
    return "-" if value is None else f"{value:+.4g}" + (f" #{rank}" if rank else "   ")


def _tally(changes: Sequence[Change]) -> str:
    kinds = dict.fromkeys(change.kind for change in changes)
    return ", ".join(f"{sum(change.kind == kind for change in changes)} {kind}" for kind in kinds) + "."


def _more(count: int) -> str:
    return f"\n\n… and {count} more (--json and --csv list all)" if count > 0 else ""


def _value(side: Any) -> str:
    return cell(side["value"] if side else None)


def _correlation(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:+.2f}"
