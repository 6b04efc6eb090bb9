"""Pure: the catalog -> what its page says of each model: analyses, what others report, filters and searches."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any
from urllib.parse import urlsplit

from analyzer.catalog.documents import Document, Entry, Reported, increase_of, is_super, place_of
from analyzer.catalog.report import sentences_of
from analyzer.catalog.reported import DISPUTES
from analyzer.site.drawing import LEAST_LAYERS, MAX_SIZE, Drawing, Sizes, draw

# What is known of a weight or of a model, the surest first: the page's marks, legends and filter.
KINDS = {
    "critical": "Verified: critical",
    "inert": "Verified: inert",
    "unmeasured": "Verified: effect not measured",
    "coincident": "Looked at: coincident",
    "none": "Verified: none found",
    "reported": "Reported",
    "disputed": "Reported: disputed",
    "none_reported": "Reported: none, or no coordinate",
}
MEANINGS = {
    "critical": "zeroing it costs the model far more than zeroing its control weights",
    "inert": "it writes a super activation, and zeroing it is harmless",
    "unmeasured": "it writes a super activation; what zeroing it costs was not measured",
    "coincident": "it sits on a channel that grows large, and zeroing it takes no lasting activation away",
    "none": "this tool looked and found no super weight",
    "reported": "others published it; not verified here",
    "disputed": "the sources contradict each other",
    "none_reported": "a source found none, or published no coordinate",
}
SOURCE_KINDS = ("paper", "code", "census", "notebook")  # in the order in which they are shown
YEAR = re.compile(r"\b(?:19|20)\d\d\b", re.ASCII)
NOWHERE = {"layer": None}  # the place of what has none
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Verified:
    """One analysis by this tool, as the page shows it: the worst weights first.

    `losses` has each number of tokens with the loss over them of the model as it is, the most tokens first; `joint` the
    loss to compare that of joint zeroing with, where it is known, and a weight that costs more alone, if there is one.
    """

    entry: Entry
    weights: tuple[tuple[str, Mapping[str, Any]], ...]
    confirmed: int
    critical: int
    experts: bool
    losses: tuple[tuple[int, float], ...]
    joint: tuple[float | None, str | None]
    drawing: Drawing | None
    sentences: tuple[str, ...]
    """What the analysis tells over its prompts."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source of a model's reports: `url` is null where it is no address to link to; notes with their places."""

    name: str
    kind: str
    url: str | None
    notes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Others:
    """What others report on one model: coordinates, why some are or were disputed, what is said in place of one."""

    items: tuple[Reported, ...]
    disputes: tuple[tuple[str, str, str], ...]
    absences: tuple[str, ...]
    sources: tuple[Source, ...]
    experts: bool
    drawing: Drawing | None


@dataclass(frozen=True, slots=True)
class Panel:
    """One model: `known` has each kind with its coordinate, `at` each kind with its layer, which are its filters.

    `search` are the words that find it, `numbers` those of its rows and columns and the years of its sources.
    """

    slug: str
    family: str
    model: str
    verified: tuple[Verified, ...]
    others: Others | None
    known: tuple[tuple[str, str], ...]
    at: tuple[tuple[str, int | None], ...]
    search: str
    numbers: str
    depth: int | None
    hub_url: str | None
    commands: tuple[str, ...]

    @property
    def layers(self) -> list[int]:
        """The layers in which something is known, in order."""
        return sorted({layer for _, layer in self.at if layer is not None})

    @property
    def counts(self) -> list[tuple[str, int]]:
        """How many coordinates of each kind are known."""
        return [(kind, n) for kind in KINDS if (n := sum(kind == other for other, _ in self.known))]


