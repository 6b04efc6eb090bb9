"""Whether a model's known weights are as recorded, as text: the finding, then what was read."""

from __future__ import annotations

from analyzer.analyze.integrity import DIFFERING, STATES, CheckedWeight, Found, Integrity
from analyzer.base.errors import shown
from analyzer.base.text import byte_size, cell, coordinate_cells, count_of, fill, model_title, short_commit, table

SHOWN_WEIGHTS = 20
ORDER = ("changed", "absent", "unreadable", "unrecorded", "same")


def render_integrity(result: Integrity) -> str:
    """Return a check of known weights as text of 100 columns, what is not as recorded first."""
    weights = sorted(result.weights, key=lambda each: min(ORDER.index(found.state) for found in each.found))
    kept = weights[:SHOWN_WEIGHTS]
    then = any(weight.then is not None for weight in kept)
    header, places = coordinate_cells([weight.coordinate for weight in kept])
    rows = [
        [
            *place,
            weight.standing,
            "-" if weight.recorded_commit is None else short_commit(shown(weight.recorded_commit, 80)),
            cell(weight.recorded),
            *([_cell(weight.then)] if then else []),
            _cell(weight.now),
        ]
        for weight, place in zip(kept, places, strict=True)
    ]
    header += ["standing", "commit", "recorded", *(["at that commit"] if then else []), "now"]
    more = len(weights) - len(kept)
    sections = [model_title(result.model, result.revision, result.commit), fill(_finding(weights))]
    sections += [table(header, rows) + (f"\n\n… and {more} more (--json has all)" if more else "")]
    sections += [fill(f"Cannot be read: {shown(why, 300)}") for why in result.unreadable]
    rows_said = f"{count_of(result.rows, 'row')} known without a column: no weight to read. " if result.rows else ""
    return "\n\n".join([*sections, f"{rows_said}Read {byte_size(result.bytes_read)}, headers included."])


def _finding(weights: list[CheckedWeight]) -> str:
    """Return how many are not as recorded, and how."""
    count = count_of(len(weights), "known weight")
    states = [next(state for state in ORDER if any(f.state == state for f in weight.found)) for weight in weights]
    said = [f"{states.count(state)} {STATES[state]}" for state in ORDER if state != "same" and state in states]
    if not said:
        return f"As recorded: {count}."
    known = "Not as recorded" if set(states) & set(DIFFERING) else "Not all could be read"
    return f"{'As recorded' if set(states) <= {'same', 'unrecorded'} else known}: of {count} {', '.join(said)}."


def _cell(found: Found | None) -> str:
    """Return what was found, by its value where that is news."""
    if found is None:
        return "-"
    words = {"same": "same", "absent": "not there", "unreadable": "not read"}
    return words.get(found.state) or cell(found.value)
