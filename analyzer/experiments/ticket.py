"""The lottery ticket: at which sparsity each weight leaves, and what the model loses with it in the mask, and out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import Coordinate, plain
from analyzer.experiments.controls.nearest import nearest_controls
from analyzer.experiments.controls.others import places_in
from analyzer.experiments.lab.records import Cost, Experiment, Measured, Option, Outcome, whole_number
from analyzer.experiments.reports.wording import plus_minus

if TYPE_CHECKING:
    from analyzer.experiments.lab.opening import Lab
    from analyzer.experiments.masks.criteria import Criterion
    from analyzer.experiments.masks.sweep import Asked

SPARSITIES = tuple(number / 10 for number in range(1, 10))
NAMES = ("magnitude", "wanda", "random")
EVERY = ("magnitude", "global", "wanda", "random")
WORKS = 1.0  # nats above the untouched model: so far the model still works, more or less
ALIVE = 0.5  # of the super activation
WITHIN = {"magnitude": "its matrix", "global": "all matrices", "wanda": "its row", "random": "its matrix"}
SEEDS = 3


def run(
    lab: Lab,
    *,
    criteria: Sequence[str],
    sparsities: Sequence[float],
    seeds: int,
    until: float,
    revisions: Sequence[str],
) -> Outcome:
    """Rank the weights by each criterion, then prune by it, more and more, until the model is broken.

    Raises ForwardError where the model is quantized: its weights are not changed as they are loaded.
    """
    from analyzer.experiments.masks.criteria import matrices_of
    from analyzer.experiments.masks.sweep import Asked, Sweep

    if lab.runner.blocks.encodings or lab.runnable.checkpoint.metadata:
        raise ForwardError(
            f"{lab.runner.name} is quantized: its weights cannot be dropped as they are loaded, yet: give the model "
            "that it was made from"
        )
    weights = [weight.coordinate for weight in lab.weights]
    asked = Asked(weights, nearest_controls(lab.runnable, weights), matrices_of(lab.runnable))
    ways, entries, findings = _ways(lab, asked, sparsities, seeds)
    sweep = Sweep(lab, asked, until)
    arms = sweep.dense()
    followed: dict[str, list[Measured]] = {}
    for number, way in enumerate(each for each in ways if each.name in criteria):
        lab.progress("criteria", number, len(ways))
        found = list(sweep.along(way, sparsities))
        followed.setdefault(way.name, []).extend(found)
        arms += found
    findings += _findings(arms, entries, followed, sparsities, until)
    more: dict[str, Any] = {"weights": entries, "until": until}
    tables = [_leaving_table(entries)]
    if revisions:
        more["revisions"] = _through(lab, asked, arms, sparsities, revisions)
        tables.append(_revisions_table(more["revisions"]))
    return Outcome(tuple(arms), tuple(findings), more, tuple(tables))


def _ways(
    lab: Lab, asked: Asked, sparsities: Sequence[float], seeds: int
) -> tuple[list[Criterion], list[dict[str, Any]], list[str]]:
    """Return the criteria, at which sparsity each weight leaves by each, and what cannot be told."""
    from analyzer.experiments.lab.calibrating import watch_calibration
    from analyzer.experiments.masks.criteria import GROUPS, Criterion, norms_of, over_all
    from analyzer.model.weights import StoredWeights

    findings = []
    values = _values(lab, asked)
    stored = StoredWeights(lab.runnable.checkpoint)
    thresholds, before = over_all(stored, asked.names, sparsities, list(values.values()))
    ways = [Criterion("magnitude"), Criterion("global", thresholds=thresholds)]
    norms, unknown = norms_of(lab.runner, asked.names, watch_calibration(lab))
    if unknown:
        findings.append(
            f"Wanda needs what goes into every matrix, and what goes into {shown(unknown[0], 60)} ({len(unknown)} "
            "such) is not seen: it is left out."
        )
    else:
        ways.append(Criterion("wanda", norms=norms))
    seed = lab.settings.seed
    ways += [Criterion("random", seed=seed + number) for number in range(seeds)]
    entries = []
    for c, part in zip(asked.every, before, strict=True):
        ((name, places),) = places_in(lab.runnable.projections, [c]).items()
        tensor = stored.read([name])[name]
        for way in ways:
            if way.name == "global":
                leaves, size = part, None
            else:
                leaves, size = way.leaves_at(name, tensor, int(places[0]))
            entries.append(
                plain(c)
                | {"value": values[c], "control": c in asked.controls, "criterion": way.name, "seed": way.seed}
                | {"group": GROUPS[way.name], "of": size, "leaves_at": leaves}
            )
    return ways, entries, findings


def _values(lab: Lab, asked: Asked) -> dict[Coordinate, float]:
    from analyzer.projections.weights import read_weights

    return read_weights(lab.runnable.checkpoint, lab.runnable.projections, asked.every)


def _findings(
    arms: Sequence[Measured],
    entries: Sequence[dict[str, Any]],
    followed: dict[str, list[Measured]],
    sparsities: Sequence[float],
    until: float,
) -> Iterator[str]:
    for name in EVERY:
        leaving = [each["leaves_at"] for each in entries if each["criterion"] == name and not each["control"]]
        if not leaving:
            continue
        first, last = min(leaving), max(leaving)
        span = f"{first:.7g}" if first == last else f"{first:.7g} to {last:.7g}"
        said = f"{name.capitalize()}: leaves at {span} of {WITHIN[name]}"
        found = followed.get(name)
        if not found:
            yield f"{said}."
            continue
        own = [each for each in found if each.facts["forced"] == ""]
        alive = [each.facts["sparsity"] for each in own if each.facts["left"] >= ALIVE]
        works = [each.facts["sparsity"] for each in own if each.cost is not None and each.cost.delta <= WORKS]
        left = f"up to {max(alive):g}" if alive else "at none of the sparsities that were tried"
        so_far = f"up to {max(works):g}" if works else "at none of them"
        yield f"{said}; half of its super activation is left {left}, and the model works (within 1 nat) {so_far}."
        at = max(works, default=0.0)
        there = {each.facts["forced"]: each for each in reversed(found) if each.facts["sparsity"] == at}
        if "weights out" in there:
            beside = f", its controls {_effect(there['controls out'])}" if "controls out" in there else ""
            cost, dense = _effect(there["weights out"]), _effect(arms[1])
            yield f"At {at:g} forcing it out costs {cost} nats, in the dense model {dense}{beside}."
        tried = max(each.facts["sparsity"] for each in own)
        if tried < max(sparsities):
            yield (
                f"{name.capitalize()} was not followed beyond {tried:g}, where the loss is more than {until:g} nats "
                "above the dense model's (--until)."
            )


def _effect(arm: Measured) -> str:
    facts = arm.facts
    return plus_minus(Cost(math.nan, facts["effect"], facts["effect_low"], facts["effect_high"]))


def _leaving_table(entries: Sequence[dict[str, Any]]) -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
    rows = []
    for each in entries:
        where = _where(each)
        seed = "" if each["seed"] is None else f" {each['seed']}"
        group = each["group"] if each["of"] is None else f"{each['group']} of {each['of']:,}"
        control = " (control)" if each["control"] else ""
        rows.append([f"{where}{control}", f"{each['criterion']}{seed}", group, f"{each['leaves_at']:.7g}"])
    return (
        "Where each weight leaves: the part of its group that has gone then",
        ("weight", "criterion", "within", "leaves at"),
        rows,
    )


def _where(found: dict[str, Any]) -> Coordinate:
    return Coordinate(**{key: found.get(key) for key in Coordinate._fields})  # type: ignore[arg-type]


def _through(
    lab: Lab, asked: Asked, arms: Sequence[Measured], sparsities: Sequence[float], revisions: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what the weights were in earlier revisions, and these under the last one's mask where that still works."""
    from analyzer.experiments.masks.revisions import Last, through

    working = [
        arm.facts["sparsity"]
        for arm in arms
        if arm.facts.get("criterion") == "magnitude" and arm.cost is not None and arm.cost.delta <= WORKS
    ]
    return list(through(Last(lab, asked.names, max(working, default=min(sparsities))), revisions))


