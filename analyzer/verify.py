"""The dynamic verifier: which weights write the super activations of a prompt, and what zeroing them does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.detection import Attribution, Thresholds, attribute, collapse, detect, find_writes, layer_maxima
from analyzer.errors import ForwardError
from analyzer.records import (
    Coordinate,
    JointZeroing,
    Outlier,
    SuperActivation,
    SuperWeight,
    VerifyResult,
    Write,
)

if TYPE_CHECKING:
    from analyzer.forward import HookedModel, Trace

MIN_TOKENS = 3  # with fewer, a channel that is large at one position is large at half of them

# A super weight is critical if zeroing it raises the loss by at least this part of it ...
CRITICAL_INCREASE = 0.01
# ... and by at least this multiple of the worst that zeroing a control weight does.
CRITICAL_OVER_CONTROLS = 10.0
# A weight that costs less than this on the first window of the text is inert, and the rest of it is not run.
SCREEN_INCREASE = CRITICAL_INCREASE / 4
NEAREST_CONTROLS = 2
RANDOM_CONTROLS = 1
CONTROL_SEED = 0

MAX_ROUNDS = 5  # of zeroing what was found and looking again
EFFECT_PARAMETERS = {
    "critical_increase": CRITICAL_INCREASE,
    "critical_over_controls": CRITICAL_OVER_CONTROLS,
    "screen_increase": SCREEN_INCREASE,
    "nearest_controls": NEAREST_CONTROLS,
    "random_controls": RANDOM_CONTROLS,
    "control_seed": CONTROL_SEED,
    "max_rounds": MAX_ROUNDS,
}

DEFAULT_THRESHOLDS = Thresholds()
TRACE_BATCH = 8  # interventions in one pass over the prompt; bounds what the recorded streams take

Progress = Callable[[str, int, int], object]
"""Called with what is being done, how much of it is done, and how much there is."""


def verify(
    model: HookedModel,
    *,
    prompt: str,
    text: str,
    outliers: Sequence[Outlier],
    rank: Callable[[Sequence[Coordinate]], Mapping[Coordinate, int]],
    revision: str | None = None,
    commit: str | None = None,
    model_type: str | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    progress: Progress = lambda *_: None,
) -> VerifyResult:
    """Find the super weights behind the prompt's super activations and measure what each does.

    `outliers` are the static scan's, `rank` gives the rank by |W| of any coordinate. Losses are over `text`.
    Raises ForwardError where the model cannot be run on them.
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
    progress("prompt", 0, 1)
    trace = model.trace(ids)
    if not model.is_causal(ids, trace):
        raise ForwardError(f"{model.name} is not a causal language model: it can be scanned, but not yet verified")
    activations, features = detect(trace.residual, trace.layers, tokens, thresholds)
    found, writes = _search(model, ids, tokens, trace, activations, thresholds)
    progress("prompt", 1, 1)
    weights, joint = _measure_effects(model, found, model.windows(text), progress) if found else ([], None)
    weights += _rejected(model, trace, activations, outliers, {w.coordinate for w in weights})
    ranks = rank([weight.coordinate for weight in weights])
    weights = [replace(weight, static_rank=ranks[weight.coordinate]) for weight in weights]
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
        layers=layer_maxima(trace.layers, trace.residual, trace.inputs.__getitem__, trace.outputs.__getitem__),
        super_activations=activations,
        outlier_features=features,
        writes=writes,
        super_weights=tuple(sorted(weights, key=_importance)),
        joint=joint,
    )


def _importance(weight: SuperWeight) -> tuple[object, ...]:
    """Order: critical before inert, confirmed before coincident before rejected, then by what zeroing costs."""
    return (
        ("critical", "inert", None).index(weight.effect),
        ("confirmed", "coincident", "rejected").index(weight.status),
        -(weight.loss_zeroed or 0.0),
        weight.coordinate.sort_key,
    )


