"""A verification as text of 100 columns: the one line that matters first, then tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from analyzer.base.errors import shown
from analyzer.base.records import plain
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
    plus_minus,
    signed,
    table,
)
from analyzer.verify.records import (
    REASONS,
    JointZeroing,
    LayerMaxima,
    Masking,
    SuperActivation,
    SuperWeight,
    VerifyResult,
)
from analyzer.verify.sentences import headroom_sentence, sinks_sentence
from analyzer.verify.unit_tables import unit_sections

SHOWN_WEIGHTS = 12
SHOWN_ACTIVATIONS = 5
SHOWN_ANSWERS = 3
WEIGHTS = "Weights on the super activations' channels"


def render_verify(result: VerifyResult, catalog_file: Path | None = None, agreement: str = "") -> str:
    """Return a verification as text.

    `catalog_file` is named where an entry was written; `agreement` says whether it is what others report.
    """
    sections = [model_title(result.model, result.revision, result.commit)]
    sections += _finding(result) if result.verdict is not None else _answer(result)
    if weights := result.asked or result.super_weights:
        sections.append(weights_table(weights, "Weights asked for" if result.asked else WEIGHTS))
    sections += unit_sections(result)
    if result.super_activations:
        sections.append(activations_table(result.super_activations))
    if result.recurrences:
        sections.append(_recurrences_table(result))
    sections += _over_prompts(result)
    if result.masking:
        sections.append(_masking_table(result.masking))
    most = {feature.channel for feature in result.outlier_features}
    late = {activation.channel for activation in result.late_activations}
    for what, channels in (
        ("as large at more than half of the positions", most),
        ("as large, but only at the end", late),
    ):
        if channels:
            sections.append(fill(f"Channels {what}: {_some(channels)}."))
    caption = (
        f'over the {len(result.tokens)} tokens of "{shown(result.prompt, 60)}" in {result.dtype} on {result.device}'
    )
    if result.layers:  # of MLPs that are followed
        sections.append(fill(f"Largest magnitudes by layer, {caption}") + "\n\n" + _layers_table(result.layers))
    if agreement:
        sections.append(agreement)
    if catalog_file is not None:
        sections.append(f"Catalog entry written to {shown(catalog_file)}")
    return "\n\n".join(sections)


def _finding(result: VerifyResult) -> Iterator[str]:
    """Yield the finding in sentences: which weight, what it does, how sure."""
    found = [weight for weight in result.super_weights if weight.is_super]
    if not found:
        yield fill(_none_found(result))
        return
    best, *others = found
    yield from _one(best)
    column = next((each for each in result.columns if each.coordinate == best.column), None)
    if column is not None:
        sentence = f"Its column {best.col} writes {len(column.rows)} channels at once: {_some(column.rows)}"
        if column.delta is not None and column.delta_high is not None and column.loss_tokens is not None:
            cost = _adds(column.delta, column.delta_high, column.loss_tokens)
            sentence += f"; zeroing these weights at once {cost}"
        yield fill(f"{sentence}.")
    if result.early_stop:
        yield fill(
            f"Stopped after layer {result.layers[-1].layer}, where a super activation had persisted: read "
            f"{byte_size(result.bytes_read)} of {byte_size(result.checkpoint_bytes)}. "
            "What later layers do was not looked at."
        )
        return
    if not others:
        return
    critical = [weight for weight in found if weight.effect == "critical"]
    costliest = max(critical, key=lambda w: w.loss_zeroed or 0.0, default=best)
    if costliest is not best:
        yield fill(f"The costliest is {place_name(costliest)}: without it the loss is {_loss(costliest.loss_zeroed)}.")
    confirmed = [weight for weight in found if weight.status == "confirmed"]
    sentence = f"In all {count_of(len(found), 'super weight')}, {len(confirmed)} confirmed"
    if best.effect is not None:
        sentence += f" and {len(critical)} critical"
    if result.joint:
        sentence += f"; zeroing all the confirmed ones at once {_together(result.joint)}"
    yield fill(f"{sentence}.")


def _none_found(result: VerifyResult) -> str:
    if result.super_activations:
        largest = result.super_activations[0]
        return (
            f"None found: channel {largest.channel} has a super activation of {big(largest.value)}, "
            "but no single weight of a down projection is seen to write it."
        )
    if result.late_activations:
        largest = result.late_activations[0]
        return (
            f"None found: channel {largest.channel} reaches {big(largest.value)} in layer {largest.layer}, too near to "
            "the end to be a super activation."
        )
    return "None found: no super activation, so no super weight, on this prompt."


def _answer(result: VerifyResult) -> Iterator[str]:
    """Yield what the weights do that were asked for: each, while they are few, and all at once."""
    if len(result.asked) <= SHOWN_ANSWERS:
        for weight in result.asked:
            yield from _one(weight)
    if result.joint:
        yield fill(f"Zeroing all {len(result.asked)} at once {_together(result.joint)}.")


def _together(joint: JointZeroing) -> str:
    return _adds(joint.loss_zeroed - joint.loss, joint.delta_high, joint.loss_tokens)


def _adds(delta: float, high: float, tokens: int) -> str:
    return f"adds {plus_minus(delta, high)} to the loss, over {count_of(tokens, 'token')}"


def _one(weight: SuperWeight) -> Iterator[str]:
    """Yield what one weight is, and what it does."""
    name = (
        "Weight" if not weight.is_super else "Super weight, but inert" if weight.effect == "inert" else "Super weight"
    )
    rank = "" if weight.static_rank is None else f", rank {_rank(weight)} by magnitude"
    effect = "its effect not measured" if weight.effect is None else weight.effect
    yield fill(f"{name}: {place_name(weight)} = {weight.value:+.5g}{rank}; {weight.status}, {effect}.")
    share = f"It makes {weight.share:.0%} of what its MLP writes to channel {weight.row} there"
    if weight.reason == "latent":
        parts = [f"It is not confirmed, as {REASONS[weight.reason]}"]
    elif weight.reason is None:
        parts = [share, f"zeroing it takes {percent(weight.activation_collapse)} of the super activation away"]
    else:
        parts = [share, f"it is not confirmed, as {REASONS[weight.reason]}"]
    if weight.loss is not None and weight.loss_zeroed is not None:
        moves = " and moves" if weight.reason is None else "; zeroing it moves"
        control = weight.control_loss_max
        parts[-1] += f"{moves} the loss from {_loss(weight.loss)} to {_loss(weight.loss_zeroed)}"
        parts[-1] += f", over {count_of(weight.loss_tokens or 0, 'token')}"
        parts.append(
            "too little to be critical" if control is None else f"the worst of its controls gives {control:.3f}"
        )
    if weight.kl_divergence is not None and weight.top1_agreement is not None:
        parts.append(_beside(weight.kl_divergence, weight.top1_agreement, destroyed=bool(weight.destroyed)))
    yield fill(f"{'; '.join(parts)}.")


def _beside(divergence: float, agreement: float, *, destroyed: bool) -> str:
    """Return what else is said of what was zeroed, as one part of a sentence."""
    words = f"the likeliest token stays at {percent(agreement)} of the tokens, with a KL divergence of "
    gone = ", and the model is destroyed: it knows less of the text than its unigrams tell" if destroyed else ""
    return f"{words}{divergence:.3g} nats{gone}"


def weights_table(weights: Sequence[SuperWeight], title: str = WEIGHTS) -> str:
    """Return the first of the weights, and all critical ones."""
    kept = [weight for place, weight in enumerate(weights) if place < SHOWN_WEIGHTS or weight.effect == "critical"]
    header, places = coordinate_cells([weight.coordinate._replace(tower=None) for weight in kept])
    header += ["value", "writes", "share", "rank", "status", "effect", "falls", "Δ loss"]
    controlled = any(weight.control_loss_max is not None for weight in kept)
    header += ["control"] if controlled else []
    rows = [
        [
            *place,
            f"{w.value:+.3g}",
            "-" if w.change is None else big(w.change),
            percent(None if w.reason == "latent" else w.share),
            _rank(w),
            w.status,
            cell(w.effect),
            "grows" if w.reason == "grows" else percent(w.activation_collapse),
            _cost(w),
            *([_change(w.loss, w.control_loss_max)] if controlled else []),
        ]
        for w, place in zip(kept, places, strict=True)
    ]
    title += f", in the tower {shown(weights[0].tower, 40)}" if weights[0].tower else ""
    more = len(weights) - len(kept)
    note = f"\n\n… and {more} more, none of them critical (--json lists all)" if more else ""
    tokens = {w.loss_tokens for w in kept if w.loss_tokens is not None}
    if len(tokens) > 1:
        most, least = max(tokens), min(tokens)
        note += f"\n\nΔ loss is over {least:,} to {most:,} tokens: as many as settle whether a weight is critical."
    return f"{title}\n\n" + table(header, rows) + note


def _over_prompts(result: VerifyResult) -> Iterator[str]:
    """Yield where super activations sit, and whether magnitudes overflow small formats."""
    if result.sinks and (sentence := sinks_sentence(plain(result.sinks), plain(result.prefix))):
        yield fill(sentence)
    if result.headroom:
        yield fill(headroom_sentence(plain(result.headroom)))


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
        return _some({channel for channel, _ in places}) or "-"

    header, places = coordinate_cells([each.coordinate for each in masking[:SHOWN_ACTIVATIONS]])
    rows = [
        [*place, channels(each.vanished), channels(each.appeared)] for each, place in zip(masking, places, strict=False)
    ]
    return "Super activations of other channels that zeroing one weight takes away or brings\n\n" + table(
        [*header, "vanish", "appear"], rows
    )


def activations_table(activations: Sequence[SuperActivation]) -> str:
    """Return the largest super activation of each channel, as far as there is room, and how many more there are."""
    largest: dict[int, SuperActivation] = {}
    for activation in activations:
        largest.setdefault(activation.channel, activation)
    rows = [
        [
            f"{a.layer}-{a.last_layer}",
            a.channel,
            a.position,
            shown(repr(a.token), 20),
            cell(a.positions),
            big(a.value),
            f"{a.median_ratio:,.0f}",
        ]
        for a in list(largest.values())[:SHOWN_ACTIVATIONS]
    ]
    more = len(activations) - len(rows)
    note = f"\n\n… and {more} smaller ones" if more > 0 else ""
    header = ["layers", "channel", "position", "token", "positions", "value", "x median"]
    return "Super activations, the largest of each channel\n\n" + table(header, rows) + note


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
    unit, of = (1e6, "M") if rank >= 999_500 else (1e3, "k")
    return f"{rank:,}" if rank < 100_000 else f"{rank / unit:.0f}{of}"


def _cost(weight: SuperWeight) -> str:
    """Return what zeroing a weight alone adds to the loss, with half the width of its interval."""
    if weight.loss is None or weight.delta is None or weight.delta_high is None:
        return _change(weight.loss, weight.loss_zeroed)
    return plus_minus(weight.delta, weight.delta_high)


def _change(loss: float | None, other: float | None) -> str:
    return "-" if loss is None or other is None else signed(other - loss)


def _loss(loss: float | None) -> str:
    if loss is None or not math.isfinite(loss):
        return "infinite"
    return f"{loss:.3f} (perplexity {math.exp(min(loss, 700.0)):,.4g})"


def _some(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if found[6:] else "")
