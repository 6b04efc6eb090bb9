"""What a survey has found -> one page that needs nothing else: it has no script, and loads nothing."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer import __version__
from analyzer.base.atomic import check_writable, write_whole
from analyzer.base.errors import PlotError, shown
from analyzer.site.page import GENERATOR_WITHIN, data_of, environment_of_pages, literal, policy_of
from analyzer.survey.results.findings import (
    CANDIDATE,
    CRITICAL,
    FAILED,
    INERT,
    MAX_WEIGHTS,
    MISSING,
    NONE,
    OUTCOMES,
    OUTLIER,
    SCANNED,
    SUPER,
    UNMEASURED,
    Findings,
    Weight,
)
from analyzer.survey.results.prediction import (
    LEAST_MODELS,
    LEAST_WEIGHTS,
    RANKS,
    SCORES,
    STATIC,
    Prediction,
    correlation_said,
    first_by,
    score_said,
    unknown_said,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
STYLE = "figure { max-width: 62.5rem; }\n"
GENERATOR = b'<meta name="generator" content="superweight-analyzer survey report">'
MAX_FAMILIES, MAX_DRAWN_FAMILIES, MAX_ROWS = 200, 30, 50
OUTCOMES_SAID = {
    CRITICAL: "critical",
    INERT: "inert alone",
    UNMEASURED: "effect not measured",
    NONE: "none found",
    SCANNED: "only scanned",
    FAILED: "failed",
    MISSING: "not run yet",
}
CLASSES_SAID = {
    "unsupported": "Refused: not supported",
    "gone": "Refused: gone, or changed since it was planned",
    "gated": "Refused: gated",
    "network": "Failed: the network",
    "memory": "Failed: memory",
    "timeout": "Failed: time",
    "bug": "Failed: bugs of superweight",
}


@dataclass(frozen=True)
class Table:
    """Figures beside a picture, as text: a header, of which the first `words` columns are words, and rows."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 1


def render_report(findings: Findings, predictions: Sequence[Prediction]) -> str:
    """Return the page, the same for the same results."""
    style = data_of("page.css") + data_of("experiments.css") + STYLE
    judged = [weight for weight in findings.weights if weight.kind != OUTLIER]
    supers = [weight for weight in judged if weight.kind in SUPER]
    placed = [*supers, *(weight for weight in findings.weights if weight.kind == OUTLIER)]
    drawn = _drawn_families(placed)
    rendered: str = (
        environment_of_pages()
        .get_template("survey.html.jinja")
        .render(
            findings=findings,
            totals=[(OUTCOMES_SAID[each], findings.outcomes[each]) for each in OUTCOMES if findings.outcomes[each]],
            verdicts=_verdicts(predictions),
            measured=any(weight.delta is not None for weight in judged),
            correlations=_correlations(judged, predictions),
            families=_families(findings, placed),
            hidden_families=max(len(findings.families) - MAX_FAMILIES, 0),
            undrawn_families=len({weight.family for weight in placed}) - len(drawn),
            placed=bool(placed),
            unplaced=sum(weight.depth is None or weight.across is None for weight in placed),
            weights=_weights(judged or placed),
            hidden_weights=max(len(judged or placed) - MAX_ROWS, 0),
            failures=[
                (said, findings.failed[k], findings.failures[k])
                for k, said in CLASSES_SAID.items()
                if findings.failed[k]
            ],
            least=f"{LEAST_WEIGHTS} weights of {LEAST_MODELS} models",
            most_weights=MAX_WEIGHTS,
            version=__version__,
            pictures=_pictures(placed, supers, judged, drawn, predictions),
            style=literal(style),
            policy=policy_of(style=style, script=None),
        )
    )
    return rendered


