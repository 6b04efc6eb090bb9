"""Looking a model up: its entries, what others report, its coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from os import PathLike
from pathlib import Path
from typing import Any

from analyzer.base.errors import CatalogError, shown
from analyzer.base.records import Coordinate
from analyzer.catalog.documents import (
    Document,
    Reported,
    is_super,
)
from analyzer.catalog.documents import Entry as Entry
from analyzer.catalog.files import (
    known_documents,
    read_documents,
)

PLACED = ("tower", "mlp", "module", "parameter")
STORED = ("row_rank", "rank_in_128", "rank_in_32", "row_others_max")
REPORTED_PRECISION = 2.0**-8  # relative: others print values of bfloat16, or rounded ones
NEAR = 0.5  # how alike two names must be for one to be meant by the other


@dataclass(frozen=True, slots=True)
class KnownCoordinate:
    """A coordinate of the catalog that a quantizer may want to protect.

    `standing` is `verified` (found by this tool at `commit`), `reported` or `disputed` (by others; `commit` is then
    their revision, or null). `col` is null where a whole row is reported, `value` and `effect` where none is known.
    `module` and what follows it are as an entry has them (`analyze/stored.py`), null where it has none; of what is
    reported only the module is known, where an entry has one of the same place.
    """

    model: str
    commit: str | None
    layer: int
    expert: int | None
    row: int
    col: int | None
    value: float | None
    standing: str
    effect: str | None
    sources: tuple[str, ...]
    model_type: str | None
    tower: str | None = None
    mlp: int | None = None
    module: str | None = None
    parameter: str | None = None
    row_rank: int | None = None
    rank_in_128: int | None = None
    rank_in_32: int | None = None
    row_others_max: float | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where it is; of a whole row, its first weight."""
        return Coordinate(self.layer, self.expert, self.row, self.col or 0, self.tower, self.mlp)


def coordinates_of(model: str, *, folder: str | PathLike[str] | None = None) -> list[KnownCoordinate]:
    """Return a model's known coordinates, verified ones first: its super weights, and what others report.

    `model` is a Hub id or the part of it after the slash, in any case, also `model@commit`. `folder` is a catalog's;
    without it, `catalog` in the current folder, where there is one, and the record that comes with the tool are looked
    in. The list is empty where nothing was found. Raises CatalogError where the catalog has no such model, naming the
    nearest, or is broken.

    >>> [(each.layer, each.row, each.col) for each in coordinates_of("mistralai/Mistral-7B-v0.1")][-1]
    (1, 2070, 7310)
    """
    return coordinates_in(known_documents(None if folder is None else Path(folder)), model)


def weights_known_of(model: str, *, folder: Path | None = None) -> list[Coordinate]:
    """Return the weights among a model's known coordinates, each once; rows without a column are none.

    Raises CatalogError like coordinates_of, and where nothing but rows is known.
    """
    known = coordinates_of(model, folder=folder)
    weights = [Coordinate(c.layer, c.expert, c.row, c.col, c.tower, c.mlp) for c in known if c.col is not None]
    if not weights:
        raise CatalogError(f"the catalog knows no single weight of {shown(model, 80)}: name some with --weight")
    return list(dict.fromkeys(weights))


def known_of(documents: Mapping[str, Document], model: str) -> list[KnownCoordinate]:
    """Return what coordinates_of does, or nothing where these documents have no such model."""
    names = {item["model"] for _, item in (*entries_in(documents), *reported_in(documents))}
    return coordinates_in(documents, model) if any(model.lower() in _names(name) for name in names) else []


def coordinates_in(documents: Mapping[str, Document], model: str) -> list[KnownCoordinate]:
    """Return what coordinates_of does, from these documents. Raises CatalogError like lookup."""
    entries, reported = lookup(documents, model)
    types = {entry["model"].lower(): entry["model_type"] for _, entry in entries}
    known = [
        KnownCoordinate(
            model=entry["model"],
            commit=entry["commit"],
            standing="verified",
            sources=(f"{entry['method']['tool']} {entry['method']['version']}",),
            model_type=entry["model_type"],
            **{key: weight[key] for key in ("layer", "expert", "row", "col", "value", "effect")},
            **{key: weight[key] for key in (*PLACED, *STORED) if key in weight},
        )
        for _, entry in entries
        for weight in entry["super_weights"]
        if is_super(weight)
    ]
    modules: dict[Any, dict[str, Any]] = {
        (c.model.lower(), c.tower, c.layer, c.expert): {"module": c.module, "parameter": c.parameter}
        for c in known
        if c.mlp is None
    }
    known += [
        KnownCoordinate(
            model=item["model"],
            commit=item["revision"],
            effect=None,
            sources=tuple(source["name"] for source in item["sources"]),
            model_type=types.get(item["model"].lower()),
            **{key: item[key] for key in ("layer", "expert", "row", "col", "value", "standing")},
            **{key: item[key] for key in ("tower", "mlp") if key in item},
            **modules.get((item["model"].lower(), item.get("tower"), item["layer"], item["expert"]), {}),
        )
        for _, item in reported
        if item["layer"] is not None
    ]
    return known