def _search(
    model: HookedModel,
    ids: Sequence[int],
    tokens: Sequence[str],
    trace: Trace,
    activations: Sequence[SuperActivation],
    thresholds: Thresholds,
) -> tuple[list[SuperWeight], tuple[Write, ...]]:
    """Attribute every write, zero each weight behind one, and look again with the confirmed ones zeroed.

    Returns the weights behind writes, not yet with their effects, and the writes of the untouched model. A weight
    that only a zeroed one had masked is judged in the model without that one.
    """
    found: dict[Coordinate, SuperWeight] = {}
    zeroed: tuple[Coordinate, ...] = ()
    first_writes: tuple[Write, ...] = ()
    for round_number in range(MAX_ROUNDS):
        if round_number:
            trace = model.trace(ids, zeroed)
            activations, _ = detect(trace.residual, trace.layers, tokens, thresholds)
        attributions: list[Attribution] = []
        writes: list[Write] = []
        for change in find_writes(trace.entering, trace.residual, trace.layers, activations, thresholds):
            layer, position, channel, _ = change
            row = model.weight_row(layer, channel)
            entered, left = trace.inputs[layer][position], trace.outputs[layer][position]
            write, behind = attribute(change, row, entered, left, thresholds)
            writes.append(write)
            attributions += behind
        if not round_number:
            first_writes = tuple(sorted(writes, key=lambda w: (w.layer, -abs(w.change))))
        # A weight may be behind several writes, at several positions: the largest speaks for it.
        new: dict[Coordinate, Attribution] = {}
        for attribution in sorted(attributions, key=lambda a: -abs(a.write.change)):
            if attribution.coordinate not in found:
                new.setdefault(attribution.coordinate, attribution)
        judged = list(_judge(model, ids, trace, activations, list(new.values()), zeroed, thresholds))
        found |= {weight.coordinate: weight for weight in judged}
        confirmed = tuple(weight.coordinate for weight in judged if weight.status == "confirmed")
        if not confirmed:
            break
        zeroed += confirmed
    return list(found.values()), first_writes


def _judge(
    model: HookedModel,
    ids: Sequence[int],
    trace: Trace,
    activations: Sequence[SuperActivation],
    attributions: Sequence[Attribution],
    zeroed: tuple[Coordinate, ...],
    thresholds: Thresholds,
) -> Iterator[SuperWeight]:
    """Yield each attributed weight with the status that zeroing it, beside those already zeroed, gives it."""
    for start in range(0, len(attributions), TRACE_BATCH):
        batch = attributions[start : start + TRACE_BATCH]
        streams = model.residuals(ids, [(*zeroed, attribution.coordinate) for attribution in batch])
        for attribution, stream in zip(batch, streams, strict=True):
            coordinate, position = attribution.coordinate, attribution.write.position
            part = collapse(coordinate, position, activations, trace.layers, trace.residual, stream)
            status = "confirmed" if part >= thresholds.collapse else "coincident"
            yield _super_weight(coordinate, attribution.value, attribution.share, status, part)


def _super_weight(
    coordinate: Coordinate, value: float, share: float, status: str, part: float | None = None
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
    )


def _rejected(
    model: HookedModel,
    trace: Trace,
    activations: Sequence[SuperActivation],
    outliers: Sequence[Outlier],
    found: set[Coordinate],
) -> list[SuperWeight]:
    """Return the static outliers on a super activation's channel, while it lasts, that are behind no write of it."""
    rejected = []
    for outlier in outliers:
        coordinate = outlier.coordinate
        here = [a for a in activations if a.channel == outlier.row and a.layer <= outlier.layer <= a.last_layer]
        if coordinate in found or not here:
            continue
        position = here[0].position  # of the largest one
        total = float(trace.outputs[outlier.layer][position, outlier.row])
        term = outlier.value * float(trace.inputs[outlier.layer][position, outlier.col])
        rejected.append(_super_weight(coordinate, outlier.value, term / total if total else 0.0, "rejected"))
    return rejected


