"""Sun et al.: the super activations themselves set to zero, or to their mean, and what that does to attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import plain
from analyzer.base.text import count_of
from analyzer.experiments.lab.records import Arm, Claim, Experiment, Measured, Outcome
from analyzer.experiments.reports.wording import change_of
from analyzer.forward.edits import UNTOUCHED, Intervention, StreamEdit, zeroing

if TYPE_CHECKING:
    from analyzer.experiments.activations.glance import Glance
    from analyzer.experiments.activations.places import Activation
    from analyzer.experiments.lab.opening import Lab

ZERO, MEAN, MEDIANS, WEIGHTS = "set to zero", "set to their mean", "medians set to zero", "weights zeroed"
LISTED = 12
HARMLESS = 0.05  # of what zero costs


@dataclass(frozen=True)
class Side:
    """What was found over windows that begin in one way: with the token that begins a text, or without."""

    bos: bool
    arms: tuple[Measured, ...]
    activations: list[dict[str, Any]]
    writes: list[dict[str, Any]]


def run(lab: Lab) -> Outcome:
    """Set the super activations of each window, where they begin, to something else; without BOS and with it."""
    sides = [_side(lab.begun(bos=False), lab, bos=False)]
    why: str | None = None
    if lab.runner.masked or lab.runner.start is not None:
        why = "it does not go on with a text"
    else:
        try:
            other = lab.begun(bos=True)
        except ForwardError:
            why = "its tokenizer has no token that begins a text"
        else:
            sides.append(_side(other, lab, bos=True))
    lab.protocol["bos"] = "both" if sides[1:] else False
    findings = [sentence for side in sides for sentence in _findings(side)]
    if why is not None:
        findings.append(f"Windows were not begun with a BOS token: {why}.")
    more = {
        "activations": [each for side in sides for each in side.activations],
        "writes": [each for side in sides for each in side.writes],
    }
    return Outcome(
        tuple(arm for side in sides for arm in side.arms),
        tuple(findings),
        more,
        tuple(_tables(more)),
        (_claim(sides[0]),),
    )


def _side(here: Lab, lab: Lab, *, bos: bool) -> Side:
    from analyzer.experiments.activations.glance import glance
    from analyzer.experiments.activations.places import find_activations, means_elsewhere
    from analyzer.experiments.lab.costs import cost_of

    untouched, found = find_activations(here)
    means = means_elsewhere(found)
    every = [[(each, 0.0, each.channel) for each in window] for window in found]
    to_mean = [
        [(each, mean, each.channel) for each, mean in zip(*pair, strict=True) if mean is not None]
        for pair in zip(found, means, strict=True)
    ]
    medians = [[(each, 0.0, each.other) for each in window] for window in found]
    ending = ", after BOS" if bos else ""
    arms = []
    for name, sets in ((ZERO, every), (MEAN, to_mean), (MEDIANS, medians)):
        if any(sets):
            count = sum(map(len, sets)) / len(sets)
            arms.append(Arm(name + ending, [_setting(each) for each in sets], facts={"bos": bos, "set": count}))
    weights = [weight.coordinate for weight in here.weights]
    arms.append(Arm(WEIGHTS + ending, zeroing(weights), len(weights), facts={"bos": bos, "set": 0.0}))
    losses = here.losses(arms)
    lab.runs += here.runs
    channels = sorted({each.channel for window in found for each in window})
    every_arm = [Arm(f"original{ending}", UNTOUCHED, facts={"bos": bos, "set": 0.0}), *arms]
    pairs = [(number, arm) for number in range(len(here.windows)) for arm in every_arm]
    seen = glance(here.runner, [here.windows[n] for n, _ in pairs], [arm.of(number) for number, arm in pairs], channels)
    by_arm = [seen[number :: len(every_arm)] for number in range(len(every_arm))]
    measured = [
        Measured(
            arm.name, arm.zeroed, cost_of(untouched, cost), facts={**arm.facts, **_seen(here, by_arm[0], own, found)}
        )
        for arm, cost, own in zip(every_arm, np.concatenate([untouched[None], losses]), by_arm, strict=True)
    ]
    return Side(bos, tuple(measured), _kinds(found, bos), list(_writes(here, bos)))


def _setting(values: Sequence[tuple[Activation, float, int]]) -> Intervention:
    """Return the intervention that sets something to a value where each super activation begins."""
    by_layer: dict[int, dict[tuple[int, int], float]] = {}
    for each, value, channel in values:
        by_layer.setdefault(each.layer, {})[each.position, channel] = value
    return Intervention(
        tuple(
            StreamEdit(layer, frozenset((*place, value) for place, value in entries.items()))
            for layer, entries in sorted(by_layer.items())
        )
    )


def _seen(
    lab: Lab, before: Sequence[Glance], after: Sequence[Glance], found: Sequence[Sequence[Activation]]
) -> dict[str, Any]:
    """Return what an arm leaves of the super activations, at their largest, and the share of heads with a sink."""
    layers = list(lab.runner.layers)
    channels = sorted({each.channel for window in found for each in window})
    left = []
    for old, new, window in zip(before, after, found, strict=True):
        for each in window:
            if each.position < old.channels.shape[1]:
                blocks = slice(layers.index(each.layer), layers.index(each.last) + 1)
                column = channels.index(each.channel)
                peaks = [np.abs(one.channels[blocks, each.position, column]).max() for one in (old, new)]
                left.append(float(peaks[1] / peaks[0]))
    facts: dict[str, Any] = {"left": float(np.mean(left)) if left else None}
    for name, first in (("sinks", False), ("sinks_first", True)):
        shares = [share for each in after if (share := each.sinks(first=first)) is not None]
        facts[name] = float(np.mean(shares)) if shares else None
    return facts


def _kinds(found: Sequence[Sequence[Activation]], bos: bool) -> list[dict[str, Any]]:
    """Return what the super activations of all windows are, those of one block, channel and place together."""
    kinds: dict[tuple[int, int, bool], list[tuple[int, Activation]]] = {}
    for number, window in enumerate(found):
        for each in window:
            kinds.setdefault(each.kind, []).append((number, each))
    rows = [
        {
            "bos": bos,
            "layer": layer,
            "channel": channel,
            "first_position": first,
            "windows": len({number for number, _ in members}),
            "count": len(members),
            "mean": float(np.mean([each.value for _, each in members])),
            "ratio": max(each.ratio for _, each in members),
            "massive": sum(each.is_massive for _, each in members),
        }
        for (layer, channel, first), members in kinds.items()
    ]
    return sorted(rows, key=lambda row: (-row["windows"], -abs(row["mean"]), row["layer"], row["channel"]))


def _writes(lab: Lab, bos: bool) -> Iterator[dict[str, Any]]:
    """Yield what writes the super activations at the beginning of the first window, as verify attributes it."""
    from functools import lru_cache

    from analyzer.experiments.activations.glance import TOKENS
    from analyzer.verify.activations.attribution import attribute, find_writes
    from analyzer.verify.activations.detection import detect
    from analyzer.verify.settings import DEFAULT_THRESHOLDS as THRESHOLDS

    ids = lab.windows[0].ids[:TOKENS]
    trace = lab.runner.trace(ids)
    tokens = lab.tokens.texts(lab.tokens.judged(ids))
    activations, _ = detect(trace.residual, trace.layers, tokens, THRESHOLDS)
    weight_row = lru_cache(maxsize=LISTED)(lab.runner.weight_row)
    changes = find_writes(trace.entering, trace.residual, trace.layers, activations, THRESHOLDS)
    for change in sorted(changes, key=lambda each: -abs(each[3])):
        write, behind = attribute(change, trace, weight_row, THRESHOLDS)
        yield {
            "bos": bos,
            "layer": write.layer,
            "channel": write.channel,
            "position": write.position,
            "token": tokens[write.position],
            "change": write.change,
            "weights": [plain(each.coordinate) | {"value": each.value, "share": each.share} for each in behind],
        }


def _findings(side: Side) -> Iterator[str]:
    begun = "After a BOS token" if side.bos else "Without a BOS token"
    count, kinds = side.arms[1].facts["set"], side.activations
    arms = {arm.name.partition(",")[0]: arm for arm in side.arms}
    if ZERO not in arms:
        yield f"{begun} no window has a super activation: there is nothing to set."
        return
    massive = sum(each["massive"] for each in kinds)
    channels = ", ".join(map(str, sorted({each["channel"] for each in kinds})[:6]))
    yield (
        f"{begun} a window has {count:.1f} super activations (channels {channels}), of which {massive} in all are "
        "massive by the criterion of Sun et al. (above 100, and 1,000 times the median)."
    )
    zero, medians = arms[ZERO].cost, arms[MEDIANS].cost
    assert zero is not None
    yield f"Setting them to zero {change_of(zero)}; as many activations of median size {change_of(medians)}."
    if MEAN in arms:
        mean = arms[MEAN].cost
        assert mean is not None
        said = ""
        if not math.isfinite(zero.delta) or (zero.is_sure and zero.delta > 0):
            harmless = not math.isfinite(zero.delta) or abs(mean.delta) <= HARMLESS * zero.delta
            said = (
                ": what they are is a constant, as Sun et al. say, and the model needs it"
                if harmless and math.isfinite(mean.delta)
                else ": a constant does not replace them"
            )
        yield f"Setting them to their mean over the other windows {change_of(mean)}{said}."
    else:
        yield "They have no mean over other windows: give more windows (--windows)."
    before, after = (arms[name].facts["sinks"] for name in ("original", ZERO))
    if before is None:
        yield "Its attention gives no probabilities to look at: nothing is said of sinks."
    else:
        yield (
            f"A sink, a position that gets more than 0.3, have {before:.0%} of the heads before and {after:.0%} after "
            f"they were set to zero, {arms[WEIGHTS].facts['sinks']:.0%} with the weights zeroed."
        )


def _claim(side: Side) -> Claim:
    """Return whether the model needs its super activations, and their mean will do, as Sun et al. say."""
    text = "super activations are constants that the model needs: zero breaks it, their mean does not"
    arms = {arm.name.partition(",")[0]: arm.cost for arm in side.arms}
    zero, mean = arms.get(ZERO), arms.get(MEAN)
    if zero is None or mean is None:
        return Claim(text, None, "no window has a super activation, or none that others have too")
    why = f"set to zero {change_of(zero)}, to their mean {change_of(mean)}"
    if math.isfinite(zero.delta) and not (zero.is_sure and zero.delta > 0):
        return Claim(text, False if zero.is_sure else None, why)
    return Claim(text, math.isfinite(mean.delta) and mean.delta <= HARMLESS * zero.delta, why)


def _tables(more: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    if more["activations"]:
        header = ("BOS", "layer", "channel", "where", "windows", "count", "mean", "largest ratio", "massive")
        yield (
            "Super activations, by where they begin",
            header,
            [
                [
                    _yes(each["bos"]),
                    each["layer"],
                    each["channel"],
                    "first token" if each["first_position"] else "later",
                    each["windows"],
                    each["count"],
                    f"{each['mean']:+.5g}",
                    f"{each['ratio']:,.0f}",
                    each["massive"],
                ]
                for each in more["activations"][:LISTED]
            ],
        )
    if more["writes"]:
        columns = ("BOS", "layer", "channel", "position", "token", "change", "weight", "share")
        yield (
            "What writes them, at the beginning of the first window",
            columns,
            [
                [
                    _yes(each["bos"]),
                    each["layer"],
                    each["channel"],
                    each["position"],
                    shown(repr(each["token"]), 16),
                    f"{each['change']:+.5g}",
                    *_largest(each["weights"]),
                ]
                for each in more["writes"][:LISTED]
            ],
        )


def _largest(weights: Sequence[dict[str, Any]]) -> tuple[str, str]:
    if not weights:
        return "none alone", "-"
    first = weights[0]
    others = f" and {count_of(len(weights) - 1, 'other')}" if weights[1:] else ""
    return f"{first['row']},{first['col']}{others}", f"{first['share']:.0%}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


EXPERIMENT = Experiment(
    name="massive",
    says="""Set the super activations to zero, and to their mean, and look at attention sinks (Sun et al.).

    In each window the super activations are set where they begin: to zero, to their mean over the other windows; and
    as many activations of median size to zero. Without a BOS token and with one, side by side.

    \b
    Examples:
      superweight experiment massive ./my-model --windows 8 --length 1024
      superweight experiment massive ./my-model --weight 11,507,1229 --json | jq .writes
    """,
    run=run,
)