def read_catalog(folder: str | PathLike[str]) -> list[tuple[str, Entry]]:
    """Return (family, entry) for every entry of a catalog's folder, by family; an entry is as the JSON file has it.

    Raises CatalogError, naming file, entry and field, where a file cannot be read or is not right.

    >>> read_catalog("catalog")[0][1]["verdict"]
    'found'
    """
    return entries_in(read_documents(Path(folder)))


def entries_in(documents: Mapping[str, Document]) -> list[tuple[str, Entry]]:
    """Return (family, entry) for every entry of these files."""
    return [(family, entry) for family, document in documents.items() for entry in document["entries"]]


def reported_in(documents: Mapping[str, Document]) -> list[tuple[str, Reported]]:
    """Return (family, coordinate) for everything that others report in these files."""
    return [(family, item) for family, document in documents.items() for item in document["reported"]]


def reported_on(documents: Mapping[str, Document], model: str) -> list[Reported]:
    """Return what others report on a model, of any revision.

    A local folder's name, which has no owner, is taken for the part of a Hub id after the slash.
    """
    return [item for _, item in reported_in(documents) if model.lower() in _names(item["model"])]


def lookup(documents: Mapping[str, Document], model: str) -> tuple[list[tuple[str, Entry]], list[tuple[str, Reported]]]:
    """Return a model's entries and what others report on it, each with its family; also for `model@commit`.

    The model is given by its full id or the part after the slash, in any case. Raises CatalogError, naming the
    nearest models, where the catalog has neither.
    """
    wanted, _, commit = model.strip().lower().partition("@")
    if not wanted:
        raise CatalogError("the model's name is empty: `superweight catalog list` shows all that the catalog has")
    entries, reported = entries_in(documents), reported_in(documents)
    found = [pair for pair in entries if _is_meant(pair[1]["model"], pair[1]["commit"], wanted, commit)]
    others = [pair for pair in reported if _is_meant(pair[1]["model"], pair[1]["revision"], wanted, commit)]
    if not found and not others:
        names = {item["model"] for _, item in (*entries, *reported)}
        here = sorted(name for name in names if wanted in _names(name))
        if here:
            there = [e["commit"] for _, e in entries if e["model"] in here]
            there += [item["revision"] for _, item in reported if item["model"] in here]
            raise CatalogError(
                f"the catalog has {shown(here[0], 80)}, but nothing at {shown(commit, 80)}: {_revisions(there)}"
            )
        near = _nearest(wanted, names)
        hint = f": did you mean {' or '.join(shown(name, 80) for name in near)}?" if near else ""
        raise CatalogError(f"the catalog has no entry for {shown(model)}{hint} (`superweight catalog list` shows all)")
    return found, others


def names_of(documents: Mapping[str, Document], model: str) -> list[str]:
    """Return what the models that are meant are called in these documents. Raises CatalogError like lookup."""
    entries, reported = lookup(documents, model)
    return list({item["model"].lower(): item["model"] for _, item in (*reported, *entries)}.values())


def _names(model: str) -> tuple[str, str]:
    return model.lower(), model.lower().rsplit("/", 1)[-1]


def _is_meant(model: str, revision: str | None, wanted: str, commit: str) -> bool:
    if wanted not in _names(model):
        return False
    return (revision or "").removeprefix("sha256:").startswith(commit.removeprefix("sha256:"))


def _revisions(found: Iterable[str | None]) -> str:
    """Return which revisions there are, up to three of them."""
    named = list(dict.fromkeys(shown(revision.removeprefix("sha256:")[:12]) for revision in found if revision))
    more = f" and {len(named) - 3} more" if named[3:] else ""
    return f"it has {', '.join(named[:3])}{more}" if named else "what it has names no revision"


def _nearest(wanted: str, models: Iterable[str]) -> list[str]:
    """Return up to three models whose id, or part of it after the slash, is like the one wanted, the best first."""

    def likeness(model: str) -> float:
        ratio = max(SequenceMatcher(None, wanted, name).ratio() for name in _names(model))
        return ratio + (1.0 if wanted in model.lower() else 0.0)

    near = [(likeness(model), model) for model in models if wanted]
    return [model for ratio, model in sorted(near, key=lambda pair: (-pair[0], pair[1])) if ratio >= NEAR][:3]
