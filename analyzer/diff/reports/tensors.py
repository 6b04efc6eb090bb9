"""All tensors of two versions -> text of 100 columns: how many differ, the most changed of each layer, all else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analyzer.base.errors import shown
from analyzer.base.text import byte_size, count_of, fill, short_commit, table
from analyzer.diff.tensors.records import TensorChange, TensorDiff
from analyzer.numbers.module import IN_A_NAME, starred

SHOWN_LAYERS = 24
SHOWN_NAMES = 4
TITLES = {
    "added": "Only in the new one",
    "removed": "Only in the old one",
    "reshaped": "Of other shapes",
    "dtype changed": "Of the same values in other dtypes",
    "not compared": "Not compared",
}


def render_tensors(result: TensorDiff) -> str:
    """Return a comparison of all tensors as text."""
    sides = [
        shown(name, 60) + (f" ({short_commit(shown(commit, 80))})" if commit else "")
        for name, commit in ((result.old, result.old_commit), (result.new, result.new_commit))
    ]
    sections = [fill(f"From {sides[0]} to {sides[1]}"), fill(_finding(result))]
    if result.expect and not result.identical:
        sections.append(fill(_expected(result)))
    changed = [each for each in result.tensors if each.state == "changed"]
    if changed:
        sections.append(_layers(result.tensors))
    if other := [line for state in TITLES if (line := _others(state, result.tensors))]:
        sections.append("\n".join(other))
    if broken := [each for each in result.tensors if each.nonfinite]:
        sections.append(fill(_not_finite(broken)))
    sections += [fill(shown(note, 300)) for note in result.notes]
    shared = f"; {byte_size(result.bytes_shared)} of each, in files that both share, were not read"
    read = f"Read {byte_size(result.bytes_read)}" + (shared if result.bytes_shared else "") + "."
    return "\n\n".join([*sections, read])


def _finding(result: TensorDiff) -> str:
    counts = Counter(each.state for each in result.tensors if each.differs)
    every = count_of(len(result.tensors), "tensor")
    if not counts:
        return f"No differences: {every} in both, of the same values."
    differ = counts.total()
    kinds = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    return f"Of {every} {differ:,} {'differs' if differ == 1 else 'differ'}: {kinds}."


def _expected(result: TensorDiff) -> str:
    differ = sum(each.differs for each in result.tensors)
    if not result.unexpected:
        return f"All of that is expected (--expect): {count_of(differ, 'difference')}."
    return f"Not expected (--expect): {_named(result.unexpected)}."


def _layers(tensors: Sequence[TensorChange]) -> str:
    """Return a line for each layer in which a tensor changed, with the one that did most; of many, the most changed."""
    layers: dict[tuple[str, int], list[TensorChange]] = {}
    for tensor in tensors:
        layers.setdefault(_layer(tensor.name), []).append(tensor)
    most = {
        layer: max((each for each in them if each.state == "changed"), key=_size)
        for layer, them in layers.items()
        if any(each.state == "changed" for each in them)
    }
    kept = set(sorted(most, key=lambda layer: _size(most[layer]), reverse=True)[:SHOWN_LAYERS])
    stacks = len({stack for stack, number in most if number >= 0}) > 1
    rows = []
    for layer in (each for each in sorted(most) if each in kept):
        stack, number = layer
        tensor, differing = most[layer], sum(each.differs for each in layers[layer])
        name = tensor.name if number < 0 else tensor.name[len(f"{stack}{number}.") :]
        rows.append(
            [
                "-" if number < 0 else shown(f"{stack}{number}", 30) if stacks else number,
                f"{differing} of {len(layers[layer])}",
                shown(name, 46),
                _amount(tensor),
                "-" if tensor.cosine is None else f"{tensor.cosine:.5f}",
                _share(tensor.unchanged),
            ]
        )
    text = (
        "By layer: how many of its tensors differ, and of the most changed, matrices first, how far it moved "
        "(||new - old|| / ||old||), its cosine, and how many of its values are unchanged"
    )
    more = len(most) - len(kept)
    lines = table(["layer", "differ", "most changed", "moved", "cosine", "unchanged"], rows)
    return f"{fill(text)}\n\n{lines}" + (f"\n\n… and {count_of(more, 'layer')} more (--json and --csv)" if more else "")


def _layer(name: str) -> tuple[str, int]:
    """Return the layer of a tensor, as what its name has before the number and that; -1 where it has none."""
    found = IN_A_NAME.search(name)
    return (name[: found.start()], int(found[0])) if found else ("", -1)


def _size(tensor: TensorChange) -> tuple[bool, bool, float]:
    """Return what the most changed is told by: what is not finite, matrices; bytes, and what was zero before, last."""
    matrix = len(tensor.new_shape or ()) > 1
    return bool(tensor.nonfinite), matrix, -1.0 if tensor.relative_change is None else tensor.relative_change


def _amount(tensor: TensorChange) -> str:
    change = tensor.relative_change
    if not change and tensor.nonfinite:
        return "not finite"
    if change is None:
        return "-"
    if change == 0:
        return "0%"
    if change >= 10:
        return f"{change:.3g} x"
    return f"{change:.2%}" if change >= 1e-4 else f"{change:.0e}"


def _share(part: float | None) -> str:
    """Return a share, in which nothing but all is 100 % and nothing but none is 0."""
    if part is None:
        return "-"
    text = f"{part:.2%}"
    return {"100.00%": ">99.99%", "0.00%": "<0.01%"}.get(text, text) if 0 < part < 1 else f"{part:.0%}"


def _others(state: str, tensors: Sequence[TensorChange]) -> str:
    """Return the names of what is in this state, as a line; empty where nothing is."""
    them = [each for each in tensors if each.state == state]
    if not them:
        return ""
    notes = "; ".join(dict.fromkeys(shown(each.note, 160) for each in them if each.note and state == "not compared"))
    return fill(f"{TITLES[state]}: {_named([each.name for each in them])}" + (f" ({notes})" if notes else "") + ".")


def _not_finite(tensors: Sequence[TensorChange]) -> str:
    count = count_of(sum(each.nonfinite or 0 for each in tensors), "value")
    names = _named([each.name for each in tensors])
    return f"NaN or infinite on a side, and left out of how far a tensor moved and its cosine: {count} of {names}."


def _named(names: Sequence[str]) -> str:
    """Return names in few words: those that differ by numbers alone as one, with how many they are."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(starred(name), []).append(name)
    kept = list(families.items())[:SHOWN_NAMES]
    said = [shown(of[0], 80) if len(of) == 1 else f"{shown(family, 80)} x {len(of)}" for family, of in kept]
    more = len(names) - sum(len(of) for _, of in kept)
    return ", ".join(said) + (f" and {more:,} more" if more else "")
