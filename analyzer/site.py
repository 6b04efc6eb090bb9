"""The catalog -> a static page that needs nothing else: one HTML file, readable without its script."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from analyzer.atomic import write_whole
from analyzer.catalog_format import Document, Entry, Reported, place_of
from analyzer.errors import CatalogError, shown
from analyzer.site_drawing import MAX_SIZE, Drawing, Sizes, draw

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, README = "index.html", "README.md"
GENERATOR = b'<meta name="generator" content="superweight-analyzer">'  # by which a page of ours is known
GENERATOR_WITHIN = 4096  # bytes from the start of the page
MAX_TEXT = 100_000  # characters of one text of the catalog: none is cut that passes its schema
STRIP = 120  # width of a model's small drawing, in its own units

# What is known of a weight or of a model, the surest first: the page's marks, legends and filter.
KINDS = {
    "critical": "Verified: critical",
    "inert": "Verified: inert",
    "unmeasured": "Verified: effect not measured",
    "coincident": "Verified: coincident",
    "none": "Verified: none found",
    "reported": "Reported",
    "disputed": "Reported: disputed",
    "none_reported": "Reported: none, or no coordinate",
}
MEANINGS = {
    "critical": "it writes a super activation, and zeroing it costs the model",
    "inert": "it writes a super activation, and zeroing it is harmless",
    "unmeasured": "it writes a super activation; what zeroing it costs was not measured",
    "coincident": "it sits on a super activation’s channel, and zeroing it does not take the activation away",
    "none": "this tool looked and found no super weight",
    "reported": "others published it; not verified here",
    "disputed": "the sources contradict each other",
    "none_reported": "a source found none, or published no coordinate",
}
SOURCE_KINDS = ("paper", "code", "census", "notebook")  # in the order in which they are shown
NOWHERE = {"layer": None}  # the place of what has none
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

SPACE_README = b"""\
---
title: Super weight catalog
emoji: \xf0\x9f\x94\x8e
colorFrom: red
colorTo: gray
sdk: static
app_file: index.html
pinned: false
license: apache-2.0
---

Which single weights of large language models carry their ability to write text: coordinates, evidence and sources.
`index.html` is the whole page. It was written by `superweight catalog site`, which writes it again from the catalog.
"""


@dataclass(frozen=True, slots=True)
class Verified:
    """One analysis by this tool, as the page shows it: the worst weights first."""

    entry: Entry
    weights: tuple[tuple[str, Mapping[str, Any]], ...]
    confirmed: int
    critical: int
    experts: bool
    drawing: Drawing | None


@dataclass(frozen=True, slots=True)
class Source:
    """A source of a model's reports: `url` is null where it is no address to link to; notes with their places."""

    name: str
    kind: str
    url: str | None
    notes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Others:
    """What others report on one model: coordinates, why some are disputed, what is said in place of one."""

    items: tuple[Reported, ...]
    disputes: tuple[tuple[str, str], ...]
    absences: tuple[str, ...]
    sources: tuple[Source, ...]
    experts: bool
    drawing: Drawing | None


@dataclass(frozen=True, slots=True)
class Panel:
    """One model: `known` has each kind with its coordinate, `at` each kind with its layer, which are its filters."""

    slug: str
    family: str
    model: str
    verified: tuple[Verified, ...]
    others: Others | None
    known: tuple[tuple[str, str], ...]
    at: tuple[tuple[str, int | None], ...]
    search: str
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


def render_site(documents: Mapping[str, Document]) -> dict[str, bytes]:
    """Return the files of the page by name, the same bytes for the same catalog; `documents` are validated ones."""
    environment = _environment()
    panels = _panels(documents)
    style, script = _data("site.css"), _data("site.js")
    page = environment.get_template("site.html.jinja").render(
        panels=panels,
        families=sorted({panel.family for panel in panels}),
        layers=sorted({layer for panel in panels for layer in panel.layers}),
        used_kinds=[kind for kind in KINDS if any(kind == other for panel in panels for other, _ in panel.at)],
        kinds=KINDS,
        meanings=MEANINGS,
        totals=Counter(kind for panel in panels for kind, _ in panel.known),
        strip_layers=max([panel.depth or 0 for panel in panels] + [n + 1 for p in panels for n in p.layers], default=1),
        strip=STRIP,
        style=_literal(style),
        script=_literal(script),
        policy=_policy(style=style, script=script),
    )
    return {PAGE: page.encode("utf-8"), README: SPACE_README}


