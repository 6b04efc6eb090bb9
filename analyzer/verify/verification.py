"""The dynamic verification: which weights write the super activations of a prompt, and what zeroing them does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from analyzer.base.errors import ForwardError
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate, Unit
from analyzer.forward.checking import check_rows, check_trace
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.losses.paired import AUDITED, SEED, SPREAD, PairedLosses
from analyzer.forward.observers import expert_outputs
from analyzer.forward.runner import Runner
from analyzer.forward.trace import Stream, Trace
from analyzer.model.ends.logits import SURE
from analyzer.verify.activations.detection import detect, layer_maxima, outlier_features
from analyzer.verify.activations.experts import forming_layers, judge_experts
from analyzer.verify.activations.search import MAX_ROUNDS, behind_nothing, moved_by, search, static_candidates
from analyzer.verify.activations.tally import Tally
from analyzer.verify.costs.effects import (
    CRITICAL_INCREASE,
    EFFECT_PARAMETERS,
    measure_asked,
    measure_columns,
    measure_effects,
    measure_joint,
)
from analyzer.verify.costs.intervals import Estimate
from analyzer.verify.costs.measuring import Measuring
from analyzer.verify.costs.units import interactions_of, measure_units, units_of, with_halves
from analyzer.verify.ordering import columns_of, in_order
from analyzer.verify.preparation import MIN_TOKENS, Prepared, Statics
from analyzer.verify.records import (
    Column,
    ExpertOutput,
    Interaction,
    JointZeroing,
    Recurrence,
    SuperActivation,
    SuperWeight,
    VerifyResult,
    Write,
)
from analyzer.verify.settings import Thresholds, VerifySettings

LOUD = 0.2  # of the stream's norm: a weight that moves it so far costs much, as a rule, or needs much text to tell
KEPT_BYTES = 1 << 28  # of what blocks give for the untouched text; and of states that may be asked for again
PARAMETERS = {
    **EFFECT_PARAMETERS,
    "loud": LOUD,
    "sampled_surely": SURE,
    "sampled_spread": SPREAD,
    "audited": AUDITED,
    "sample_seed": SEED,
    "max_rounds": MAX_ROUNDS,
}


def verify(
    runner: Runner,
    prepared: Prepared,
    statics: Statics,
    settings: VerifySettings,
    progress: Progress = lambda *_: None,
) -> VerifyResult:
    """Find the super weights behind the prompt's super activations and measure what each does.

    `prepared` is what `settings` ask for, as ids; where `statics` has weights that were asked for, these are looked at
    and none is searched for. Raises ForwardError where the model cannot be run on them.
    """
    thresholds, early_stop, tokens = settings.thresholds, settings.early_stop, prepared.tokens
    progress("prompt", 0, 1)
    if early_stop:
        runner.one_by_one = True  # what would tell whether rows may run together runs the whole model
    else:
        check_rows(runner, prepared.windows[0].ids)
    tally = Tally(runner, prepared, thresholds)
    trace, causal = _run_prompt(runner, prepared, thresholds, tally, early_stop=early_stop)
    causal &= not runner.masked  # which reads what follows, however little it makes of that
    causal &= runner.start is None  # more or less of a text would change which half of it an encoder reads
    activations, late = detect(trace.residual, trace.layers, tokens, thresholds)
    tally.add(prepared.ids, trace.layers, trace.residual, activations)
    if trace.layers != runner.layers:
        late = ()  # what comes after was not run
    rounds, asked = 1 if early_stop else MAX_ROUNDS, statics.asked if statics.is_asked else None
    found = search(runner, prepared, trace, activations, late, thresholds, rounds=rounds, asked=asked)
    progress("prompt", 1, 1)
    weights, measuring = in_order(found.weights), None
    if not early_stop:
        if runner.has_loss:
            tell = PairedLosses(runner, KEPT_BYTES)
            measuring = Measuring(tell, prepared.windows, progress, causal=causal, increase=CRITICAL_INCREASE)
        if statics.is_asked:
            weights = _asked(measuring, found.weights, trace, activations, statics)
        else:
            weights = _measured(measuring, found.weights, trace, activations, statics)
    joint, columns = _together(measuring, weights, statics)
    outputs = _experts(runner, prepared, statics, found.writes, activations)
    units: list[Unit] = list(statics.units)
    interactions: tuple[Interaction, ...] = ()
    if settings.more and measuring is not None:
        weights, interactions = tuple(with_halves(measuring, weights)), interactions_of(measuring, weights)
        units += [unit for unit in units_of(weights) if unit not in units]
    recurrences = _recurrences(runner, prepared, thresholds, tally, causal=causal, progress=progress)
    source = runner.checkpoint.source
    return VerifyResult(
        model=runner.name,
        revision=source.revision,
        commit=source.commit,
        model_type=runner.checkpoint.model_type,
        tower=runner.tower,
        notes=(*runner.notes, *_streams_note(trace)),
        streams=trace.residual.shape[-1] // trace.width if trace.residual.shape[-1] != trace.width else None,
        prompt=settings.prompt,
        tokens=tokens,
        dtype=runner.dtype,
        device=runner.device,
        verdict=None if statics.is_asked else "found" if any(w.is_super for w in weights) else "none",
        layers=layer_maxima(trace),
        super_activations=activations,
        late_activations=late,
        outlier_features=outlier_features(trace.residual, trace.layers, thresholds),
        writes=found.writes,
        super_weights=() if statics.is_asked else weights,
        asked=weights if statics.is_asked else (),
        columns=columns,
        joint=joint,
        masking=found.masking,
        profile=next((found.profiles[w.coordinate] for w in weights if w.coordinate in found.profiles), None),
        prompts=len(prepared.prompts),
        recurrences=recurrences,
        **tally.told((weight.coordinate for weight in weights), causal=causal),
        early_stop=early_stop,
        units=measure_units(measuring, units, statics, outputs) if units and measuring is not None else (),
        experts=tuple(each for unit, each in outputs.items() if each.super_expert or unit in units),
        interactions=interactions,
        bytes_read=runner.checkpoint.bytes_read,
        checkpoint_bytes=runner.checkpoint.total_bytes,
        cost=replace(runner.blocks.cost),
    )


def _streams_note(trace: Trace) -> Iterator[str]:
    if (channels := trace.residual.shape[-1]) != trace.width:
        yield (
            f"its residual stream is {channels // trace.width} streams of {trace.width} channels, into which each MLP "
            f"writes by factors of their own: channel c here is channel c mod {trace.width} of stream c div "
            f"{trace.width}, and a share is of what the MLP gives"
        )


def _run_prompt(
    runner: Runner, prepared: Prepared, thresholds: Thresholds, tally: Tally, *, early_stop: bool
) -> tuple[Trace, bool]:
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

    with tally.watching([prepared.ids], [prepared.ids]):
        trace = runner.trace(prepared.ids, enough=enough)
    check_trace(runner, prepared.ids, trace)
    causal = runner.is_causal(prepared.ids, trace)
    if not causal and not runner.masked and runner.has_loss:
        raise ForwardError(f"{runner.name} is no causal and no masked language model: its loss would mean nothing")
    return trace, causal


def _measured(
    measuring: Measuring | None,
    behind: Sequence[SuperWeight],
    trace: Trace,
    activations: Sequence[SuperActivation],
    statics: Statics,
) -> tuple[SuperWeight, ...]:
    """Return the weights `behind` writes and the static candidates with their effects and ranks, in order.

    Candidates that are not critical are left out, but for those that write to a super activation's channel.
    """
    candidates = static_candidates(trace, activations, statics.outliers, {w.coordinate for w in behind})
    channels = {activation.channel % trace.width for activation in activations}
    weights = [*behind, *candidates]
    loud = {w.coordinate for w in weights if moved_by(trace, w.coordinate, w.value) >= LOUD}
    measured = weights if measuring is None else measure_effects(measuring, weights, statics, loud)
    kept = [
        w
        for w in measured
        if w.status != "rejected" or w.effect == "critical" or (w.row in channels and w.reason != "latent")
    ]
    return in_order(_with_ranks(kept, statics))


def _asked(
    measuring: Measuring | None,
    behind: Sequence[SuperWeight],
    trace: Trace,
    activations: Sequence[SuperActivation],
    statics: Statics,
) -> tuple[SuperWeight, ...]:
    """Return the weights that were asked for, as they were asked for; those `behind` a write are judged already."""
    known = {weight.coordinate: weight for weight in behind}
    weights = [
        known.get(coordinate) or behind_nothing(trace, activations, coordinate, value)
        for coordinate, value in statics.asked.items()
    ]
    measured = weights if measuring is None else measure_asked(measuring, weights, statics)
    return tuple(_with_ranks(measured, statics))


def _with_ranks(weights: Sequence[SuperWeight], statics: Statics) -> list[SuperWeight]:
    ranks = statics.rank([weight.coordinate for weight in weights])
    return [replace(weight, static_rank=ranks[weight.coordinate]) for weight in weights]


def _together(
    measuring: Measuring | None, weights: Sequence[SuperWeight], statics: Statics
) -> tuple[JointZeroing | None, tuple[Column, ...]]:
    """Return what zeroing all confirmed weights at once does, or all that were asked for, and all of each column."""
    every = tuple(w.coordinate for w in weights if statics.is_asked or w.status == "confirmed")
    columns = [tuple(weight.coordinate for weight in column) for column in columns_of(weights)]
    if measuring is None:
        return None, tuple(_column(column, None) for column in columns)
    joint = None
    if len(every) > 1:
        cost = measure_joint(measuring, every)
        joint = JointZeroing(every, cost.loss_zeroed, cost.loss, cost.low, cost.high, cost.tokens)
    return joint, tuple(map(_column, columns, measure_columns(measuring, columns)))


def _experts(
    runner: Runner,
    prepared: Prepared,
    statics: Statics,
    writes: Sequence[Write],
    activations: Sequence[SuperActivation],
) -> dict[Unit, ExpertOutput]:
    """Return what all experts give over the text, where one of them is asked for; else none.

    Raises ForwardError where units are asked for and there is no loss.
    """
    if statics.units and not runner.has_loss:
        raise ForwardError(f"{runner.name}: an encoder by itself has no loss: no row, column or expert can be judged")
    if all(unit.kind != "expert" for unit in statics.units):
        return {}
    return judge_experts(expert_outputs(runner, prepared.windows), forming_layers(writes, activations))


def _column(weights: Sequence[Coordinate], cost: Estimate | None) -> Column:
    first, rows = weights[0], tuple(each.row for each in weights)
    column = Column(first.layer, first.expert, first.col, rows, None, None, None, None, first.tower, first.mlp)
    if cost is None:
        return column
    return replace(column, delta=cost.delta, delta_low=cost.low, delta_high=cost.high, loss_tokens=cost.tokens)


def _recurrences(
    runner: Runner, prepared: Prepared, thresholds: Thresholds, tally: Tally, *, causal: bool, progress: Progress
) -> tuple[Recurrence, ...]:
    """Return in how many of the prompts each super activation appears, with and without special tokens.

    Prompts of both kinds ride together, and what is the same in both runs once.
    """
    kinds = [prepared.prompts, *([] if prepared.bare_prompts is None else [prepared.bare_prompts])]
    long = [[prompt for prompt in prompts if runner.length(prompt) >= MIN_TOKENS] for prompts in kinds]
    found = _activations(runner, {prompt for prompts in long for prompt in prompts}, thresholds, tally, causal=causal)
    seen, *others = [_places([found[prompt] for prompt in prompts]) for prompts in long]
    bare = others[0] if others else None
    progress("prompts", len(prepared.prompts), len(prepared.prompts))
    counts = {place: (len(which), tuple(sorted({position for _, position in which}))) for place, which in seen.items()}
    return tuple(
        Recurrence(layer, channel, number, positions, None if bare is None else len(bare.get((layer, channel), ())))
        for (layer, channel), (number, positions) in sorted(counts.items(), key=lambda item: (-item[1][0], item[0]))
    )


def _activations(
    runner: Runner, prompts: Collection[tuple[int, ...]], thresholds: Thresholds, tally: Tally, *, causal: bool
) -> dict[tuple[int, ...], tuple[SuperActivation, ...]]:
    """Return the super activations of each prompt, which is taken into the tally."""
    order = sorted(prompts, key=lambda prompt: (len(prompt), prompt))  # those of one length share a pass
    longest = max(map(len, order), default=0)
    # What follows a prompt changes nothing in it where the model is causal, so that many can ride in one batch.
    padded = [[*prompt, *[prompt[-1]] * (longest - len(prompt) if causal else 0)] for prompt in order]
    found = {}
    with tally.watching(order, padded):
        streams = runner.streams(padded, [UNTOUCHED] * len(padded))
        for prompt, stream in zip(order, streams, strict=True):
            own = stream[:, : len(prompt)]
            found[prompt] = detect(own, runner.layers, [""] * len(prompt), thresholds)[0]
            tally.add(prompt, runner.layers, own, found[prompt])
    return found


def _places(found: Sequence[Sequence[SuperActivation]]) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return the (prompt, position) of the largest super activation of each (layer, channel), of those of prompts."""
    places: dict[tuple[int, int], dict[int, int]] = {}
    for number, activations in enumerate(found):
        for activation in activations:  # largest first
            places.setdefault((activation.layer, activation.channel), {}).setdefault(number, activation.position)
    return {place: set(first.items()) for place, first in places.items()}
