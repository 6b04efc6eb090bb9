"""What a survey's files say of models, families and weights, within bounds: what its page shows."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from analyzer.base.errors import SurveyError, shown
from analyzer.base.records import Coordinate
from analyzer.catalog.documents import is_super, version_order
from analyzer.catalog.families import family_of
from analyzer.survey.results.collecting import asked_for
from analyzer.survey.store import RESULT, Folder
from analyzer.survey.units import CLASSES, JOBS, PIN, Failure, Job, Unit

CRITICAL, INERT, UNMEASURED, CANDIDATE, OUTLIER = KINDS = ("critical", "inert", "unmeasured", "candidate", "outlier")
"""What a weight is: a super weight by its effect; judged, and none; of a model that did not run, the first outlier."""
SUPER = (CRITICAL, INERT, UNMEASURED)
NONE, SCANNED, FAILED, MISSING = "none", "scanned", "failed", "missing"
OUTCOMES = (*SUPER, NONE, SCANNED, FAILED, MISSING)
"""What became of a model: the worst of its super weights, none found, only scanned, no result, not run yet."""
MAX_MODELS = 1000  # whose weights are kept; of more, a sample
MAX_WEIGHTS = 100  # of a model, in its result's order: super weights first
MAX_LINES = 20  # of each class of failure
MAX_NAMES = 200  # of models without a super weight


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of a model: `kind` is one of KINDS, null is what its result does not tell.

    `depth` is 0 in the first block and 1 in the last, `across` where its row is among the channels, from 0 to 1.
    Ranks are 1 for the best, by |W| or its gain; where it is not among those that were kept by gain, it is the one
    after them. `zscore` is that of |W| in its matrix, `row_ratio` |W| over the root mean square of its row.
    `share`, `delta` with its interval and `zeroed_with` are those of a verification.
    """

    model: str
    family: str
    kind: str
    place: str
    row: int
    depth: float | None
    across: float | None
    value: float
    rank: int | None
    gain_rank: int | None
    zscore: float | None
    row_ratio: float | None
    share: float | None = None
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    zeroed_with: int | None = None

    @property
    def magnitude(self) -> float:
        """Its |W|."""
        return abs(self.value)


