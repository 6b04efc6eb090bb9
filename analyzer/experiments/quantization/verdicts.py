"""Whether protecting helps: what each arm takes back, paired differences among arms, and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analyzer.base.text import count_of
from analyzer.experiments.lab.costs import cost_of, recovered_by
from analyzer.experiments.lab.opening import Losses
from analyzer.experiments.lab.records import Arm, Claim, Cost, Measured
from analyzer.experiments.quantization.grid import HELD_OUT, NAIVE, SMOOTH, Plan, Rounding, name_of, setting_of
from analyzer.experiments.quantization.matrices import StoredMatrix
from analyzer.experiments.quantization.protecting import Held
from analyzer.experiments.reports.wording import plus_minus

BROKEN = 1.0  # nats that rounding alone costs: what protecting adds to a broken model says little


def measured(arms: Sequence[Arm], losses: Losses) -> Iterator[Measured]:
    """Yield each arm with its cost, and what it recovers of that of the arm that protects nothing."""
    costs = [cost_of(losses[0], each) for each in losses]
    bare: dict[object, Cost] = {}
    for arm, cost in zip(arms, costs, strict=True):
        facts = arm.facts
        of = tuple(facts.get(each) for each in ("bits", "group", "scheme", "per"))
        protects = facts and (
            facts["restore"] or facts["clip"] is not None or facts["activations"] in (HELD_OUT, SMOOTH)
        )
        if not protects:
            bare[of] = cost
        recovered = recovered_by(bare[of], cost) if protects and of in bare else None
        yield Measured(arm.name, arm.zeroed, cost, recovered, facts=facts)


def judge(rounding: Rounding, z: float, arms: Sequence[Arm], losses: Losses, held: Sequence[Held]) -> dict[str, Any]:
    """Return whether protecting helps at a rounding: paired differences among its four arms, and a sentence."""

    def of(clip: float | None, restore: bool) -> Any:
        wanted = setting_of(replace(rounding, z=clip), restore=restore)
        return losses[next(number for number, arm in enumerate(arms) if arm.facts == wanted)]

    alone = of(None, False)
    costs = {
        "rounding": cost_of(losses[0], alone),
        "restoring": cost_of(alone, of(None, True)),
        "clipping": cost_of(alone, of(z, False)),
        "restoring_after_clipping": cost_of(of(z, False), of(z, True)),
        "protecting": cost_of(alone, of(z, True)),
    }
    no_op = all(each.no_op for each in held if each.rounding == rounding)
    gains = {name: cost.is_sure and cost.delta < 0 for name, cost in costs.items()}
    helps = gains["restoring"] or (gains["protecting"] and gains["restoring_after_clipping"])
    broken = not costs["rounding"].delta <= BROKEN
    best = min(costs["restoring"].delta, costs["protecting"].delta)
    works = not broken or bool(costs["rounding"].delta + best <= BROKEN)
    verdict = "protecting helps" if helps else "protecting is pointless"
    if not works:
        verdict += ", and the model is broken either way"
    elif gains["protecting"] and not helps:
        verdict = f"the gain is clipping's, {verdict}"
    return {
        **setting_of(rounding),
        "clip": z,
        "no_op": no_op,
        "helps": helps,
        "broken": broken,
        "works": works,
        "gain": -best if helps else None,
        **{
            name: {"delta": cost.delta, "delta_low": cost.delta_low, "delta_high": cost.delta_high}
            for name, cost in costs.items()
        },
        "says": f"{_costs_in_words(rounding, z, costs, no_op=no_op)}: {verdict}.",
    }


def _costs_in_words(rounding: Rounding, z: float, costs: Mapping[str, Cost], *, no_op: bool) -> str:
    restoring = "restoring is a no-op, since rounding keeps it"
    return (
        f"{rounding}: rounding alone costs {plus_minus(costs['rounding'])} nats; "
        f"{restoring if no_op else 'restoring adds ' + plus_minus(costs['restoring'])}; clipping at z {z:g} adds "
        f"{plus_minus(costs['clipping'])}, and restoring after that {plus_minus(costs['restoring_after_clipping'])}"
    )


def summary(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return in a sentence whether protecting helps at all of these roundings, some or none."""
    helping = [each for each in verdicts if each["helps"]]
    broken = sum(each["broken"] for each in verdicts)
    more = f" At {broken} of them rounding alone breaks the model: more than {BROKEN:g} nat." if broken else ""
    of = count_of(len(verdicts), "rounding")
    if not helping:
        return f"Protecting the weights is pointless here: at none of {of} has it a sure gain.{more}"
    best = max(helping, key=lambda each: each["gain"])
    return (
        f"Protecting the weights helps at {len(helping)} of {of}: by {best['gain']:.4f} nats at most "
        f"({best['bits']} bits, {best['scheme']}, group {best['group']}).{more}"
    )