def check_report(path: Path) -> None:
    """Raise PlotError where a page cannot be written there, or what is there is none of ours."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise PlotError(f"cannot write {shown(path)}: a page is written, give a name that ends in .html")
    try:
        check_writable(path)
        foreign = path.exists() and not _is_ours(path)
    except OSError as error:
        raise PlotError(f"cannot write {shown(path)}: {error.strerror}; give another file (--out)") from error
    if foreign:
        raise PlotError(f"{shown(path)} is no report that this tool wrote: give another file (--out), or move it")


def write_report(page: str, path: Path) -> None:
    """Write the page, atomically. Raises PlotError like check_report."""
    check_report(path)
    try:
        write_whole(path, page.encode("utf-8"))
    except OSError as error:
        raise PlotError(f"cannot write {shown(path)}: {error.strerror}; give another file (--out)") from error


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR in file.read(GENERATOR_WITHIN)


def _pictures(
    placed: Sequence[Weight],
    supers: Sequence[Weight],
    judged: Sequence[Weight],
    drawn: Sequence[str],
    predictions: Sequence[Prediction],
) -> dict[str, Any]:
    """Return the pictures that have something to show, as addresses that hold them whole."""
    from analyzer.survey.results.pictures import draw_effects, draw_places, draw_shares

    found = {}
    if any(weight.depth is not None or weight.across is not None for weight in placed):
        found["places"] = _address(draw_places(placed, drawn))
    if any(weight.share is not None for weight in supers):
        found["shares"] = _address(draw_shares(supers))
    if any(weight.delta is not None and not weight.zeroed_with for weight in judged):
        found["effects"] = _address(draw_effects(judged, predictions))
    return found


def _address(figure: Figure) -> Any:
    from analyzer.base.pictures import png_of

    return literal("data:image/png;base64," + base64.b64encode(png_of(figure)).decode("ascii"))


def _verdicts(predictions: Sequence[Prediction]) -> list[tuple[str, str, str, str]]:
    """Return for each static score a class, its name, whether it tells the effect, and the figures for that."""
    found = []
    for each in predictions:
        if each.score in STATIC and each.alone and each.rho is not None:
            low, high = each.low or 0.0, each.high or 0.0
            said, kind = "it cannot be told whether it goes with the effect", "open"
            if low > 0:
                said, kind = "the better it is, the larger the effect", "holds"
            elif high < 0:
                said, kind = "the better it is, the smaller the effect", "fails"
            found.append((kind, score_said(each.score), said, correlation_said(each)))
    return found


def _correlations(weights: Sequence[Weight], predictions: Sequence[Prediction]) -> Table:
    rows: list[tuple[str, ...]] = []
    for each in predictions:
        known = "static" if each.score in STATIC else "of one forward pass"
        first = "-"
        if each.score in RANKS and each.alone:
            count, models = first_by(weights, each.score)
            first = f"{count:,} of {models:,}"
        name = f"{SCORES[each.score]} ({known})"
        rows.append((name, "alone" if each.alone else "alone or in a group", *_figures_of(each), first))
    return Table(
        "Spearman’s ρ of each score with Δ loss; and in how many models the worst critical weight is the first",
        ("score", "zeroed", "weights", "models", "ρ", "95 % interval", "worst is first"),
        rows,
        words=2,
    )


def _figures_of(each: Prediction) -> tuple[str, str, str, str]:
    if each.rho is None:
        return f"{each.weights:,}", f"{each.models:,}", unknown_said(each), "-"
    return f"{each.weights:,}", f"{each.models:,}", f"{each.rho:+.2f}", f"{each.low:+.2f} to {each.high:+.2f}"


def _families(findings: Findings, placed: Iterable[Weight]) -> Table:
    by_family: dict[str, list[Weight]] = {}
    for weight in placed:
        by_family.setdefault(weight.family, []).append(weight)
    used = [each for each in OUTCOMES if findings.outcomes[each]]
    ordered = sorted(findings.families.items(), key=lambda each: (-each[1].total(), each[0]))
    rows = []
    for family, outcomes in ordered[:MAX_FAMILIES]:
        here = by_family.get(family, [])
        measures = [
            _span([weight.depth for weight in here], ".2f"),
            _rows(here),
            _span([weight.magnitude for weight in here], ".3g"),
            _span([weight.share for weight in here], ".2f"),
            _span([weight.delta for weight in here if not weight.zeroed_with], "+.3g"),
        ]
        counts = [f"{outcomes[each]:,}" for each in used]
        rows.append((family, f"{outcomes.total():,}", *counts, f"{len(here):,}", *measures))
    header = ("family", "models", *(OUTCOMES_SAID[each] for each in used), "weights", "depth", "rows", "|W|", "share")
    return Table(
        "Families: their models by what became of them; of their weights the median, with the smallest and largest",
        (*header, "Δ loss"),
        rows,
    )


def _span(values: Iterable[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    median = format(statistics.median(known), form)
    low, high = (format(each(known), form) for each in (min, max))
    return median if low == high else f"{median} ({low} to {high})"


def _rows(weights: Sequence[Weight]) -> str:
    """Return the rows that most weights are in, each with how many."""
    counts: dict[int, int] = {}
    for weight in weights:
        counts[weight.row] = counts.get(weight.row, 0) + 1
    most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:2]
    more = f" and {len(counts) - 2:,} more" if len(counts) > 2 else ""
    return ", ".join(f"{row} ×{count}" if count > 1 else f"{row}" for row, count in most) + more or "-"


def _weights(weights: Iterable[Weight]) -> Table:
    order = sorted(weights, key=lambda w: (w.kind == CANDIDATE, -(w.delta or 0.0), w.rank or 0, w.model, w.place))
    rows = [
        (
            weight.model,
            weight.place,
            {CANDIDATE: "none", OUTLIER: "outlier"}.get(weight.kind, OUTCOMES_SAID.get(weight.kind, "")),
            _cell(weight.depth, ".2f"),
            _cell(weight.value, "+.4g"),
            _cell(weight.share, ".2f"),
            _cell(weight.rank, ","),
            _cell(weight.gain_rank, ","),
            _cell(weight.zscore, ",.1f"),
            _cell(weight.row_ratio, ",.1f"),
            _delta(weight),
        )
        for weight in order[:MAX_ROWS]
    ]
    header = (
        "model",
        "weight",
        "super weight",
        "depth",
        "value",
        "share",
        "rank",
        "gain rank",
        "z",
        "in its row",
        "Δ loss",
    )
    return Table("Weights: super weights first, by what zeroing them costs", header, rows, words=3)


def _delta(weight: Weight) -> str:
    if weight.delta is None:
        return "-"
    of = f" (with {weight.zeroed_with} others)" if weight.zeroed_with else ""
    if weight.delta_low is None or weight.delta_high is None:
        return f"{weight.delta:+.4f}{of}"
    return f"{weight.delta:+.4f} ±{(weight.delta_high - weight.delta_low) / 2:.4f}{of}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _drawn_families(placed: Iterable[Weight]) -> list[str]:
    """Return the families that are drawn: those with the most models that have weights, in order of their names."""
    models: dict[str, set[str]] = {}
    for weight in placed:
        models.setdefault(weight.family, set()).add(weight.model)
    return sorted(sorted(models, key=lambda each: (-len(models[each]), each))[:MAX_DRAWN_FAMILIES])