def _revisions_table(found: Sequence[dict[str, Any]]) -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
    header = ("revision", "weight", "value", "rank", "loss", "masked", "masked without", "random mask")
    rows = [
        [
            shown(each["revision"], 24),
            str(_where(weight)),
            f"{weight['value']:+.5g}",
            f"{weight['rank']:,}",
            *(f"{each[key]:.4f}" for key in ("nll", "nll_masked", "nll_masked_without", "nll_random")),
        ]
        for each in found
        for weight in each["weights"]
    ]
    return f"Through the revisions, under the last one's mask at {found[0]['sparsity']:g}", header, rows


def parse_sparsities(text: str) -> tuple[float, ...]:
    """Return several sparsities, separated by commas, the lowest first. Raises ValueError where one is none."""
    found = tuple(sorted({float(each) for each in text.split(",")}))
    if not all(0 < each < 1 for each in found):
        raise ValueError(f"{text!r} has a sparsity that is not between 0 and 1")
    return found


def parse_criteria(text: str) -> tuple[str, ...]:
    """Return the names of criteria, separated by commas. Raises ValueError where one is none."""
    found = tuple(dict.fromkeys(text.split(",")))
    if unknown := [each for each in found if each not in EVERY]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(EVERY)}")
    return found


def parse_until(text: str) -> float:
    """Return how many nats are borne, maybe all. Raises ValueError for what is no number above 0."""
    if not (found := float(text)) > 0:
        raise ValueError(f"{text!r} is no number above 0")
    return found


