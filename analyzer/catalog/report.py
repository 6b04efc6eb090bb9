"""The catalog -> what a person reads, in 100 columns: what this tool found, apart from what others report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import tabulate

from analyzer.base.errors import shown
from analyzer.base.text import WIDTH, count_of, fill, model_title, short_commit
from analyzer.catalog.documents import Entry, Reported, increase_of, place_of
from analyzer.catalog.reported import DISPUTES
from analyzer.verify.records import SuperActivation, SuperWeight
from analyzer.verify.report import activations_table, weights_table
from analyzer.verify.sentences import headroom_sentence, sinks_sentence

REPORTED_TITLE = "Reported by others, not verified here"
SHOWN_PLACES = 4
SHOWN_FAMILY = 18
STANDINGS = {"reported": "reported", "disputed": "disputed", "none_reported": "none"}
WORDS = {"family", "model", "commit", "most critical", "standing"}  # the columns that are aligned to the left


SHOWN = {field.name for field in fields(SuperWeight)}  # of an entry's weight, which has more


def render_catalog(entries: Sequence[tuple[str, Entry]], reported: Sequence[tuple[str, Reported]] = ()) -> str:
    """Return a list of catalog entries as text, and below it one of what others report."""
    if not entries and not reported:
        return "The catalog has no entries yet: `superweight analyze MODEL` writes one."
    sections = [_entries_list(entries)] if entries else ["No verified entries yet."]
    if reported:
        sections += [REPORTED_TITLE, _reported_list(reported)]
    return "\n\n".join(sections)


def render_entry(family: str, entry: Entry) -> str:
    """Return one catalog entry as text."""
    weights = [
        SuperWeight(**{key: value for key, value in weight.items() if key in SHOWN})
        for weight in sorted(
            entry["super_weights"], key=lambda w: (w["effect"] != "critical", -(increase_of(w) or 0.0))
        )
    ]
    method = entry["method"]
    sections = [
        model_title(entry["model"], None, entry["commit"]) + f", family {family}",
        *([fill(shown(entry["note"], 500))] if entry["note"] else []),
        f"Verdict: {entry['verdict']}, by {shown(method['tool'], 40)} {shown(method['version'], 20)} "
        f"in {shown(method['dtype'], 20)} on {shown(method['device'], 20)}.",
    ]
    if weights:
        sections.append(weights_table(weights))
    if activations := [SuperActivation(**activation) for activation in entry["super_activations"]]:
        sections.append(activations_table(activations))
    sections += map(fill, sentences_of(entry))
    return "\n\n".join(sections)


def sentences_of(entry: Entry) -> Iterator[str]:
    """Yield what an entry tells over its prompts: where super activations sit, and whether formats overflow."""
    if (sinks := entry.get("sinks")) and (sentence := sinks_sentence(sinks, entry.get("prefix"))):
        yield sentence
    if headroom := entry.get("headroom"):
        yield headroom_sentence(headroom)


def render_reported(reported: Sequence[tuple[str, Reported]]) -> str:
    """Return what others report on the models that were asked for: a table for each, the reasons, the sources."""
    models: dict[tuple[str, str], list[Reported]] = {}
    for family, item in reported:
        models.setdefault((family, item["model"]), []).append(item)
    sections = []
    for (family, model), items in models.items():
        sections.append(f"{shown(model, 60)}, family {shown(family)}\n{REPORTED_TITLE}")
        if any(item["layer"] is not None for item in items):
            sections.append(_reported_table([item for item in items if item["layer"] is not None]))
        sections += [fill(f"No coordinate: {shown(item['reason'], 300)}.") for item in items if item["layer"] is None]
        reasons: dict[tuple[str, str], list[Reported]] = {}
        for item in items:
            if item["layer"] is not None and item["reason"]:
                reasons.setdefault((DISPUTES[item["standing"]], item["reason"]), []).append(item)
        sections += [fill(f"{word}: {_places(them)}: {shown(why, 500)}") for (word, why), them in reasons.items()]
        sections.append(_sources(items))
    return "\n\n".join(sections)


def render_agreement(agreed: Sequence[Mapping[str, Any]]) -> str:
    """Return whether an analysis sees what others report: a sentence for each of their groups of coordinates."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in agreed:
        who = _listed([shown(name, 80) for name in each["sources"]])
        groups.setdefault((who, _outcome(each)), []).append(each)
    sentences = []
    for (who, outcome), them in groups.items():
        where = f": {_places(them)}" if them[0]["layer"] is not None else ""
        sentences.append(fill(f"Reported by {who}{where}: {outcome}."))
    return "\n".join(sentences)