def of_activations(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield for each way of quantizing activations what it costs, and what holding out and smoothing take back."""
    for naive in (each for each in measured if each.facts.get("activations") == NAIVE):
        same = ("bits", "group", "scheme", "per")
        others = [
            each
            for each in measured
            if each.facts.get("activations") in (HELD_OUT, SMOOTH)
            and all(each.facts[key] == naive.facts[key] for key in same)
        ]
        assert naive.cost is not None
        said = f"{naive.name}: it costs {plus_minus(naive.cost)} nats"
        if not naive.cost.is_sure or naive.cost.delta < 0:
            yield f"{said}, no sure loss: there is nothing to take back."
        elif others:
            parts = [f"{each.facts['activations']} takes back {_share(each.recovered)}" for each in others]
            yield f"{said}; of that {' and '.join(parts)}."


def _share(part: float | None) -> str:
    return "nothing that can be told" if part is None or not math.isfinite(part) else f"{part:.0%}"


def claims(verdicts: Sequence[Mapping[str, Any]], arms: Sequence[Arm], losses: Losses) -> Iterator[Claim]:
    """Yield the paper's claims on weights, and on activations where these were rounded."""
    working = [each for each in verdicts if each["works"]]
    helping = sum(each["helps"] for each in working)
    yield Claim(
        "weights rounded in large groups lose less with the super weights clipped and restored (Figure 7)",
        helping > 0 if working and losses.shape[1] > 1 else None,
        f"restoring has a sure gain at {helping} of {count_of(len(working), 'rounding')} that leave the model working",
    )
    kinds = {arm.facts.get("activations"): number for number, arm in reversed(list(enumerate(arms)))}
    if NAIVE not in kinds or HELD_OUT not in kinds:
        return
    text = "held out, the super activation gives back what 8-bit activations lose (Tables 3 and 4)"
    naive, held = losses[kinds[NAIVE]], losses[kinds[HELD_OUT]]
    cost, gain = cost_of(losses[0], naive), cost_of(naive, held)
    if not cost.is_sure or cost.delta < 0:
        yield Claim(text, None, f"rounded, they cost {plus_minus(cost)} nats, which is no sure loss")
        return
    why = f"rounded, they cost {plus_minus(cost)} nats; holding it out changes that by {plus_minus(gain)}"
    yield Claim(text, gain.delta < 0 if gain.is_sure else None, why)


def of_steps(held: Sequence[Held]) -> Iterator[str]:
    """Yield what the stored weights alone say of protecting."""
    no_ops = sum(each.no_op for each in held)
    yield (
        f"Restoring is a no-op in {no_ops} of {len(held)} cases: rounding keeps the extremes of a group as they are, "
        "and only clipping before it would change the step."
    )
    most = max(held, key=lambda each: each.step / each.step_without if each.step_without else 1.0)
    if f"{most.step:.4g}" == f"{most.step_without:.4g}":
        yield "No step would fall if a weight were held out of its group."
        return
    yield (
        f"Held out of its group, {most.weight} would let the step fall most at {most.rounding}: from {most.step:.4g} "
        f"to {most.step_without:.4g}."
    )


def of_plan(asked: Plan, matrices: Mapping[str, StoredMatrix], *, unsmoothed: bool = False) -> Iterator[str]:
    """Yield what of the plan was done otherwise than it says."""
    if asked.changed:
        yield f"Groups of the grid made to fit its matrices: {', '.join(asked.changed)}."
    if unsmoothed:
        yield "No norm with weights feeds a linear map: SmoothQuant does not apply."
    if any(each.linear is None for each in matrices.values()):
        yield "What experts are handed is not quantized: only their weights are."


def facts(held: Held) -> dict[str, Any]:
    """Return what the JSON has of a weight in its group."""
    names = ("weight", "value", "extreme", "no_op", "rounded", "step", "step_without", "error", "error_without")
    return setting_of(held.rounding) | {name: getattr(held, name) for name in names}


def table(held: Sequence[Held]) -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
    """Return weights in their groups as a table: title, header, rows."""
    rows = [
        [
            f"{name_of(each.rounding)}: {each.weight}",
            "yes" if each.extreme else "no",
            f"{each.value:.4g}",
            f"{each.rounded:.4g}",
            *(f"{value:.3g}" for value in (each.step, each.step_without, each.error, each.error_without)),
        ]
        for each in held
    ]
    header = ["weight", "extreme", "value", "rounded", "step", "without", "error", "without"]
    return "Each weight in its group: steps, and the others' root mean square error, with and without it", header, rows