def parse_revisions(text: str) -> tuple[str, ...]:
    """Return revisions, separated by commas. Raises ValueError where there is none, or one twice."""
    found = tuple(text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise ValueError(f"{text!r} names no revision, or one twice")
    return found


EXPERIMENT = Experiment(
    name="ticket",
    says="""Prune the model, and tell whether the weights are part of the ticket.

    At which sparsity each weight leaves, by magnitude, Wanda and chance; and at each sparsity the loss, the super
    activation and the sinks that are left: as the criterion says, with the weights forced out, or in, and controls.

    \b
    Examples:
      superweight experiment ticket ./my-model --windows 8 --length 1024
      superweight experiment ticket ./my-model --criteria magnitude,global --sparsities 0.3,0.5 --json
      superweight experiment ticket EleutherAI/pythia-410m --revisions step1000,step16000 --windows 8
    """,
    run=run,
    calibrates=True,
    picture="sparsity",
    in_all={"sparsities": (0.1, 0.3, 0.5), "seeds": 1},
    less="three sparsities, one seed",
    options=(
        Option(
            "criteria",
            "What to prune by, separated by commas: magnitude (within a matrix), global (magnitude over all), wanda, "
            "random.",
            parse_criteria,
            NAMES,
            "NAMES",
        ),
        Option("sparsities", "How much to prune, separated by commas.", parse_sparsities, SPARSITIES, "NUMBERS"),
        Option("seeds", "How many masks to draw by chance.", whole_number, SEEDS, "N"),
        Option(
            "until",
            "Follow a criterion until the loss is so many nats above the untouched model's; inf: to the end.",
            parse_until,
            WORKS,
            "NATS",
        ),
        Option(
            "revisions",
            "Earlier revisions, the model itself being the last: values, ranks, and its mask on them.",
            parse_revisions,
            (),
            "NAMES",
        ),
    ),
)