def _outcome(each: Mapping[str, Any]) -> str:
    if each["layer"] is None:
        here = {True: "none here either", False: "but found here", None: "nothing to agree with"}[each["agrees"]]
        return f"{shown(each['reason'], 200)}; {here}"
    if each["here"] == "confirmed" and each["col"] is None:
        outcome = f"confirmed here, by {_places(each['weights'])}"
    elif each["here"] == "coincident":
        outcome = "not confirmed here: it sits on the channel, but zeroing it does not take the activation away"
    elif each["here"] == "late":
        outcome = "not confirmed here: what it writes comes too near to the end to be a super activation"
    elif each["here"] == "critical":
        outcome = "critical here, though not confirmed"
    else:
        outcome = "confirmed here" if each["here"] else "not seen here"
    if each["revision"] is None:
        return f"{outcome} (they name no revision)"
    return (
        outcome
        if each["same_commit"]
        else f"{outcome} (theirs is revision {short_commit(shown(each['revision'], 40))})"
    )


def _entries_list(entries: Sequence[tuple[str, Entry]]) -> str:
    """Return a line for each entry: how many weights are confirmed and critical, and which costs most."""
    rows = []
    for family, entry in entries:
        confirmed = [w for w in entry["super_weights"] if w["status"] == "confirmed"]
        critical = [w for w in entry["super_weights"] if w["effect"] == "critical"]
        worst = max(critical, key=lambda w: increase_of(w) or 0.0, default=None)
        where = place_of(worst) if worst else "-"
        rows.append([family, entry["model"], short_commit(entry["commit"]), len(confirmed), len(critical), where])
    return _names_table(["family", "model", "commit", "confirmed", "critical", "most critical"], rows)


def _reported_list(reported: Sequence[tuple[str, Reported]]) -> str:
    """Return a line for each model, by family: how many weights and rows of which standing, in how many sources."""
    models: dict[tuple[str, str], list[Reported]] = {}
    for family, item in sorted(reported, key=lambda pair: (pair[0], pair[1]["model"].lower())):
        models.setdefault((family, item["model"]), []).append(item)
    rows = []
    for (family, model), items in models.items():
        standings = [word for standing, word in STANDINGS.items() if any(standing == i["standing"] for i in items)]
        sources = {source["name"] for item in items for source in item["sources"]}
        weights = sum(item["col"] is not None for item in items)
        lines = sum(item["row"] is not None and item["col"] is None for item in items)
        rows.append([family, model, ", ".join(standings), weights, lines, len(sources)])
    return _names_table(["family", "model", "standing", "weights", "rows", "sources"], rows)


def _names_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of a family, a model and what is known of it, with the names cut so that all has room."""
    cells = [[shown(row[0], SHOWN_FAMILY), *map(str, row[1:])] for row in rows]
    others = sum(2 + max(map(len, column)) for n, column in enumerate(zip(header, *cells, strict=True)) if n != 1)
    room = max(WIDTH - others, len(header[1]))
    cells = [[family, shown(model, room), *rest] for family, model, *rest in cells]
    aligned = ["left" if name in WORDS else "right" for name in header]
    return tabulate.tabulate(cells, header, disable_numparse=True, colalign=aligned)


def _reported_table(items: Sequence[Reported]) -> str:
    experts = any(item["expert"] is not None for item in items)
    rows = [
        [
            item["layer"],
            *(["-" if item["expert"] is None else item["expert"]] if experts else []),
            item["row"],
            "any" if item["col"] is None else item["col"],
            "-" if item["value"] is None else f"{item['value']:+.5g}",
            item["standing"],
            "-" if item["revision"] is None else short_commit(shown(item["revision"], 40)),
            shown(item["sources"][0]["name"], 30)
            + (f" and {count_of(len(item['sources']) - 1, 'other')}" if item["sources"][1:] else ""),
        ]
        for item in items
    ]
    header = ["layer", *(["expert"] if experts else []), "row", "col", "value", "standing", "revision", "source"]
    aligned = ["left" if name in ("standing", "revision", "source") else "right" for name in header]
    return tabulate.tabulate(rows, header, disable_numparse=True, colalign=aligned)


def _sources(items: Sequence[Reported]) -> str:
    """Return who says what: each source once, and each of its notes with the coordinates that it is about."""
    sources: dict[tuple[str, str, str], dict[str, list[Reported]]] = {}
    for item in items:
        for source in item["sources"]:
            notes = sources.setdefault((source["name"], source["kind"], source["url"]), {})
            if source["note"] is not None:
                notes.setdefault(source["note"], []).append(item)
    lines = ["Sources"]
    for (name, kind, url), notes in sources.items():
        lines += ["", f"{shown(name, 80)} ({kind})", f"  {shown(url)}"]
        lines += [
            textwrap.fill(
                f"{_places(them)}: {shown(note, 300)}",
                WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
            )
            for note, them in notes.items()
        ]
    return "\n".join(lines)


def _places(items: Sequence[Mapping[str, Any]]) -> str:
    places = list(dict.fromkeys(place_of(item) for item in items))
    more = len(places) - SHOWN_PLACES
    return _listed([*places[:SHOWN_PLACES], f"{more} more"] if more > 0 else places, "; ")


def _listed(parts: Iterable[str], between: str = ", ") -> str:
    *first, last = parts
    return f"{between.join(first)} and {last}" if first else last
