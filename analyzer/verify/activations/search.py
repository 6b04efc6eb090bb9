"""Who writes the super activations: attribution, zeroing, and looking again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    thresholds: Thresholds,
    *,
    early_stop: bool,
) -> Found:
    """Attribute every write, zero each weight behind one, and look again with the confirmed ones zeroed.

    `trace` and `activations` are the untouched model's. A weight that only a zeroed one had masked is judged in the
    model without that one. With `early_stop` there is no looking again.
    """
    ids, tokens = prepared.ids, prepared.tokens
    found: dict[Coordinate, SuperWeight] = {}
    zeroed: tuple[Coordinate, ...] = ()
    first_writes: tuple[Write, ...] = ()
    masking: list[Masking] = []
    profiles: dict[Coordinate, Profile] = {}
    for round_number in range(1, 2 if early_stop else MAX_ROUNDS + 1):
        if round_number > 1:
            trace = runner.trace(ids, zeroing(zeroed))
            activations, _ = detect(trace.residual, trace.layers, tokens, thresholds)
        attributions: list[Attribution] = []
        writes: list[Write] = []
        for change in find_writes(trace.entering, trace.residual, trace.layers, activations, thresholds):
            write, behind = attribute(change, trace, runner.weight_row, thresholds)
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
        interventions = [zeroing((*zeroed, coordinate)) for coordinate in new]
        streams = runner.streams([ids] * len(new), interventions, last_layer=trace.layers[-1])
        for attribution, stream in zip(new.values(), streams, strict=True):
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
    return Found(tuple(found.values()), first_writes, tuple(masking), profiles)


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
        tower=coordinate.tower,
        mlp=coordinate.mlp,
    )


def static_candidates(
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