@dataclass
class Findings:
    """What a survey has found: models, at their commits, by what became of them; see OUTCOMES.

    `weights` are those of `sampled` of the `with_weights` models that have any, of `cut` models not all. `failures` has
    for each class the first lines of (model, job, line), and `failed` how many there are. `beside` counts results that
    are not shown, since their model has a better one.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    families: dict[str, Counter[str]] = field(default_factory=dict)
    weights: list[Weight] = field(default_factory=list)
    with_weights: int = 0
    sampled: int = 0
    cut: int = 0
    none: list[str] = field(default_factory=list)
    failures: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    beside: int = 0

    @property
    def models(self) -> int:
        """How many models were asked for, each commit by itself."""
        return self.outcomes.total()

    @property
    def ran(self) -> int:
        """How many models were run."""
        return sum(self.outcomes[each] for each in (*SUPER, NONE))


def find(root: Path) -> Findings:
    """Return what a survey has found. Raises SurveyError where there is none in this folder, or a file is broken.

    Of several results on a model at a commit one is taken: of a job that ran it, and of that the newest version's.
    """
    folder, findings = Folder(root), Findings()
    units, jobs = asked_for(folder), {}
    done = set().union(*(folder.keys(do, RESULT) for do in JOBS))
    sample: list[tuple[int, str, list[Weight]]] = []
    for name, group in groupby(sorted(units, key=_place), key=_place):
        here = list(group)
        for unit in here:
            if unit.do != PIN and unit.job not in jobs:
                jobs[unit.job] = folder.job(unit.job)
        results = sorted((u for u in here if u.key in done), key=lambda unit: _merit(unit, jobs[unit.job]))
        failures = [(u, failure) for u in here if u.key not in done and (failure := folder.failure(u))]
        _add_failures(findings, failures)
        outcome = FAILED if failures else MISSING
        if results:
            findings.beside += len(results) - 1
            outcome, weights = _read(folder, results[-1], jobs[results[-1].job])
            if weights:
                findings.with_weights += 1
                findings.cut += len(weights) > MAX_WEIGHTS
                number = int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:8], "big")
                add = heapq.heappush if len(sample) < MAX_MODELS else heapq.heappushpop
                add(sample, (-number, repr(name), weights[:MAX_WEIGHTS]))
        model = here[0].model
        if outcome == NONE and len(findings.none) < MAX_NAMES:
            findings.none.append(model)
        findings.outcomes[outcome] += 1
        findings.families.setdefault(family_of(model), Counter())[outcome] += 1
    findings.sampled = len(sample)
    for _, _, weights in sorted(sample, key=lambda each: each[1]):
        findings.weights += weights
    return findings


def weights_of(model: str, result: Mapping[str, Any], score: str) -> list[Weight]:
    """Return the weights of one result: those that were judged, or the first outlier of a scan by this score."""
    sizes = result.get("entry") or result
    layers, channels = sizes.get("num_layers"), sizes.get("hidden_size")
    channels = channels and channels * (result.get("streams") or 1)
    ranked = result.get("outliers_by", {score: result.get("outliers", ())})
    by_score = {name: {_coordinate(each): each for each in outliers} for name, outliers in ranked.items()}
    judged = result.get("super_weights")
    found = []
    for each in result["outliers"][:1] if judged is None else judged:
        at = _coordinate(each)
        statics = {name: outliers[at] for name, outliers in by_score.items() if at in outliers}
        gain = by_score.get("gain")
        rank = each.get("static_rank", statics.get("magnitude", {}).get("rank"))
        turned = each.get("writes") or each.get("reason") == "latent"  # its rows are no channels
        found.append(
            Weight(
                model=model,
                family=family_of(model),
                kind=OUTLIER if judged is None else (each["effect"] or UNMEASURED) if is_super(each) else CANDIDATE,
                place=str(at),
                row=at.row,
                depth=None if not layers else min(at.layer / max(layers - 1, 1), 1.0),
                across=None if not channels or turned else (at.row + 0.5) / channels,
                value=each["value"],
                rank=rank,
                gain_rank=None if gain is None else statics["gain"]["rank"] if at in gain else len(gain) + 1,
                zscore=next((outlier["zscore"] for outlier in statics.values()), None),
                row_ratio=result.get("row_ratios", {}).get(str(at)),
                **{name: each.get(name) for name in ("share", "delta", "delta_low", "delta_high", "zeroed_with")},
            )
        )
    return found


def _place(unit: Unit) -> tuple[str, str, str, str]:
    """Return what one model at one commit has in common, in the order of its results."""
    return unit.model, unit.commit or "", unit.name, unit.state or ""


def _merit(unit: Unit, job: Job) -> tuple[Any, ...]:
    whole = job.verify is not None and not job.verify.early_stop
    return unit.do != "scan", whole, version_order(job.version), JOBS.index(unit.do), unit.job


def _read(folder: Folder, unit: Unit, job: Job) -> tuple[str, list[Weight]]:
    """Return what became of a model, and its weights."""
    try:
        found = folder.result(unit)
        assert found is not None
        result = found["result"]
        weights = weights_of(unit.model, result, job.scan.score)
        kinds = {weight.kind for weight in weights}
        outcome = SCANNED if unit.do == "scan" else next((kind for kind in SUPER if kind in kinds), NONE)
        return outcome, weights
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        path = folder.path(unit, RESULT)
        raise SurveyError(f"{shown(path)} is not what a survey writes: delete it, and run the survey again") from error


def _add_failures(findings: Findings, failures: Sequence[tuple[Unit, Failure]]) -> None:
    for unit, failure in failures:
        kind = failure.kind if failure.kind in CLASSES else CLASSES[-1]
        findings.failed[kind] += 1
        lines = findings.failures.setdefault(kind, [])
        if len(lines) < MAX_LINES:
            lines.append((unit.model, unit.do, failure.line))


def _coordinate(fields: Mapping[str, Any]) -> Coordinate:
    return Coordinate(**{name: fields.get(name) for name in Coordinate._fields})  # type: ignore[arg-type]