def panels_of(documents: Mapping[str, Document]) -> list[Panel]:
    """Return a panel for each model of each family, verified ones first; its entries and reports meet in any case."""
    models: dict[tuple[str, str], tuple[list[Entry], list[Reported]]] = {}
    for family, document in documents.items():
        for entry in document["entries"]:
            models.setdefault((family, entry["model"].lower()), ([], []))[0].append(entry)
        for item in document["reported"]:
            models.setdefault((family, item["model"].lower()), ([], []))[1].append(item)
    panels: list[Panel] = []
    slugs: set[str] = set()
    for (family, _), (entries, reported) in sorted(models.items(), key=_order):
        panels.append(_panel(family, entries, reported, slugs))
        slugs.add(panels[-1].slug)
    return panels


def _order(item: tuple[tuple[str, str], tuple[list[Entry], list[Reported]]]) -> tuple[bool, tuple[str, str]]:
    name, (entries, _) = item
    return not entries, name


def _panel(family: str, entries: Sequence[Entry], reported: Sequence[Reported], slugs: Iterable[str]) -> Panel:
    model: str = (*entries, *reported)[0]["model"]
    verified = tuple(_verified(entry) for entry in entries)
    here = [pair for each in verified for pair in each.weights]
    here += [("none", NOWHERE) for each in verified if not each.confirmed]
    records = [*here, *((item["standing"], item) for item in reported)]
    records.sort(key=lambda pair: list(KINDS).index(pair[0]))
    names = [source["name"] for item in reported for source in item["sources"]]
    words = [model, family, *(entry["method"]["tool"] for entry in entries), *names]
    words += [KINDS[kind] for kind, _ in records] + [place_of(record) for _, record in records if record is not NOWHERE]
    numbers = [str(record[axis]) for _, record in records for axis in ("row", "col") if record.get(axis) is not None]
    depth = max((entry["num_layers"] for entry in entries), default=None)
    return Panel(
        slug=_slug(model, slugs),
        family=family,
        model=model,
        verified=verified,
        others=_others(reported, entries) if reported else None,
        known=(
            *dict.fromkeys((kind, place_of(record)) for kind, record in here),  # once, in however many analyses
            *((item["standing"], place_of(item)) for item in reported),
        ),
        at=tuple(dict.fromkeys((kind, record["layer"]) for kind, record in records)),
        search=" ".join(dict.fromkeys(words)),
        numbers=" ".join(dict.fromkeys([*numbers, *YEAR.findall(" ".join(names))])),
        depth=None if depth is None else min(depth, MAX_SIZE),
        hub_url=f"https://huggingface.co/{model}" if HUB_ID.fullmatch(model) else None,
        commands=_commands(model, exports=any(record["layer"] is not None for _, record in records)),
    )


def _verified(entry: Entry) -> Verified:
    weights = sorted(
        entry["super_weights"],
        key=lambda w: (not is_super(w), w["effect"] != "critical", -(increase_of(w) or 0.0), place_of(w)),
    )
    kinds = [(_kind(weight), weight) for weight in weights]
    drawn = weights or entry["super_activations"]
    return Verified(
        entry=entry,
        weights=tuple(kinds),
        confirmed=sum(weight["status"] == "confirmed" for weight in weights),
        critical=sum(kind == "critical" for kind, _ in kinds),
        experts=any(weight["expert"] is not None for weight in weights),
        losses=_losses(weights),
        joint=_joint(entry, weights),
        drawing=draw(kinds, entry["super_activations"], _sizes(entry)) if drawn else None,
        sentences=tuple(sentences_of(entry)),
    )


def _kind(weight: Mapping[str, Any]) -> str:
    """Return which of KINDS a weight of an analysis is: its effect, if it is a super weight."""
    return weight["effect"] or "unmeasured" if is_super(weight) else "coincident"