def write_site(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write the page's files into a folder, each atomically, and return those that it has written or that say the same.

    What else is in the folder stays, a README of its own too. Raises CatalogError where the folder has an index.html
    that is not one of ours, or cannot be written; the page that was there is then as it was.
    """
    path = folder / PAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (path.exists() or path.is_symlink()) and not _is_ours(path):
            raise CatalogError(f"{shown(path)} is not a page that this tool wrote: give another folder, or move it")
        written = []
        for name, data in sorted(files.items()):  # the README first: a page is whole when it is there
            path = folder / name
            if name == README and path.exists() and path.read_bytes() != data:
                continue
            write_whole(path, data)
            written.append(path)
    except FileExistsError as error:
        raise CatalogError(f"{shown(folder)} is a file: give a folder for the page") from error
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}; what was there is unchanged") from error
    return written


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return GENERATOR in file.read(GENERATOR_WITHIN)


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_data),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible,
    )
    environment.filters.update(signed=lambda value: f"{value:+.5g}", place=place_of, short=_short)
    return environment


def _visible(value: Any) -> Any:
    """Return what a template prints: text of the catalog without characters that are invisible or turn it around."""
    return shown(value, MAX_TEXT) if type(value) is str else value


def _literal(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _data(name: str) -> str:
    return resources.files("analyzer").joinpath("data", name).read_text("utf-8")


def _policy(*, style: str, script: str) -> str:
    """Return a Content-Security-Policy by which this style and script are all that the page can run or load."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _short(commit: str) -> str:
    """Return a commit or hash in 12 digits, anything else as it is."""
    kind, _, digits = commit.rpartition(":")
    return f"{kind}{':' if kind else ''}{digits[:12]}" if re.fullmatch(r"[0-9a-f]{40,}", digits) else commit


def _panels(documents: Mapping[str, Document]) -> list[Panel]:
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
        search=" ".join(dict.fromkeys([model, family, *(entry["method"]["tool"] for entry in entries), *names])),
        depth=None if depth is None else min(depth, MAX_SIZE),
        hub_url=f"https://huggingface.co/{model}" if HUB_ID.fullmatch(model) else None,
        commands=_commands(model, exports=any(record["layer"] is not None for _, record in records)),
    )


def _verified(entry: Entry) -> Verified:
    weights = sorted(
        entry["super_weights"],
        key=lambda w: (w["status"] != "confirmed", w["effect"] != "critical", -(w["loss_zeroed"] or 0.0), place_of(w)),
    )
    kinds = [(_kind(weight), weight) for weight in weights]
    drawn = weights or entry["super_activations"]
    return Verified(
        entry=entry,
        weights=tuple(kinds),
        confirmed=sum(weight["status"] == "confirmed" for weight in weights),
        critical=sum(kind == "critical" for kind, _ in kinds),
        experts=any(weight["expert"] is not None for weight in weights),
        drawing=draw(kinds, entry["super_activations"], _sizes(entry)) if drawn else None,
    )


def _kind(weight: Mapping[str, Any]) -> str:
    """Return which of KINDS a weight of an analysis is: its effect, if it is confirmed."""
    return weight["effect"] or "unmeasured" if weight["status"] == "confirmed" else "coincident"


def _sizes(entry: Entry) -> Sizes:
    return Sizes(entry["num_layers"], entry["hidden_size"], entry["intermediate_size"])


def _others(reported: Sequence[Reported], entries: Sequence[Entry]) -> Others:
    """Return what others report on one model; its sizes are known where this tool has analysed it."""
    items = tuple(item for item in reported if item["layer"] is not None)
    disputes: dict[str, list[str]] = {}
    for item in items:
        if item["standing"] == "disputed":
            disputes.setdefault(item["reason"], []).append(place_of(item))
    sizes = _sizes(entries[0]) if entries else Sizes()
    return Others(
        items=items,
        disputes=tuple((", ".join(dict.fromkeys(places)), reason) for reason, places in disputes.items()),
        absences=tuple(item["reason"] for item in reported if item["layer"] is None),
        sources=_sources(reported),
        experts=any(item["expert"] is not None for item in items),
        drawing=draw([(item["standing"], item) for item in items], [], sizes) if items else None,
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
    """Return what names a model in the page's address: one that is not taken."""
    name = re.sub(r"[^A-Za-z0-9._/-]+", "-", model)
    return next(slug for slug in chain([name], (f"{name}~{n}" for n in count(2))) if slug not in taken)


def _commands(model: str, *, exports: bool) -> tuple[str, ...]:
    """Return what to type for a model's coordinates, whatever its name makes of a shell."""
    name = shlex.quote(model) if not model.startswith("-") else f"-- {shlex.quote(model)}"
    export = [f"superweight catalog export --format json {name}"] if exports else []
    return (f"superweight catalog show --json {name}", *export)
