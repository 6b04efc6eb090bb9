"""The dynamic verifier: which weights write the super activations of a prompt, and what zeroing them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from analyzer.detection import (
    Attribution,
    Stream,
    Thresholds,
    Trace,
    attribute,
    collapse,
    detect,
    find_writes,
    layer_maxima,
)
from analyzer.effects import EFFECT_PARAMETERS, measure_effects
from analyzer.errors import ForwardError
from analyzer.progress import Progress
from analyzer.records import (
    Coordinate,
    Masking,
    Outlier,
    Profile,
    Recurrence,
    SuperActivation,
    SuperWeight,
    VerifyResult,
    Write,
)

if TYPE_CHECKING:
    from analyzer.forward import HookedModel

MIN_TOKENS = 3  # with fewer, a channel that is large at one position is large at half of them
MAX_ROUNDS = 5  # of zeroing what was found and looking again
PARAMETERS = {**EFFECT_PARAMETERS, "max_rounds": MAX_ROUNDS}
DEFAULT_THRESHOLDS = Thresholds()
STREAM_BYTES = 1 << 28  # of the residual streams that one pass records


def verify(
    model: HookedModel,
    *,
    prompt: str,
    text: str,
    outliers: Sequence[Outlier],
    rank: Callable[[Sequence[Coordinate]], Mapping[Coordinate, int]],
    nearest: Callable[[Coordinate, int], Sequence[Coordinate]],
    prompts: Sequence[str] = (),
    revision: str | None = None,
    commit: str | None = None,
    model_type: str | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    early_stop: bool = False,
    progress: Progress = lambda *_: None,
) -> VerifyResult:
    """Find the super weights behind the prompt's super activations and measure what each does.

    `outliers` are static candidates, screened for their effect too; `rank` gives the rank by |W| of any coordinates,
    `nearest` the weights of other rows nearest to one in magnitude. Losses are over `text`. Super activations are
    looked for in each of `prompts` as well. `early_stop` ends at the first super activation that has persisted, and
    leaves effects and ranks out. Raises ForwardError where the model cannot be run on them.
    """
    ids = model.tokenize(prompt)
    if len(ids) < MIN_TOKENS:
        raise ForwardError(f"of at least {MIN_TOKENS} tokens the prompt has only {len(ids)}: give a longer --prompt")
    if model.max_tokens is not None and len(ids) > model.max_tokens:
        raise ForwardError(
            f"the prompt has {len(ids)} tokens, {model.name} has {model.max_tokens} positions: give a shorter --prompt"
        )
    if len(model.layers) <= thresholds.persists:
        raise ForwardError(
            f"{model.name} has {len(model.layers)} block(s); a super activation shows only where it persists through "
            f"{thresholds.persists} more"
        )
    tokens = model.tokens(ids)

    def enough(layers: tuple[int, ...], residual: Stream) -> bool:
        return early_stop and bool(detect(residual, layers, tokens, thresholds)[0])

    progress("prompt", 0, 1)
    trace = model.trace(ids, enough=enough)
    causal = model.is_causal(ids, trace)
    if not causal and not model.masked:
        raise ForwardError(f"{model.name} is no causal and no masked language model: its loss would mean nothing")
    activations, features = detect(trace.residual, trace.layers, tokens, thresholds)
    weights, writes, masking, profiles = _search(
        model, ids, tokens, trace, activations, thresholds, early_stop=early_stop
    )
    progress("prompt", 1, 1)
    joint = None
    if not early_stop:
        weights += _static_candidates(trace, activations, outliers, {w.coordinate for w in weights})
        if weights:
            weights, joint = measure_effects(model, weights, model.windows(text), nearest, progress)
        on_channel = {activation.channel for activation in activations}
        weights = [w for w in weights if w.status != "rejected" or w.row in on_channel or w.effect == "critical"]
        ranks = rank([weight.coordinate for weight in weights])
        weights = [replace(weight, static_rank=ranks[weight.coordinate]) for weight in weights]
    weights.sort(key=_importance)
    return VerifyResult(
        model=model.name,
        revision=revision,
        commit=commit,
        model_type=model_type,
        prompt=prompt,
        tokens=tokens,
        dtype=model.dtype,
        device=model.device.type,
        verdict="found" if any(w.status == "confirmed" for w in weights) else "none",
        layers=layer_maxima(trace),
        super_activations=activations,
        outlier_features=features,
        writes=writes,
        super_weights=tuple(weights),
        joint=joint,
        masking=masking,
        profile=next((profiles[w.coordinate] for w in weights if w.coordinate in profiles), None),
        prompts=len(prompts),
        recurrences=_recurrences(model, prompts, thresholds, causal=causal, progress=progress),
        early_stop=early_stop,
        bytes_read=model.bytes_read,
        checkpoint_bytes=model.checkpoint_bytes,
    )


def _importance(weight: SuperWeight) -> tuple[object, ...]:
    """Order: critical ones by what zeroing costs; then confirmed before coincident before rejected, by their share.

    What zeroing an inert one costs is noise.
    """
    return (
        ("critical", "inert", None).index(weight.effect),
        ("confirmed", "coincident", "rejected").index(weight.status),
        -(weight.loss_zeroed or 0.0) if weight.effect == "critical" else (weight.round or 0),
        -abs(weight.share),
        weight.coordinate.sort_key,
    )


def _search(
    model: HookedModel,
    ids: Sequence[int],
    tokens: Sequence[str],
    trace: Trace,
    activations: Sequence[SuperActivation],
    thresholds: Thresholds,
    *,
    early_stop: bool,
) -> tuple[list[SuperWeight], tuple[Write, ...], tuple[Masking, ...], dict[Coordinate, Profile]]:
    """Attribute every write, zero each weight behind one, and look again with the confirmed ones zeroed.

    Returns the weights behind writes, not yet with their effects, the writes of the untouched model, what zeroing each
    weight alone makes of the other super activations, and of its own. A weight that only a zeroed one had masked is
    judged in the model without that one.
    """
    found: dict[Coordinate, SuperWeight] = {}
    zeroed: tuple[Coordinate, ...] = ()
    first_writes: tuple[Write, ...] = ()
    masking: list[Masking] = []
    profiles: dict[Coordinate, Profile] = {}
    for round_number in range(1, 2 if early_stop else MAX_ROUNDS + 1):
        if round_number > 1:
            trace = model.trace(ids, zeroed)
            activations, _ = detect(trace.residual, trace.layers, tokens, thresholds)
        attributions: list[Attribution] = []
        writes: list[Write] = []
        for change in find_writes(trace.entering, trace.residual, trace.layers, activations, thresholds):
            write, behind = attribute(change, trace, model.weight_row, thresholds)
            writes.append(write)
            attributions += behind
        if round_number == 1:
            first_writes = tuple(sorted(writes, key=lambda w: (w.layer, -abs(w.change))))
        # A weight may be behind several writes, at several positions: the largest speaks for it.
        new: dict[Coordinate, Attribution] = {}
        for attribution in sorted(attributions, key=lambda a: -abs(a.write.change)):
            if attribution.coordinate not in found:
                new.setdefault(attribution.coordinate, attribution)
        confirmed: list[Coordinate] = []
        for attribution, stream in _zeroed_streams(model, ids, trace, list(new.values()), zeroed):
            coordinate, position = attribution.coordinate, attribution.write.position
            part = collapse(coordinate, position, activations, trace.layers, trace.residual, stream)
            status = "confirmed" if part >= thresholds.collapse else "coincident"
            found[coordinate] = _super_weight(
                coordinate, attribution.value, attribution.share, status, part, round_number
            )
            confirmed += [coordinate] if status == "confirmed" else []
            if round_number == 1:
                along = trace.residual[:, position, coordinate.row], stream[:, position, coordinate.row]
                profiles[coordinate] = Profile(coordinate, position, trace.layers, *(tuple(a.tolist()) for a in along))
                masking += _masking(coordinate, activations, stream, trace.layers, tokens, thresholds)
        if not confirmed:
            break
        zeroed += tuple(confirmed)
    return list(found.values()), first_writes, tuple(masking), profiles


def _zeroed_streams(
    model: HookedModel,
    ids: Sequence[int],
    trace: Trace,
    attributions: Sequence[Attribution],
    zeroed: tuple[Coordinate, ...],
) -> Iterator[tuple[Attribution, Stream]]:
    """Yield each attributed weight with the residual stream without it, beside those already zeroed."""
    rows = _rows_at_once(model, len(ids))
    for start in range(0, len(attributions), rows):
        batch = attributions[start : start + rows]
        interventions = [(*zeroed, attribution.coordinate) for attribution in batch]
        streams = model.residuals([ids] * len(batch), interventions, last_layer=trace.layers[-1])
        yield from zip(batch, streams, strict=True)


def _rows_at_once(model: HookedModel, tokens: int) -> int:
    return max(1, STREAM_BYTES // (4 * len(model.layers) * tokens * model.hidden_size))


def _masking(
    coordinate: Coordinate,
    activations: Sequence[SuperActivation],
    stream: Stream,
    layers: Sequence[int],
    tokens: Sequence[str],
    thresholds: Thresholds,
) -> list[Masking]:
    """Return what zeroing a weight makes of the super activations in channels other than its own."""
    before = {(a.channel, a.position) for a in activations if a.channel != coordinate.row}
    now = detect(stream, layers, tokens, thresholds)[0]
    after = {(a.channel, a.position) for a in now if a.channel != coordinate.row}
    if before == after:
        return []
    return [Masking(coordinate, tuple(sorted(before - after)), tuple(sorted(after - before)))]


def _super_weight(
    coordinate: Coordinate,
    value: float,
    share: float,
    status: str,
    part: float | None = None,
    round_number: int | None = None,
) -> SuperWeight:
    return SuperWeight(
        *coordinate[:4],
        value=value,
        share=share,
        static_rank=None,
        status=status,
        effect=None,
        activation_collapse=part,
        loss=None,
        loss_zeroed=None,
        control_loss_max=None,
        loss_tokens=None,
        round=round_number,
    )


def _static_candidates(
    trace: Trace, activations: Sequence[SuperActivation], outliers: Sequence[Outlier], found: set[Coordinate]
) -> list[SuperWeight]:
    """Return the static outliers that are behind no write, with their part of what the MLP adds on their channel.

    That is at the largest super activation on the channel while it lasts, else at the position where it is largest.
    """
    rejected: dict[Coordinate, SuperWeight] = {}
    for outlier in outliers:
        coordinate, layer = outlier.coordinate, outlier.layer
        if coordinate in found or coordinate in rejected or layer not in trace.outputs:
            continue
        here = [a for a in activations if a.channel == outlier.row and a.layer <= layer <= a.last_layer]
        along = trace.outputs[layer][:, outlier.row]
        position = here[0].position if here else int(np.argmax(np.abs(along)))
        total = float(along[position])
        entered = dict(trace.at(layer, position)).get(outlier.expert)
        term = 0.0 if entered is None else outlier.value * float(entered[outlier.col])
        rejected[coordinate] = _super_weight(coordinate, outlier.value, term / total if total else 0.0, "rejected")
    return list(rejected.values())


def _recurrences(
    model: HookedModel, prompts: Sequence[str], thresholds: Thresholds, *, causal: bool, progress: Progress
) -> tuple[Recurrence, ...]:
    """Return in how many of the prompts each super activation appears, with and without special tokens."""
    most = model.max_tokens or 1 << 20
    plain = [model.tokenize(prompt, special=False)[:most] for prompt in prompts]
    whole = [model.tokenize(prompt)[:most] for prompt in prompts]
    seen = _places(model, whole, thresholds, causal=causal)
    bare = _places(model, plain, thresholds, causal=causal) if plain != whole else None
    progress("prompts", len(prompts), len(prompts))
    counts = {place: (len(which), tuple(sorted({position for _, position in which}))) for place, which in seen.items()}
    return tuple(
        Recurrence(layer, channel, number, positions, None if bare is None else len(bare.get((layer, channel), ())))
        for (layer, channel), (number, positions) in sorted(counts.items(), key=lambda item: (-item[1][0], item[0]))
    )


def _places(
    model: HookedModel, prompts: Sequence[Sequence[int]], thresholds: Thresholds, *, causal: bool
) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return the (prompt, position) of the largest super activation of each (layer, channel) in these prompts."""
    prompts = [prompt for prompt in prompts if len(prompt) >= MIN_TOKENS]
    if not prompts:
        return {}
    longest = max(len(prompt) for prompt in prompts)
    if causal:  # what follows a prompt changes nothing in it, so many can ride in one batch
        padded = [[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in prompts]
        rows = _rows_at_once(model, longest)
        batches = [padded[start : start + rows] for start in range(0, len(padded), rows)]
    else:
        batches = [[list(prompt)] for prompt in prompts]
    streams = (stream for batch in batches for stream in model.residuals(batch, [()] * len(batch)))
    places: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for number, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        activations, _ = detect(stream[:, : len(prompt)], model.layers, [""] * len(prompt), thresholds)
        found: set[tuple[int, int]] = set()
        for activation in activations:  # largest first
            place = (activation.layer, activation.channel)
            if place not in found:
                found.add(place)
                places.setdefault(place, set()).add((number, activation.position))
    return places
