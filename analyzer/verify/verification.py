"""The dynamic verification: which weights write the super activations of a prompt, and what zeroing them does."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import partial

from analyzer.base.errors import ForwardError
from analyzer.base.progress import Progress
from analyzer.forward.checking import check_rows, check_trace
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.losses import losses
from analyzer.forward.runner import Runner
from analyzer.forward.trace import Stream, Trace
from analyzer.verify.activations.detection import detect, layer_maxima
from analyzer.verify.activations.search import MAX_ROUNDS, search, static_candidates
from analyzer.verify.effects import EFFECT_PARAMETERS, measure_effects
from analyzer.verify.preparation import MIN_TOKENS, Prepared, Statics
from analyzer.verify.records import JointZeroing, Recurrence, SuperWeight, VerifyResult
from analyzer.verify.settings import Thresholds, VerifySettings

PARAMETERS = {**EFFECT_PARAMETERS, "max_rounds": MAX_ROUNDS}


def verify(
    runner: Runner,
    prepared: Prepared,
    statics: Statics,
    settings: VerifySettings,
    progress: Progress = lambda *_: None,
) -> VerifyResult:
    """Find the super weights behind the prompt's super activations and measure what each does.

    `prepared` is what `settings` ask for, as ids. Raises ForwardError where the model cannot be run on them.
    """
    thresholds, early_stop, tokens = settings.thresholds, settings.early_stop, prepared.tokens
    progress("prompt", 0, 1)
    if early_stop:
        runner.one_by_one = True  # what would tell whether rows may run together runs the whole model
    else:
        check_rows(runner, prepared.windows[0].ids)
    trace, causal = _run_prompt(runner, prepared, thresholds, early_stop=early_stop)
    activations, features = detect(trace.residual, trace.layers, tokens, thresholds)
    found = search(runner, prepared, trace, activations, thresholds, early_stop=early_stop)
    progress("prompt", 1, 1)
    weights, joint = found.weights, None
    if not early_stop:
        candidates = static_candidates(trace, activations, statics.outliers, {w.coordinate for w in weights})
        channels = {activation.channel for activation in activations}
        weights, joint = _measured(runner, (*weights, *candidates), channels, prepared, statics, progress)
    weights = tuple(sorted(weights, key=_importance))
    source = runner.checkpoint.source
    return VerifyResult(
        model=runner.name,
        revision=source.revision,
        commit=source.commit,
        model_type=runner.checkpoint.model_type,
        tower=runner.tower,
        notes=runner.notes,
        prompt=settings.prompt,
        tokens=tokens,
        dtype=runner.dtype,
        device=runner.device,
        verdict="found" if any(w.status == "confirmed" for w in weights) else "none",
        layers=layer_maxima(trace),
        super_activations=activations,
        outlier_features=features,
        writes=found.writes,
        super_weights=weights,
        joint=joint,
        masking=found.masking,
        profile=next((found.profiles[w.coordinate] for w in weights if w.coordinate in found.profiles), None),
        prompts=len(prepared.prompts),
        recurrences=_recurrences(runner, prepared, thresholds, causal=causal, progress=progress),
        early_stop=early_stop,
        bytes_read=runner.checkpoint.bytes_read,
        checkpoint_bytes=runner.checkpoint.total_bytes,
    )


def _run_prompt(runner: Runner, prepared: Prepared, thresholds: Thresholds, *, early_stop: bool) -> tuple[Trace, bool]:
    """Return what the prompt did in the model, and whether the model is causal.

    Raises ForwardError where it has too few blocks, or is neither causal nor masked.
    """
    if len(runner.layers) <= thresholds.persists:
        raise ForwardError(
            f"{runner.name} has {len(runner.layers)} block(s); a super activation shows only where it persists through "
            f"{thresholds.persists} more"
        )

    def enough(layers: tuple[int, ...], residual: Stream) -> bool:
        return early_stop and bool(detect(residual, layers, prepared.tokens, thresholds)[0])

    trace = runner.trace(prepared.ids, enough=enough)
    check_trace(runner, prepared.ids, trace)
    causal = runner.is_causal(prepared.ids, trace)
    if not causal and not runner.masked:
        raise ForwardError(f"{runner.name} is no causal and no masked language model: its loss would mean nothing")
    return trace, causal


def _measured(
    runner: Runner,
    weights: Sequence[SuperWeight],
    channels: Container[int],
    prepared: Prepared,
    statics: Statics,
    progress: Progress,
) -> tuple[tuple[SuperWeight, ...], JointZeroing | None]:
    """Return the weights with their effects and ranks, and the joint zeroing.

    Rejected ones that are not critical are left out, but for those that write to one of the `channels`.
    """
    if not weights:
        return (), None
    measured, joint = measure_effects(partial(losses, runner), weights, prepared.windows, statics, progress)
    kept = [w for w in measured if w.status != "rejected" or w.row in channels or w.effect == "critical"]
    ranks = statics.rank([weight.coordinate for weight in kept])
    return tuple(replace(weight, static_rank=ranks[weight.coordinate]) for weight in kept), joint


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


def _recurrences(
    runner: Runner, prepared: Prepared, thresholds: Thresholds, *, causal: bool, progress: Progress
) -> tuple[Recurrence, ...]:
    """Return in how many of the prompts each super activation appears, with and without special tokens."""
    seen = _places(runner, prepared.prompts, thresholds, causal=causal)
    bare = None
    if prepared.bare_prompts is not None:
        bare = _places(runner, prepared.bare_prompts, thresholds, causal=causal)
    progress("prompts", len(prepared.prompts), len(prepared.prompts))
    counts = {place: (len(which), tuple(sorted({position for _, position in which}))) for place, which in seen.items()}
    return tuple(
        Recurrence(layer, channel, number, positions, None if bare is None else len(bare.get((layer, channel), ())))
        for (layer, channel), (number, positions) in sorted(counts.items(), key=lambda item: (-item[1][0], item[0]))
    )


def _places(
    runner: Runner, prompts: Sequence[Sequence[int]], thresholds: Thresholds, *, causal: bool
) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return the (prompt, position) of the largest super activation of each (layer, channel) in these prompts."""
    prompts = [prompt for prompt in prompts if len(prompt) >= MIN_TOKENS]
    longest = max((len(prompt) for prompt in prompts), default=0)
    # What follows a prompt changes nothing in it where the model is causal, so that many can ride in one batch.
    padded = [[*prompt, *[prompt[-1]] * (longest - len(prompt) if causal else 0)] for prompt in prompts]
    places: dict[tuple[int, int], set[tuple[int, int]]] = {}
    streams = runner.streams(padded, [UNTOUCHED] * len(padded))
    for number, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        activations, _ = detect(stream[:, : len(prompt)], runner.layers, [""] * len(prompt), thresholds)
        found: set[tuple[int, int]] = set()
        for activation in activations:  # largest first
            place = (activation.layer, activation.channel)
            if place not in found:
                found.add(place)
                places.setdefault(place, set()).add((number, activation.position))
    return places