def _measure_effects(
    model: HookedModel, found: Sequence[SuperWeight], windows: Sequence[Sequence[int]], progress: Progress
) -> tuple[list[SuperWeight], JointZeroing | None]:
    """Return the weights with their losses and effects, and the loss with all confirmed ones zeroed.

    All are run on the first window; those that cost next to nothing there are inert and go no further. The others
    are run on the whole text, and those that cost enough to be critical get their controls.
    """
    first, rest = windows[:1], windows[1:]
    at_first = _losses(model, first, [(), *((weight.coordinate,) for weight in found)], "screening", progress)
    if not math.isfinite(at_first[0]):
        raise ForwardError(f"{model.name}: its loss on the evaluation text is not finite: its weights hold NaN or Inf")
    screened = dict(zip([None, *(weight.coordinate for weight in found)], at_first, strict=True))
    remaining = [c for c in screened if c and screened[c] - screened[None] >= SCREEN_INCREASE * screened[None]]

    confirmed = tuple(weight.coordinate for weight in found if weight.status == "confirmed")
    at_rest = _losses(model, rest, [(), *((c,) for c in remaining)], "evaluation text", progress)
    losses = {
        c: _pooled((first, screened[c]), (rest, loss)) for c, loss in zip([None, *remaining], at_rest, strict=True)
    }
    loss = losses[None]
    suspects = [c for c in remaining if losses[c] - loss >= CRITICAL_INCREASE * loss]
    controls = {c: _controls(model, c, avoid={weight.coordinate for weight in found}) for c in suspects}
    distinct = list(dict.fromkeys(control for group in controls.values() for control in group))
    interventions: list[tuple[Coordinate, ...]] = [(c,) for c in distinct]
    if len(confirmed) > 1:
        interventions.append(confirmed)
    measured = _losses(model, windows, interventions, "controls", progress)
    joint = JointZeroing(confirmed, measured.pop()) if len(confirmed) > 1 else None
    control_losses = dict(zip(distinct, measured, strict=True))

    def with_effect(weight: SuperWeight) -> SuperWeight:
        c = weight.coordinate
        if c not in losses:
            return replace(
                weight, effect="inert", loss=screened[None], loss_zeroed=screened[c], loss_tokens=_predicted(first)
            )
        worst = max((control_losses[control] for control in controls.get(c, ())), default=None)
        critical = worst is not None and losses[c] - loss >= CRITICAL_OVER_CONTROLS * max(worst - loss, 0.0)
        return replace(
            weight,
            effect="critical" if critical else "inert",
            loss=loss,
            loss_zeroed=losses[c],
            control_loss_max=worst,
            loss_tokens=_predicted(windows),
        )

    return [with_effect(weight) for weight in found], joint


def _predicted(windows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens the loss over these windows is a mean of."""
    return sum(len(window) - 1 for window in windows)


def _pooled(*parts: tuple[Sequence[Sequence[int]], float]) -> float:
    """Return the loss over all parts from the loss over each."""
    return sum(_predicted(windows) * loss for windows, loss in parts) / sum(_predicted(windows) for windows, _ in parts)


def _losses(
    model: HookedModel,
    windows: Sequence[Sequence[int]],
    interventions: Sequence[tuple[Coordinate, ...]],
    what: str,
    progress: Progress,
) -> list[float]:
    """Return the loss of each intervention over the windows; zeros where there are no windows."""
    done, total = 0, len(windows) * len(interventions)

    def advance(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(what, done, total)

    progress(what, 0, total)
    return model.losses(windows, interventions, advance) if total else [0.0] * len(interventions)


def _controls(model: HookedModel, coordinate: Coordinate, avoid: set[Coordinate]) -> list[Coordinate]:
    """Return weights of the same tensor, in other rows: those of nearest magnitude, and random ones."""
    layer, row = coordinate.layer, coordinate.row
    rows, cols = model.down_shape(layer)
    magnitude = abs(model.weight_row(layer, row)[coordinate.col])
    nearest: list[tuple[float, int, int]] = []
    for other in range(rows):
        if other != row:
            distance: NDArray[np.float64] = np.abs(np.abs(model.weight_row(layer, other)) - magnitude)
            col = int(np.argmin(distance))
            nearest.append((float(distance[col]), other, col))
    generator = np.random.default_rng([CONTROL_SEED, layer])  # the same for all weights of the tensor
    others = [Coordinate(layer, None, r, c) for _, r, c in sorted(nearest)]
    randoms = (
        Coordinate(layer, None, int(generator.integers(rows)), int(generator.integers(cols))) for _ in range(10_000)
    )
    picked = [c for c in others if c not in avoid][:NEAREST_CONTROLS]
    unlike = (c for c in randoms if c.row != row and c not in avoid)
    return picked + [c for _, c in zip(range(RANDOM_CONTROLS), unlike, strict=False)]
