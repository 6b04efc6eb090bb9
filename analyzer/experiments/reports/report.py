"""Any experiment's result as text of 100 columns: findings first, then one table of arms, then what was published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analyzer.base.errors import AnalyzerError, shown
from analyzer.base.records import plain
from analyzer.base.text import byte_size, count_of, fill, model_title, short_commit, table
from analyzer.experiments.lab.records import Claim, Facts, Measured, Result
from analyzer.experiments.reports.wording import perplexity_of, plus_minus

BOS = {True: "each after a BOS token", False: "no BOS token", "both": "without and with a BOS token"}
LONGEST = 46  # characters of an arm's name
PUBLISHED = "Published of this model, by others"
PUBLISHED_HEADER = ("what", "value", "source")
# By the name of an arm, or in the JSON alone.
SAID = (
    *("of", "others", "control", "bits", "group", "scheme", "clip", "restore", "activations", "per", "bos"),
    *("sinks_first", "criterion", "sparsity", "seed", "forced", "activation", "effect"),
)


def render_experiment(result: Result) -> str:
    """Return a result as text."""
    weights = "; ".join(map(str, result.weights))
    sections = [
        model_title(result.model, result.revision, result.commit),
        fill(f"{result.experiment}: {weights} ({result.weights_from})."),
        *map(fill, result.outcome.findings),
        *(fill(claim_said(claim)) for claim in result.outcome.claims),
        f"{fill(protocol_said(result.protocol))}\n\n{arms_table(result.outcome.arms)}",
    ]
    if any(arm.cost and arm.cost.delta_high is not None for arm in result.outcome.arms):
        sections[-1] += "\n\nΔ loss is the paired difference to the original, ± half of its 95 % interval over windows."
    sections += [f"{fill(title)}\n\n{table(header, rows)}" for title, header, rows in result.outcome.tables]
    if result.published:
        rows, sources = published_cells(result.published)
        named = "\n".join(f"[{number}] {shown(source, 90)}" for number, source in enumerate(sources, start=1))
        sections.append(f"{PUBLISHED}\n\n{table(PUBLISHED_HEADER, rows)}\n\n{named}")
    return "\n\n".join(sections)


def claim_said(claim: Claim) -> str:
    """Return what is claimed, and whether it holds here, in a sentence."""
    return f"The claim is that {claim.text}: here that {claim.verdict}, since {claim.why}."


def arms_table(arms: Sequence[Measured]) -> str:
    """Return the arms of any experiment as a table."""
    return table(*arms_cells(arms))


def arms_cells(arms: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of arms: their costs, and of the facts those that are numbers or short words."""
    names = list(dict.fromkeys(name for arm in arms for name, value in arm.facts.items() if _is_short(value)))
    shown_names = [name for name in names if name not in SAID and not name.endswith(("_low", "_high"))]
    zeroed, recovered = any(arm.zeroed for arm in arms), any(arm.recovered is not None for arm in arms)
    with_costs = any(arm.cost is not None for arm in arms)
    header = [
        "arm",
        *(["zeroed"] if zeroed else []),
        *shown_names,
        *(["loss", "perplexity", "Δ loss"] if with_costs else []),
        *(["recovered"] if recovered else []),
    ]
    rows = [
        [
            shown(arm.name, LONGEST),
            *([f"{arm.zeroed:,}"] if zeroed else []),
            *(_cell(arm.facts.get(name)) for name in shown_names),
            *(_costs(arm) if with_costs else []),
            *([_recovered(arm)] if recovered else []),
        ]
        for arm in arms
    ]
    return header, rows


def _costs(arm: Measured) -> Iterator[str]:
    if arm.cost is None:
        yield from ("-",) * 3
        return
    yield f"{arm.cost.nll:.4f}" if math.isfinite(arm.cost.nll) else "infinite"
    yield perplexity_of(arm.cost)
    yield plus_minus(arm.cost)


def _recovered(arm: Measured) -> str:
    return "" if arm.recovered is None else f"{arm.recovered:.1%}"


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else shown(value, 30)


def protocol_said(protocol: Facts) -> str:
    """Return in a sentence what was run on."""
    if "static" in protocol:
        return f"From the stored weights alone, {byte_size(protocol['bytes_read'])} of them: nothing was run."
    at = f" at {short_commit(protocol['commit'])}" if protocol.get("commit") else ""
    of = f" ({protocol['repository']}{at})" if "repository" in protocol else ""
    where = f"in {protocol['dtype']} on {protocol['device']}"
    if "less" in protocol:
        where += f". A part of the experiment, so that all end soon ({protocol['less']})"
    if "windows" in protocol:
        bos = BOS[protocol["bos"]]
        windows = f"{count_of(protocol['windows'], 'window')} of {protocol['length']:,} tokens"
        return f"On {shown(protocol['data'], 60)}{of}: {windows}, {bos}; {protocol['tokens']:,} predicted; {where}."
    return f"On {shown(protocol['data'], 60)}{of}: {protocol['prompts']:,} prompts; {where}."


def published_cells(published: Sequence[Facts]) -> tuple[list[list[str]], list[str]]:
    """Return what others published in rows, and their sources, which the rows number."""
    sources = list(dict.fromkeys(each["source"] for each in published))
    rows = [
        [shown(each["what"], 60), shown(each["value"], 30), f"[{1 + sources.index(each['source'])}]"]
        for each in published
    ]
    return rows, sources


def summary_of(name: str, result: Result | AnalyzerError) -> dict[str, Any]:
    """Return what the JSON of several experiments has of one: its findings and claims, or why it has none."""
    if isinstance(result, AnalyzerError):
        return {"experiment": name, "error": str(result), "findings": [], "claims": []}
    outcome = result.outcome
    return {"experiment": name, "error": None, "findings": list(outcome.findings), "claims": plain(outcome.claims)}


def render_summary(results: Mapping[str, Result | AnalyzerError]) -> str:
    """Return what several experiments say of the paper's claims as text: of those without any, their findings."""
    said = []
    for name, result in results.items():
        if isinstance(result, AnalyzerError):
            said.append(f"{name}: failed")
            continue
        outcome = result.outcome
        said += [f"{name}: {each}" for each in map(claim_said, outcome.claims)] or [
            f"{name}: {each}" for each in outcome.findings
        ]
    return "\n\n".join(map(fill, said))
