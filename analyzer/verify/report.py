"""A verification as text of 100 columns: the one line that matters first, then tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from analyzer.base.errors import shown
from analyzer.base.text import (
    big,
    byte_size,
    cell,
    coordinate_cells,
    count_of,
    fill,
    model_title,
    percent,
    place_name,
    table,
)
from analyzer.verify.records import LayerMaxima, Masking, SuperActivation, SuperWeight, VerifyResult

SHOWN_WEIGHTS = 12
SHOWN_ACTIVATIONS = 5


def render_verify(result: VerifyResult, catalog_file: Path | None = None, agreement: str = "") -> str:
    """Return a verification as text.

    `catalog_file` is named where an entry was written; `agreement` says whether it is what others report.
    """
    sections = [model_title(result.model, result.revision, result.commit), *_finding(result)]
    if result.super_weights:
        sections.append(weights_table(result.super_weights))
    if result.super_activations:
        sections.append(activations_table(result.super_activations))
    if result.recurrences:
        sections.append(_recurrences_table(result))
    if result.masking:
        sections.append(_masking_table(result.masking))
    if result.outlier_features:
        features = sorted({feature.channel for feature in result.outlier_features})
        channels = ", ".join([*(f"channel {channel}" for channel in features[:5]), *(["…"] if features[5:] else [])])
        sections.append(fill(f"Outlier features, large at most positions and so no super activations: {channels}."))
    caption = (
        f'over the {len(result.tokens)} tokens of "{shown(result.prompt, 60)}" in {result.dtype} on {result.device}'
    )
    sections.append(fill(f"Largest magnitudes by layer, {caption}") + "\n\n" + _layers_table(result.layers))
    if agreement:
        sections.append(agreement)
    if catalog_file is not None:
        sections.append(f"Catalog entry written to {shown(catalog_file)}")
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
        yield fill(
            f"None found: channel {largest.channel} has a super activation of {big(largest.value)}, "
            "but no single weight of a down projection writes it."
        )
        return
    best = (critical or confirmed)[0]
    name = "Super weight, but inert" if best.effect == "inert" else "Super weight"
    rank = "" if best.static_rank is None else f", rank {_rank(best)} by magnitude"
    effect = "its effect not measured" if best.effect is None else best.effect
    yield fill(f"{name}: {place_name(best)} = {best.value:+.5g}{rank}; {best.status}, {effect}.")
    sentence = (
        f"It makes {best.share:.0%} of what its MLP writes to channel {best.row} there; "
        f"zeroing it takes {percent(best.activation_collapse)} of the super activation away"
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
    yield fill(f"{sentence}.")
    if result.early_stop:
        yield fill(
            f"Stopped after layer {result.layers[-1].layer}, where a super activation had persisted: read "
            f"{byte_size(result.bytes_read)} of {byte_size(result.checkpoint_bytes)}. "
            "What later layers do was not looked at."
        )
        return
    if len(confirmed) == 1:
        return
    sentence = f"In all {count_of(len(confirmed), 'confirmed super weight')}, {len(critical)} of them critical"
    if result.joint:
        loss = result.joint.loss_zeroed
        sentence += f"; with all of them zeroed at once, the loss is {loss:.3f} (perplexity {_perplexity(loss)})"
    yield fill(f"{sentence}.")


def weights_table(weights: Sequence[SuperWeight]) -> str:
    """Return all critical weights, then the others that the static scan ranks highest."""
    critical = [weight for weight in weights if weight.effect == "critical"]
    others = sorted((w for w in weights if w.effect != "critical"), key=lambda w: w.static_rank or math.inf)
    kept = critical + others[: max(3, SHOWN_WEIGHTS - len(critical))]
    header, places = coordinate_cells([weight.coordinate for weight in kept])
    header += ["value", "share", "rank", "status", "effect", "collapse", "Δ loss", "nearest", "random"]
    rows = [
        [
            *place,
            f"{w.value:+.4g}",
            percent(w.share),
            _rank(w),
            w.status,
            cell(w.effect),
            "grows" if (w.activation_collapse or 0.0) < 0 else percent(w.activation_collapse),
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
    return "Weights on the super activations' channels\n\n" + table(header, rows) + note


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
        + table(header, rows)
        + (f"\n\n… and {more} more (--json lists all)" if more else "")
    )


def _masking_table(masking: Sequence[Masking]) -> str:
    """Return what zeroing one weight makes of super activations in other channels."""

    def channels(places: Sequence[tuple[int, int]]) -> str:
        found = sorted({channel for channel, _ in places})
        return ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if found[6:] else "") or "-"

    header, places = coordinate_cells([each.coordinate for each in masking[:SHOWN_ACTIVATIONS]])
    rows = [
        [*place, channels(each.vanished), channels(each.appeared)] for each, place in zip(masking, places, strict=False)
    ]
    return "Super activations of other channels that zeroing one weight takes away or brings\n\n" + table(
        [*header, "vanish", "appear"], rows
    )


def activations_table(activations: Sequence[SuperActivation]) -> str:
    """Return the first of the super activations, and how many more there are."""
    rows = [
        [
            f"{a.layer}-{a.last_layer}",
            a.channel,
            a.position,
            shown(repr(a.token), 20),
            big(a.value),
            f"{a.median_ratio:,.0f}",
        ]
        for a in activations[:SHOWN_ACTIVATIONS]
    ]
    more = len(activations) - SHOWN_ACTIVATIONS
    note = f"\n\n… and {more} smaller ones" if more > 0 else ""
    header = ["layers", "channel", "position", "token", "value", "x median"]
    return "Super activations\n\n" + table(header, rows) + note


def _layers_table(layers: Sequence[LayerMaxima]) -> str:
    header = ["layer", "input", "col", "output", "row", "residual", "channel"]
    rows = [
        [
            m.layer,
            big(m.input_max),
            m.input_col,
            big(m.output_max),
            m.output_row,
            big(m.residual_max),
            m.residual_channel,
        ]
        for m in layers
    ]
    return table(header, rows)


def _rank(weight: SuperWeight) -> str:
    rank = weight.static_rank
    if rank is None:
        return "-"
    return f"{rank:,}" if rank < 1_000_000 else f"{rank / 1e6:.1f}M"


def _change(loss: float | None, other: float | None) -> str:
    return "-" if loss is None or other is None else f"{round(other - loss, 3) + 0.0:+.3f}"  # + 0.0: never "-0.000"


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700.0)):,.4g}"
