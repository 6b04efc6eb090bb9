"""Who writes the super activations: attribution, zeroing, and looking again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from analyzer.base.records import Coordinate
from analyzer.forward.edits import zeroing
from analyzer.forward.runner import Runner
from analyzer.forward.trace import Stream, Trace
from analyzer.scan.records import Outlier
from analyzer.verify.activations.attribution import Attribution, attribute, collapse, find_writes
from analyzer.verify.activations.detection import detect
from analyzer.verify.preparation import Prepared
from analyzer.verify.records import Masking, Profile, SuperActivation, SuperWeight, Write
from analyzer.verify.settings import Thresholds

MAX_ROUNDS = 5  # of zeroing what was found and looking again
ROWS_KEPT = 64  # of weights, which several positions ask for


@dataclass(frozen=True)
class Found:
    """What a search has found: the weights behind writes, not yet with their effects, and the untouched model's writes.

    `masking` is what zeroing each weight alone makes of the other super activations, `profiles` of its own.
    """

    weights: tuple[SuperWeight, ...]
    writes: tuple[Write, ...]
    masking: tuple[Masking, ...]
    profiles: Mapping[Coordinate, Profile]


def search(
    runner: Runner,
    prepared: Prepared,
    trace: Trace,
    activations: Sequence[SuperActivation],
    late: Sequence[SuperActivation],
    thresholds: Thresholds,
    *,
    rounds: int,
    asked: Collection[Coordinate] | None = None,
) -> Found:
    """Attribute every write, zero each weight behind one, and look again with the confirmed ones zeroed.

    `trace`, `activations` and `late` ones are the untouched model's. A weight that only a zeroed one had masked is
    judged in the model without that one. Where weights are `asked` for, only these are zeroed, and each by itself.
    """
    ids, tokens = prepared.ids, prepared.tokens
    found: dict[Coordinate, SuperWeight] = {}
    zeroed: tuple[Coordinate, ...] = ()
    first_writes: tuple[Write, ...] = ()
    masking: list[Masking] = []
    profiles: dict[Coordinate, Profile] = {}
    for round_number in range(1, 1 + (rounds if asked is None else 1)):
        if round_number > 1:
            trace = runner.trace(ids, zeroing(zeroed))
            activations, late = detect(trace.residual, trace.layers, tokens, thresholds)
        attributions, writes = _behind(runner, trace, activations, thresholds)
        to_late, late_writes = _behind(runner, trace, late, thresholds)
        if round_number == 1:
            first_writes = tuple(sorted({*writes, *late_writes}, key=_place_of_write))
        new = {c: each for c, each in (attributions | to_late | attributions).items() if c not in found}
        new = {c: each for c, each in new.items() if asked is None or c in asked}
        confirmed: list[Coordinate] = []
        interventions = [zeroing((*zeroed, coordinate)) for coordinate in new]
        streams = runner.streams([ids] * len(new), interventions, last_layer=trace.layers[-1])
        for attribution, stream in zip(new.values(), streams, strict=True):
            coordinate, position = attribution.coordinate, attribution.write.position
            of = activations if coordinate in attributions else late
            channel = attribution.write.channel
            part = collapse(coordinate, channel, position, of, trace.layers, trace.residual, stream)
            weight = judged(attribution, part, thresholds, late=of is late, round_number=round_number)
            found[coordinate] = weight
            confirmed += [coordinate] if weight.status == "confirmed" else []
            if round_number == 1:
                along = trace.residual[:, position, channel], stream[:, position, channel]
                profiles[coordinate] = Profile(coordinate, position, trace.layers, *(tuple(a.tolist()) for a in along))
                masking += _masking(coordinate, activations, stream, trace, tokens, thresholds)
        if not confirmed:
            break
        zeroed += tuple(confirmed)
    return Found(tuple(found.values()), first_writes, tuple(masking), profiles)


def _behind(
    runner: Runner, trace: Trace, activations: Sequence[SuperActivation], thresholds: Thresholds
) -> tuple[dict[Coordinate, Attribution], list[Write]]:
    """Return the weights behind the writes of these activations, and the writes.

    A weight may be behind several, at several positions: the largest speaks for it.
    """
    weight_row = lru_cache(maxsize=ROWS_KEPT)(runner.weight_row)
    attributions: list[Attribution] = []
    writes: list[Write] = []
    for change in find_writes(trace.entering, trace.residual, trace.layers, activations, thresholds):
        write, behind = attribute(change, trace, weight_row, thresholds)
        writes.append(write)
        attributions += behind
    largest: dict[Coordinate, Attribution] = {}
    for attribution in sorted(attributions, key=lambda a: -abs(a.write.change)):
        largest.setdefault(attribution.coordinate, attribution)
    return largest, writes


def _place_of_write(write: Write) -> tuple[float, ...]:
    return write.layer, -abs(write.change), write.channel, write.position


def _masking(
    coordinate: Coordinate,
    activations: Sequence[SuperActivation],
    stream: Stream,
    trace: Trace,
    tokens: Sequence[str],
    thresholds: Thresholds,
) -> list[Masking]:
    """Return what zeroing a weight makes of the super activations in channels other than its own."""
    before = {(a.channel, a.position) for a in activations if a.channel % trace.width != coordinate.row}
    now = detect(stream, trace.layers, tokens, thresholds)[0]
    after = {(a.channel, a.position) for a in now if a.channel % trace.width != coordinate.row}
    if before == after:
        return []
    return [Masking(coordinate, tuple(sorted(before - after)), tuple(sorted(after - before)))]


def judged(
    attribution: Attribution, part: float, thresholds: Thresholds, *, late: bool, round_number: int | None
) -> SuperWeight:
    """Return a weight behind a write with its status: zeroing it takes this part of the activation away."""
    status, reason = "confirmed", None
    if part < thresholds.collapse:
        status, reason = "coincident", "grows" if part < 0 else "survives"
    elif late:
        status = reason = "late"
    return super_weight(
        attribution.coordinate,
        attribution.value,
        attribution.share,
        status,
        reason,
        change=attribution.write.change,
        part=part,
        round_number=round_number,
    )


def super_weight(
    coordinate: Coordinate,
    value: float,
    share: float,
    status: str,
    reason: str | None,
    *,
    change: float | None = None,
    part: float | None = None,
    round_number: int | None = None,
) -> SuperWeight:
    """Return a weight of which only its effect and its rank are not yet known."""
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
        tower=coordinate.tower,
        mlp=coordinate.mlp,
        reason=reason,
        change=change,
    )


def static_candidates(
    trace: Trace, activations: Sequence[SuperActivation], outliers: Sequence[Outlier], found: Collection[Coordinate]
) -> list[SuperWeight]:
    """Return the static outliers that are behind no write, with their part of what the MLPs add on their channel.

    Those of blocks that did not run are left out. What moves the stream of the prompt least comes first.
    """
    candidates = {outlier.coordinate: outlier.value for outlier in outliers if outlier.coordinate not in found}
    moved = {c: moved_by(trace, c, value) for c, value in candidates.items() if c.layer in trace.layers}
    in_order = sorted(moved, key=lambda c: (moved[c], c.sort_key))
    return [behind_nothing(trace, activations, c, candidates[c]) for c in in_order]


def moved_by(trace: Trace, coordinate: Coordinate, value: float) -> float:
    """Return what a weight gives, over the norm of the stream after its block, at the token where that is most.

    0 where no token of the prompt comes to it, and where it does not write to the stream.
    """
    layer, row, most = coordinate.layer, coordinate.row, 0.0
    if layer not in trace.outputs:
        return most
    stream = trace.residual[trace.layers.index(layer)].astype(np.float64)
    for entry in trace.entries[layer]:
        inside = entry.positions < len(stream)  # some models pad their inputs to a window
        if entry.place == coordinate.place and inside.any():
            positions = entry.positions[inside]
            given, added = (each[layer][entry.part, positions, row] for each in (trace.outputs, trace.added))
            factors = added.astype(np.float64) / np.where(given == 0, np.inf, given) * entry.routed[inside]
            norms = np.linalg.norm(stream[positions], axis=1)
            parts = value * factors * entry.inputs[inside, coordinate.col] / np.where(norms == 0, np.inf, norms)
            most = max(most, float(np.abs(parts).max()))
    return most


def behind_nothing(
    trace: Trace, activations: Sequence[SuperActivation], coordinate: Coordinate, value: float
) -> SuperWeight:
    """Return a weight that is behind no write, with its part of what the MLPs of its block add on its channel.

    That is at the largest super activation on the channel while it lasts, else at the position where it is largest.
    """
    layer, share = coordinate.layer, 0.0
    if layer not in trace.outputs:  # as of what writes a latent
        return super_weight(coordinate, value, share, "rejected", "latent")
    on_channel = [a for a in activations if a.channel % trace.width == coordinate.row]
    part = next((entry.part for entry in trace.entries[layer] if entry.place == coordinate.place), None)
    if part is not None:  # else it is of an expert that had no position
        here = [a for a in on_channel if a.layer <= layer <= a.last_layer]
        along = np.abs(trace.outputs[layer][part, :, coordinate.row])
        position = here[0].position if here else int(np.argmax(along))
        for place, entered, whole in trace.at(layer, position):
            if place == coordinate.place:
                share = value * float(entered[coordinate.col] / whole[coordinate.row])
    return super_weight(coordinate, value, share, "rejected", "share" if on_channel else "channel")
