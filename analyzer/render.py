"""Records -> what a person reads, in 100 columns: the one line that matters first, then tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tabulate

from analyzer.errors import shown
from analyzer.records import (
    Change,
    Coordinate,
    DiffResult,
    LayerMaxima,
    Masking,
    ScanResult,
    SuperActivation,
    SuperWeight,
    VerifyResult,
)

WIDTH = 100
tabulate.MIN_PADDING = 0  # else every header takes two columns more than it needs
SHOWN_WEIGHTS = 12
SHOWN_ACTIVATIONS = 5
SHOWN_CHANGES = 20


def render_scan(result: ScanResult) -> str:
    """Return a scan as text."""
    sections = [_title(result.model, result.revision, result.commit)]
    if result.outliers:
        best = result.outliers[0]
        gain = result.score == "gain"
        sections.append(
            _fill(
                f"Largest {'gain' if gain else 'weight'}: {_place(best)} = {best.value:+.5g}, "
                + (f"{best.score:.3g} times the norm of its layer's median row and " if gain else "")
                + f"{best.zscore:.0f} standard deviations above its tensor's mean magnitude."
            )
        )
        header, places = _places([outlier.coordinate for outlier in result.outliers])
        sections.append(
            _table(
                ["rank", *header, "value", *(["gain"] if gain else []), "z-score"],
                [
                    [o.rank, *place, f"{o.value:+.5g}", *([f"{o.score:.3g}"] if gain else []), f"{o.zscore:.1f}"]
                    for o, place in zip(result.outliers, places, strict=True)
                ],
            )
        )
    else:
        sections.append("No outliers: no down projection has a finite weight.")
    nonfinite = [tensor for tensor in result.tensors if tensor.nonfinite]
    if nonfinite:
        count = sum(tensor.nonfinite for tensor in nonfinite)
        sections.append(
            _fill(
                f"Warning: {count:,} weights in {_count(len(nonfinite), 'tensor')} are NaN or infinite "
                f"(the first in {shown(nonfinite[0].name, 60)}); they are not ranked."
            )
        )
    dtypes = ", ".join(sorted({tensor.dtype for tensor in result.tensors}))
    sections.append(
        f"Read {_bytes(result.bytes_read)} of {_bytes(result.checkpoint_bytes)} in {result.seconds:.1f} s: "
        f"{_count(len(result.tensors), 'down projection')} ({dtypes}).\n"
        "Large weights are candidates: `superweight verify` tells which of them are super weights."
    )
    return "\n\n".join(sections)


def render_verify(result: VerifyResult, catalog_file: Path | None = None, agreement: str = "") -> str:
    """Return a verification as text.

    `catalog_file` is named where an entry was written; `agreement` says whether it is what others report.
    """
    sections = [_title(result.model, result.revision, result.commit), *_finding(result)]
    if result.super_weights:
        sections.append(_weights_table(result.super_weights))
    if result.super_activations:
        sections.append(_activations_table(result.super_activations))
    if result.recurrences:
        sections.append(_recurrences_table(result))
    if result.masking:
        sections.append(_masking_table(result.masking))
    if result.outlier_features:
        features = sorted({feature.channel for feature in result.outlier_features})
        channels = ", ".join([*(f"channel {channel}" for channel in features[:5]), *(["…"] if features[5:] else [])])
        sections.append(_fill(f"Outlier features, large at most positions and so no super activations: {channels}."))
    caption = (
        f'over the {len(result.tokens)} tokens of "{shown(result.prompt, 60)}" in {result.dtype} on {result.device}'
    )
    sections.append(_fill(f"Largest magnitudes by layer, {caption}") + "\n\n" + _layers_table(result.layers))
    if agreement:
        sections.append(agreement)
    if catalog_file is not None:
        sections.append(f"Catalog entry written to {shown(catalog_file)}")
    return "\n\n".join(sections)


def render_diff(result: DiffResult) -> str:
    """Return a comparison as text."""
    old, new = shown(result.old, 60), shown(result.new, 60)
    if result.identical:
        what = [
            *(["outliers"] if result.layers else []),
            *(["super weights"] if result.super_weights is not None else []),
        ]
        return f"No differences between the {' and '.join(what)} of {old} and {new}."
    sections = [f"From {old} to {new}"]
    if result.super_weights is not None:
        sections.append(f"Super weights: {_tally(result.super_weights)}")
        if result.super_weights:
            sections.append(_changes_table(result.super_weights, ("value", "status", "effect")))
    if result.layers:
        sections.append(f"Outliers: {_tally(result.outliers)}")
        if result.outliers:
            sections.append(_changes_table(result.outliers, ("rank", "value")))
            header = ["layer", "appeared", "vanished", "changed", "moved", "unchanged"]
            rows = [[getattr(layer, name) for name in header] for layer in result.layers]
            sections.append("By layer\n\n" + _table(header, rows))
    return "\n\n".join(sections)


def _finding(result: VerifyResult) -> Iterator[str]:
    """Yield the finding in sentences: which weight, what it does, how sure."""
    confirmed = [weight for weight in result.super_weights if weight.status == "confirmed"]
    critical = [weight for weight in confirmed if weight.effect == "critical"]
    if not result.super_activations:
        yield "None found: no super activation, so no super weight, on this prompt."
        return
    if not confirmed:
        largest = result.super_activations[0]
        yield _fill(
            f"None found: channel {largest.channel} has a super activation of {_big(largest.value)}, "
            "but no single weight of a down projection writes it."
        )
        return
    best = (critical or confirmed)[0]
    name = "Super weight, but inert" if best.effect == "inert" else "Super weight"
    rank = "" if best.static_rank is None else f", rank {_rank(best)} by magnitude"
    effect = "its effect not measured" if best.effect is None else best.effect
    yield _fill(f"{name}: {_place(best)} = {best.value:+.5g}{rank}; {best.status}, {effect}.")
    sentence = (
        f"It makes {best.share:.0%} of what its MLP writes to channel {best.row} there; "
        f"zeroing it takes {_percent(best.activation_collapse)} of the super activation away"
    )
    if best.loss is not None and best.loss_zeroed is not None:
        control = (
            f"the worst of its control weights gives {best.control_loss_max:.3f}"
            if best.control_loss_max is not None
            else "too little to be critical"
        )
        sentence += (
            f" and moves the loss from {best.loss:.3f} to {best.loss_zeroed:.3f} (perplexity "
            f"{_perplexity(best.loss)} to {_perplexity(best.loss_zeroed)}, over {best.loss_tokens:,} tokens); {control}"
        )
    yield _fill(f"{sentence}.")
    if result.early_stop:
        yield _fill(
            f"Stopped after layer {result.layers[-1].layer}, where a super activation had persisted: read "
            f"{_bytes(result.bytes_read)} of {_bytes(result.checkpoint_bytes)}. What later layers do was not looked at."
        )
        return
    if len(confirmed) == 1:
        return
    sentence = f"In all {_count(len(confirmed), 'confirmed super weight')}, {len(critical)} of them critical"
    if result.joint:
        loss = result.joint.loss_zeroed
        sentence += f"; with all of them zeroed at once, the loss is {loss:.3f} (perplexity {_perplexity(loss)})"
    yield _fill(f"{sentence}.")


def _weights_table(weights: Sequence[SuperWeight]) -> str:
    """Return all critical weights, then the others that the static scan ranks highest."""
    critical = [weight for weight in weights if weight.effect == "critical"]
    others = sorted((w for w in weights if w.effect != "critical"), key=lambda w: w.static_rank or math.inf)
    kept = critical + others[: max(3, SHOWN_WEIGHTS - len(critical))]
    header, places = _places([weight.coordinate for weight in kept])
    header += ["value", "share", "rank", "status", "effect", "collapse", "Δ loss", "nearest", "random"]
    rows = [
        [
            *place,
            f"{w.value:+.4g}",
            _percent(w.share),
            _rank(w),
            w.status,
            _text(w.effect),
            "grows" if (w.activation_collapse or 0.0) < 0 else _percent(w.activation_collapse),
            _change(w.loss, w.loss_zeroed),
            _change(w.loss, w.control_loss_nearest),
            _change(w.loss, w.control_loss_random),
        ]
        for w, place in zip(kept, places, strict=True)
    ]
    more = len(weights) - len(kept)
    note = f"\n\n… and {more} more, none of them critical (--json lists all)" if more else ""
    tokens = {w.loss_tokens for w in kept if w.loss_tokens is not None}
    if len(tokens) > 1:
        most, least = max(tokens), min(tokens)
        note += f"\n\nΔ loss is over {most:,} tokens; of weights that cost next to nothing on the first {least:,}, "
        note += "over those."
    return "Weights on the super activations' channels\n\n" + _table(header, rows) + note


def _recurrences_table(result: VerifyResult) -> str:
    bare = result.recurrences[0].without_bos is not None
    rows = [
        [
            r.layer,
            r.channel,
            f"{r.prompts} of {result.prompts}",
            ", ".join(map(str, r.positions[:4])) + (", …" if r.positions[4:] else ""),
            *([r.without_bos] if bare else []),
        ]
        for r in result.recurrences[:SHOWN_ACTIVATIONS]
    ]
    header = ["layer", "channel", "prompts", "positions", *(["without special tokens"] if bare else [])]
    more = len(result.recurrences) - len(rows)
    return (
        f"Super activations in {result.prompts} prompts, by the layer where they begin\n\n"
        + _table(header, rows)
        + (f"\n\n… and {more} more (--json lists all)" if more else "")
    )


def _masking_table(masking: Sequence[Masking]) -> str:
    """Return what zeroing one weight makes of super activations in other channels."""

    def channels(places: Sequence[tuple[int, int]]) -> str:
        found = sorted({channel for channel, _ in places})
        return ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if found[6:] else "") or "-"

    header, places = _places([each.coordinate for each in masking[:SHOWN_ACTIVATIONS]])
    rows = [
        [*place, channels(each.vanished), channels(each.appeared)] for each, place in zip(masking, places, strict=False)
    ]
    return "Super activations of other channels that zeroing one weight takes away or brings\n\n" + _table(
        [*header, "vanish", "appear"], rows
    )


def _activations_table(activations: Sequence[SuperActivation]) -> str:
    rows = [
        [
            f"{a.layer}-{a.last_layer}",
            a.channel,
            a.position,
            shown(repr(a.token), 20),
            _big(a.value),
            f"{a.median_ratio:,.0f}",
        ]
        for a in activations[:SHOWN_ACTIVATIONS]
    ]
    more = len(activations) - SHOWN_ACTIVATIONS
    note = f"\n\n… and {more} smaller ones" if more > 0 else ""
    header = ["layers", "channel", "position", "token", "value", "x median"]
    return "Super activations\n\n" + _table(header, rows) + note


def _layers_table(layers: Sequence[LayerMaxima]) -> str:
    header = ["layer", "input", "col", "output", "row", "residual", "channel"]
    rows = [
        [
            m.layer,
            _big(m.input_max),
            m.input_col,
            _big(m.output_max),
            m.output_row,
            _big(m.residual_max),
            m.residual_channel,
        ]
        for m in layers
    ]
    return _table(header, rows)


def _changes_table(changes: Sequence[Change], fields: Sequence[str]) -> str:
    header, places = _places([change.coordinate for change in changes[:SHOWN_CHANGES]])
    rows = [
        [
            change.kind,
            *place,
            *(_text(change.old[field] if change.old else None) for field in fields),
            *(_text(change.new[field] if change.new else None) for field in fields),
        ]
        for change, place in zip(changes, places, strict=False)
    ]
    header = ["change", *header]
    header += [f"old {field}" for field in fields] + [f"new {field}" for field in fields]
    more = len(changes) - SHOWN_CHANGES
    return _table(header, rows) + (f"\n\n… and {more} more (--json lists all)" if more > 0 else "")


def _places(coordinates: Sequence[Coordinate]) -> tuple[list[str], list[list[object]]]:
    """Return the columns that say where weights are, and their cells: no tower or expert where no weight has one."""
    towers = any(coordinate.tower is not None for coordinate in coordinates)
    experts = any(coordinate.expert is not None for coordinate in coordinates)
    header = [*(["tower"] if towers else []), "layer", *(["expert"] if experts else []), "row", "col"]
    cells: list[list[object]] = [
        [
            *([shown(c.tower or "-", 20)] if towers else []),
            c.layer,
            *([_text(c.expert)] if experts else []),
            c.row,
            c.col,
        ]
        for c in coordinates
    ]
    return header, cells


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    words = {
        "tower",
        "vanish",
        "appear",
        "positions",
        "status",
        "effect",
        "token",
        "change",
    }
    return tabulate.tabulate(
        [[str(cell) for cell in row] for row in rows],
        header,
        disable_numparse=True,
        colalign=["left" if name in words else "right" for name in header],
    )


def _title(model: str, revision: str | None, commit: str | None) -> str:
    name = shown(f"{model}@{revision}" if revision else model, 60)
    return f"{name} ({_commit(commit)})" if commit else name


def _commit(commit: str) -> str:
    return commit[:19] if commit.startswith("sha256:") else commit[:12]


def _place(weight: Any) -> str:
    tower = f"{shown(weight.tower, 40)} " if getattr(weight, "tower", None) else ""
    expert = "" if weight.expert is None else f"expert {weight.expert}, "
    return f"{tower}layer {weight.layer}, {expert}row {weight.row}, col {weight.col}"


def _rank(weight: SuperWeight) -> str:
    rank = weight.static_rank
    if rank is None:
        return "-"
    return f"{rank:,}" if rank < 1_000_000 else f"{rank / 1e6:.1f}M"


def _tally(changes: Sequence[Change]) -> str:
    if not changes:
        return "no differences."
    counts = {
        kind: sum(change.kind == kind for change in changes) for kind in ("appeared", "vanished", "changed", "moved")
    }
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) + "."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _big(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.3g}"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def _fill(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH)


def _change(loss: float | None, other: float | None) -> str:
    return "-" if loss is None or other is None else f"{round(other - loss, 3) + 0.0:+.3f}"  # + 0.0: never "-0.000"


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700.0)):,.4g}"


def _text(value: object) -> str:
    return "-" if value is None else f"{value:+.5g}" if isinstance(value, float) else shown(value, 40)


def _bytes(count: int) -> str:
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"
