"""Table 1: the weights zeroed, as many others zeroed, and zeroed with the super activation restored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyzer.base.records import Coordinate
from analyzer.experiments.controls.others import KINDS, Others, choose, count_of_places, zeroed_as_loaded
from analyzer.experiments.lab.records import Arm, Claim, Cost, Experiment, Measured, Option, Outcome, whole_number
from analyzer.experiments.reports.wording import change_of, is_above, percent_of, plus_minus
from analyzer.forward.edits import Intervention, PlacedEdit, zeroing

if TYPE_CHECKING:
    from analyzer.experiments.lab.opening import Lab

OTHERS = tuple(map(Others.parse, ("global:7000", "per-tensor:1e-6", "same-tensor:7000", "random:7000")))
RESTORED = (4, 16, 64)
PEAK, EVERYWHERE = "restored at peak", "restored at super activation"
ALL = "all zeroed"
ORDER = math.log(10)  # nats by which a perplexity is ten times another
NOTHING = 0.05  # of an effect, the most that is left where nothing is


def run(lab: Lab, *, others: Sequence[Others], restore: Sequence[int], complements: bool = True) -> Outcome:
    """Zero the weights, and others; restore what they write at some positions; and the `complements` of that.

    Restoring a channel of a down projection's output at a position is the same as leaving the weight its effect there,
    since no other weight of it writes the channel by that input. At all positions it would be the untouched model.
    """
    from analyzer.experiments.lab.costs import cost_of
    from analyzer.experiments.lab.opening import ORIGINAL, measured_of

    coordinates = [weight.coordinate for weight in lab.weights]
    several = len(coordinates) > 1
    joint = ALL if several else f"{coordinates[0]} zeroed"
    arms = [Arm(f"{c} zeroed", zeroing([c]), 1) for c in coordinates if several]
    arms.append(Arm(joint, zeroing(coordinates), len(coordinates)))
    if len(coordinates) > 2:
        arms += [Arm(f"all but {c} zeroed", zeroing(_but(coordinates, c)), len(coordinates) - 1) for c in coordinates]
    restoring, never_large = _restoring(lab, coordinates, sorted(set(restore)), complements=complements)
    chosen, unchangeable = [], bool(lab.runner.blocks.encodings or lab.runnable.checkpoint.metadata)
    for number, each in enumerate(() if unchangeable else others, start=1):
        lab.progress("choosing others", number, len(others))
        chosen.append(_other(lab, coordinates, each))
    every = [ORIGINAL, *arms, *chosen, *restoring]
    losses = lab.losses(every)
    measured = list(measured_of(every, losses))
    number, effect = next((number, each) for number, each in enumerate(measured) if each.name == joint)
    above = {arm.name: cost_of(own, losses[number]) for arm, own in zip(every, losses, strict=True)}
    restored = {arm.name for arm in restoring if arm.name.startswith("restored")}
    measured = [_with_recovery(each, effect) if each.name in restored else each for each in measured]
    findings = [*_findings(measured, effect, [arm.name for arm in chosen])]
    if never_large:
        findings.append("Its super activation is at no position of this text by the test that verify makes.")
    if unchangeable and others:
        findings.append("No others were zeroed: weights of quantized files are not changed as they are loaded, yet.")
    claims = _claims(measured, effect, [arm.name for arm in chosen], len(coordinates), above)
    return Outcome(tuple(measured), tuple(findings), claims=tuple(claims))


def _but(coordinates: Sequence[Coordinate], left: Coordinate) -> list[Coordinate]:
    return [c for c in coordinates if c != left]


def _other(lab: Lab, coordinates: Sequence[Coordinate], others: Others) -> Arm:
    places = choose(lab.runnable, coordinates, others, seed=lab.settings.seed)
    count = count_of_places(places)
    return Arm(f"others: {others}", zeroed=count, change=zeroed_as_loaded(places), facts={"others": str(others)})


def _restoring(
    lab: Lab, coordinates: Sequence[Coordinate], counts: Sequence[int], *, complements: bool
) -> tuple[list[Arm], bool]:
    """Return the arms that restore, or zero, at some positions; and whether no position has the super activation."""
    from analyzer.experiments.lab.observing import Written, observe

    seen: list[dict[Coordinate, Written]] = []
    for number, window in enumerate(lab.windows, start=1):
        seen.append(observe(lab.runner, window.ids, coordinates))
        lab.progress("positions", number, len(lab.windows))
    zeroed = len(coordinates)

    def arm(name: str, at: Sequence[dict[Coordinate, frozenset[int]]], *, inside: bool = False) -> Arm:
        factors = {"at": 0.0, "elsewhere": 1.0} if inside else {}
        edits = [Intervention(tuple(PlacedEdit(c, here[c], **factors) for c in coordinates)) for here in at]
        positions = sum(len(here[c]) for here in at for c in coordinates) / (len(at) * zeroed)
        return Arm(name, edits, zeroed, facts={"positions": positions})

    def largest(count: int) -> list[dict[Coordinate, frozenset[int]]]:
        return [{c: written.largest(count) for c, written in window.items()} for window in seen]

    arms = [arm(PEAK, largest(1))]
    large = [{c: written.super_positions for c, written in window.items()} for window in seen]
    known = all(written.large is not None for window in seen for written in window.values())
    somewhere = known and any(here[c] for here in large for c in coordinates)
    if somewhere:
        arms.append(arm(EVERYWHERE, large))
    most = len(lab.windows[0].ids)
    arms += [arm(f"restored at {count} largest", largest(count)) for count in counts if 1 < count < most]
    if complements:
        arms.append(arm("zeroed at peak alone", largest(1), inside=True))
    if complements and somewhere:
        arms.append(arm("zeroed at super activation alone", large, inside=True))
    return arms, known and not somewhere


def _with_recovery(arm: Measured, effect: Measured) -> Measured:
    from analyzer.experiments.lab.costs import recovered_by

    assert arm.cost is not None
    assert effect.cost is not None
    return replace(arm, recovered=recovered_by(effect.cost, arm.cost))


def _findings(measured: Sequence[Measured], effect: Measured, others: Iterable[str]) -> Iterator[str]:
    by_name = {each.name: each for each in measured}
    what = "Zeroing them" if effect.name == ALL else "Zeroing it"
    yield f"{what} {change_of(effect.cost)}."
    controls = [by_name[name] for name in others if by_name[name].zeroed]
    if controls:
        worst = max(controls, key=lambda each: each.cost.delta if each.cost else 0.0)
        said = KINDS[worst.name.removeprefix("others: ").partition(":")[0]]
        yield f"Zeroing {worst.zeroed:,} others ({said}) {change_of(worst.cost)}: the costliest of these controls."
        less = [each for each in controls if each.cost and effect.cost and each.cost.delta < effect.cost.delta]
        more = [each for each in controls if each not in less]
        own = "They cost" if effect.name == ALL else "It costs"
        parts = [f"{word} than {_listed(those)}" for word, those in (("more", less), ("no more", more)) if those]
        yield f"{own} {' and '.join(parts)}."
    peak, everywhere = by_name[PEAK], by_name.get(EVERYWHERE)
    if peak.recovered is not None:
        also = "" if everywhere is None else f", at every position of the super activation {percent_of(everywhere)}"
        yield (
            f"Restored at the one position where it writes most, as the authors did, {percent_of(peak)} of the "
            f"effect is taken back{also}."
        )


def _claims(
    measured: Sequence[Measured], effect: Measured, others: Sequence[str], weights: int, above: Mapping[str, Cost]
) -> Iterator[Claim]:
    """Yield the claims; `above` is what the effect is above each arm, window by window."""
    by_name = {each.name: each for each in measured}
    worst = max(measured[1 : 1 + weights], key=lambda each: each.cost.delta if each.cost else 0.0)
    assert worst.cost is not None
    yield Claim(
        "zeroing a single super weight raises perplexity by orders of magnitude",
        is_above(worst.cost, Cost(0.0, ORDER, ORDER, ORDER)),
        f"{worst.name}, the loss changes by {plus_minus(worst.cost)} nats, and one order of magnitude is {ORDER:.4f}",
    )
    largest = [by_name[name] for name in others if by_name[name].facts["others"].startswith("global")]
    yield _against(effect, max(largest, key=lambda each: each.zeroed, default=None), above)
    yield _partly(effect, by_name[PEAK], above[PEAK])


def _against(effect: Measured, control: Measured | None, above: Mapping[str, Cost]) -> Claim:
    text = "zeroing super weights costs more than zeroing thousands of others that are larger"
    if control is None or not control.zeroed or control.cost is None or effect.cost is None:
        return Claim(text, None, "the largest others of the whole model were not zeroed")
    own, others = plus_minus(effect.cost), plus_minus(control.cost)
    more = above[control.name]
    why = (
        f"{effect.name}, it is {own} nats, and {others} with the {control.zeroed:,} largest others zeroed, a "
        f"difference of {plus_minus(more)}"
    )
    if not (math.isfinite(effect.cost.delta) and math.isfinite(control.cost.delta)):
        return Claim(text, is_above(effect.cost, control.cost), why)
    return Claim(text, more.delta > 0 if more.is_sure else None, why)


def _partly(effect: Measured, peak: Measured, above: Cost) -> Claim:
    text = "restoring the super activation takes back a part of the effect, and not all of it"
    if peak.recovered is None or peak.cost is None or effect.cost is None or effect.cost.delta <= 0:
        return Claim(text, None, f"{effect.name}, there is no sure loss to take back")
    why = f"restored at its peak {percent_of(peak)} of it is taken back, and {plus_minus(peak.cost)} nats are left"
    back = above.delta > 0 if above.is_sure else None
    left = is_above(peak.cost, Cost(0.0, 0.0, 0.0, 0.0))
    if back and not left:
        nothing = peak.cost.delta_high is not None and peak.cost.delta_high < NOTHING * effect.cost.delta
        return Claim(text, False if nothing else None, why)
    return Claim(text, back, why)


def _listed(controls: Sequence[Measured]) -> str:
    return ", ".join(f"{each.zeroed:,} others ({each.facts['others'].partition(':')[0]})" for each in controls)


EXPERIMENT = Experiment(
    name="prune",
    says="""Zero the weights, as many others, and restore the super activation (Table 1).

    Each weight is zeroed alone, all jointly, and all but one; then others in their place, and the weights at all
    positions but some. --others tells how many really were zeroed.

    \b
    Examples:
      superweight experiment prune ./my-model
      superweight experiment prune huggyllama/llama-7b --weight 2,3968,7003 --data c4 --windows 32
      superweight experiment prune ./my-model --others same-tensor:1000 --others random:1000 --json
    """,
    run=run,
    options=(
        Option(
            "others",
            "Weights to zero as controls, of all matrices of the blocks or of those of the weights: N of the largest "
            "(global, same-tensor), N at random, or of each matrix a part; may be given again.",
            Others.parse,
            OTHERS,
            "global:N|per-tensor:F|same-tensor:N|random:N",
            several=True,
        ),
        Option(
            "restore",
            "Restore what the weights write at so many positions where that is largest; may be given again.",
            whole_number,
            RESTORED,
            "N",
            several=True,
        ),
    ),
    in_all={"others": OTHERS[:1], "restore": (), "complements": False},
    less="one kind of others, restored at two sets of positions",
)
