"""Known weights of a base model in its tuned version -> text of 100 columns: what is left of them, side by side."""

from __future__ import annotations

import math

from analyzer.base.errors import shown
from analyzer.base.text import big, cell, coordinate_cells, count_of, fill, short_commit, table
from analyzer.diff.tuned.records import Judged, TunedDiff

SHOWN_WEIGHTS = 12


def render_tuned(result: TunedDiff) -> str:
    """Return known weights in two models as text, two lines each: the base's, then the tuned one's."""
    sides = [
        shown(name, 60) + (f" ({short_commit(shown(commit, 80))})" if commit else "")
        for name, commit in ((result.old, result.old_commit), (result.new, result.new_commit))
    ]
    kept = sorted(result.weights, key=lambda weight: -max(abs(weight.old.delta or 0.0), abs(weight.new.delta or 0.0)))
    kept = kept[:SHOWN_WEIGHTS]
    header, places = coordinate_cells([weight.coordinate for weight in kept])
    rows: list[list[object]] = []
    for weight, place in zip(kept, places, strict=True):
        rows.append([*place, *_cells("base", weight.old)])
        rows.append([*[""] * len(place), *_cells("tuned", weight.new)])
    header += ["what", "value", "activation", "status", "effect", "Δ loss"]
    more = len(result.weights) - len(kept)
    losses = [f"{loss:.3f} (perplexity {math.exp(loss):.4g})" for loss in (result.old_loss, result.new_loss) if loss]
    sections = [fill(f"From {sides[0]} to {sides[1]}"), fill(_finding(result)), *map(fill, result.notes)]
    sections += [
        table(header, rows) + (f"\n\n… and {count_of(more, 'weight')} more (--json and --csv)" if more else "")
    ]
    if len(losses) == 2:
        sections.append(fill(f"Untouched, the loss is {losses[0]} of the base, and {losses[1]} of the tuned one."))
    return "\n\n".join(sections)


def _finding(result: TunedDiff) -> str:
    """Return how many weights are still what they were."""
    count = len(result.weights)
    kinds = [
        ("of another value", sum(weight.old.value != weight.new.value for weight in result.weights)),
        ("of another status", sum(weight.old.status != weight.new.status for weight in result.weights)),
        ("of another effect", sum(weight.old.effect != weight.new.effect for weight in result.weights)),
    ]
    said = ", ".join(f"{number} {kind}" for kind, number in kinds if number)
    if not said:
        return f"Still there: {count_of(count, 'known weight')}, of the same value, status and effect in both."
    return f"Of {count_of(count, 'known weight')} in the tuned model: {said}."


def _cells(side: str, judged: Judged) -> list[object]:
    delta = "-"
    if judged.delta is not None:
        width = "" if judged.delta_high is None else f" ±{judged.delta_high - judged.delta:.3f}"
        delta = f"{judged.delta:+.3f}{width}"
    activation = None if judged.activation is None else big(judged.activation)
    return [side, cell(judged.value), cell(activation), judged.status, cell(judged.effect), delta]