def _losses(weights: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    pairs = {w["loss_tokens"]: w["loss"] for w in weights if w["loss"] is not None and w["loss_tokens"] is not None}
    return tuple(sorted(pairs.items(), reverse=True))


def _joint(entry: Entry, weights: Sequence[Mapping[str, Any]]) -> tuple[float | None, str | None]:
    """Return the loss before all were zeroed at once, and where the weight is that costs more alone, if one does.

    Losses are compared over as many tokens. Where joint zeroing does not say over how many it is, it is over the whole
    text. That a weight's losses are too is known of those that have controls, and of those that are over more tokens
    than others.
    """
    joint, losses = entry["joint"], _losses(weights)
    if not joint:
        return None, None
    tokens = joint.get("loss_tokens", losses[0][0] if losses else None)
    here = [w for w in weights if w["loss"] is not None and w["loss_tokens"] == tokens]
    before = joint.get("loss")
    if "loss_tokens" not in joint:
        if not (losses[1:] or any(w["control_loss_max"] is not None for w in here)):
            return None, None
        before = losses[0][1]
    worst = max(here, key=_zeroed, default=None)
    return before, place_of(worst) if worst is not None and _zeroed(worst) > _zeroed(joint) else None


def _zeroed(record: Mapping[str, Any]) -> float:
    loss: float | None = record["loss_zeroed"]
    return math.inf if loss is None else loss


def _sizes(entry: Entry) -> Sizes:
    return Sizes(entry["num_layers"], entry["hidden_size"], entry["intermediate_size"])


def _others(reported: Sequence[Reported], entries: Sequence[Entry]) -> Others:
    """Return what others report on one model; its sizes are known where this tool has analysed it."""
    items = tuple(item for item in reported if item["layer"] is not None)
    disputes: dict[tuple[str, str], list[str]] = {}
    for item in items:
        if item["reason"]:
            disputes.setdefault((DISPUTES[item["standing"]], item["reason"]), []).append(place_of(item))
    sizes = _sizes(entries[0]) if entries else Sizes()
    says = sizes.layers is not None or len({item["layer"] for item in items}) >= LEAST_LAYERS
    return Others(
        items=items,
        disputes=tuple((word, ", ".join(dict.fromkeys(places)), reason) for (word, reason), places in disputes.items()),
        absences=tuple(item["reason"] for item in reported if item["layer"] is None),
        sources=_sources(reported),
        experts=any(item["expert"] is not None for item in items),
        drawing=draw([(item["standing"], item) for item in items], [], sizes) if items and says else None,
    )


def _sources(reported: Sequence[Reported]) -> tuple[Source, ...]:
    """Return each source once, papers first, and each of its notes with the coordinates that it is about."""
    sources: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for item in reported:
        for source in item["sources"]:
            notes = sources.setdefault((source["name"], source["kind"], source["url"]), {})
            if source["note"] is not None:
                notes.setdefault(source["note"], []).append(place_of(item))
    return tuple(
        Source(name, kind, _link(url), tuple((", ".join(dict.fromkeys(at)), note) for note, at in notes.items()))
        for (name, kind, url), notes in sorted(sources.items(), key=lambda pair: SOURCE_KINDS.index(pair[0][1]))
    )


def _link(url: str) -> str | None:
    """Return an address that a page may link to: of the web, with a host, and without a user's name before it."""
    try:
        parts = urlsplit(url)
        return url if parts.scheme in ("https", "http") and parts.hostname and parts.username is None else None
    except ValueError:
        return None


def _slug(model: str, taken: Iterable[str]) -> str:
    """Return what names a model in the page's address: its own name where that may stand there, whatever the others."""
    name = re.sub(r"[^A-Za-z0-9._/-]+", "-", model)
    if name != model:
        name += f"~{hashlib.sha256(model.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return next(slug for slug in chain([name], (f"{name}~{n}" for n in count(2))) if slug not in taken)


def _commands(model: str, *, exports: bool) -> tuple[str, ...]:
    """Return what to type for a model's coordinates, whatever its name makes of a shell."""
    name = shlex.quote(model) if not model.startswith("-") else f"-- {shlex.quote(model)}"
    export = [f"superweight catalog export --format json {name}"] if exports else []
    return (f"superweight catalog show --json {name}", *export)
