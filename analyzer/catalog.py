"""The catalog: one JSON file per model family, with this tool's entries and what others have reported.

Writing the same analysis again leaves a file byte for byte the same. Writes are atomic (a temporary file, fsync,
rename) and take a lock, so that two writers lose nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from analyzer import __version__
from analyzer.catalog_format import (
    SCHEMA_FILE,
    Document,
    Reported,
    entry_key,
    load,
    problems,
    read_document,
    write_document,
)
from analyzer.catalog_format import Entry as Entry  # the type of make_entry's result
from analyzer.errors import CatalogError, shown
from analyzer.records import Outlier, ScanResult, VerifyResult, plain
from analyzer.reported import merged

DEFAULT_FOLDER = Path("catalog")
LOCK_FILE = ".lock"
LOCK_TIMEOUT_S = 30
SIGNIFICANT_DIGITS = 5  # of measured numbers; a weight's value is kept exactly
NEAR = 0.5  # how alike two names must be for one to be meant by the other

FAMILY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# 7b, 1.5B, 135M, 8x7B, 7b1, stories260K: the size ends the family's name, with what stands before it in the same word.
_SIZE = re.compile(r"(.*?)(?:\d+x)?\d+(?:\.\d+)?[kmbt]\d?", re.IGNORECASE)
_VARIANT = re.compile(
    "base|chat|instruct|it|hf|pt|sft|dpo|preview|deduped|random|uncased|cased|multilingual"
    "|nano|tiny|mini|small|medium|large|xl|xxl|lite|plus|pro|max"
    "|int4|int8|fp8|fp16|bf16|gptq|awq"
)


def family_of(model: str) -> str:
    """Return a model's family: its name without owner, size and variant, in lower case.

    `owner/SmolLM2-135M-Instruct` gives `smollm2`, `Llama-2-7b-hf` gives `llama-2`.
    """
    words = re.sub(r"[^a-z0-9._-]", "-", model.rsplit("/", 1)[-1].lower()).strip("-._").split("-")
    if words[0] == "meta" and len(words) > 1:  # Meta-Llama-3-8B and Llama-3.1-8B are one family
        del words[0]
    kept: list[str] = []
    for word in words:
        if size := _SIZE.fullmatch(word):
            kept += [size[1]] if size[1] else []
            break
        if kept and _VARIANT.fullmatch(word):
            break
        kept.append(word)
    family = "-".join(kept).strip("-._")[:64] or "-".join(words)[:64] or "model"
    return "schema-model" if family == "schema" else family


def make_entry(scan: ScanResult, result: VerifyResult, *, method: Mapping[str, Any], note: str | None) -> Entry:
    """Return the catalog's entry for one analysis, whose commit is a content hash for a local folder.

    Rejected candidates are left out: they are no super weights.
    """
    kept = [w for w in result.super_weights if w.status != "rejected"]
    return {
        "model": result.model,
        "commit": result.commit,
        "note": note,
        "model_type": scan.model_type,
        "num_layers": scan.num_layers,
        "hidden_size": scan.hidden_size,
        "intermediate_size": scan.intermediate_size,
        "method": {"tool": "superweight-analyzer", "version": __version__, **method},
        "verdict": result.verdict,
        "super_activations": _rounded(plain(result.super_activations)),
        "super_weights": [
            {**_rounded(plain(w)), "value": w.value} for w in sorted(kept, key=lambda w: w.coordinate.sort_key)
        ],
        "joint": _rounded(plain(result.joint)),
        "outliers": [{**_rounded(_outlier_fields(o)), "value": o.value} for o in scan.outliers],
    }


def _outlier_fields(outlier: Outlier) -> dict[str, Any]:
    fields = plain(outlier)
    return {key: fields[key] for key in ("rank", "layer", "expert", "row", "col", "value", "zscore")}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_rounded(member) for member in value]
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


@dataclass(frozen=True, slots=True)
class KnownCoordinate:
    """A coordinate of the catalog that a quantizer may want to protect.

    `standing` is `verified` (confirmed by this tool at `commit`), `reported` or `disputed` (by others; `commit` is then
    their revision, or null). `col` is null where a whole row is reported, `value` and `effect` where none is known.
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


def coordinates_of(model: str, *, folder: Path | str | None = None) -> list[KnownCoordinate]:
    """Return a model's known coordinates, verified ones first: its confirmed super weights, and what others report.

    `model` is a Hub id or the part of it after the slash, in any case, also `model@commit`; `folder` is as in
    known_documents. The list is empty where nothing was found. Raises CatalogError where the catalog has no such model,
    naming the nearest, or is broken.
    """
    return coordinates_in(known_documents(None if folder is None else Path(folder)), model)


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
        )
        for _, entry in entries
        for weight in entry["super_weights"]
        if weight["status"] == "confirmed"
    ]
    known += [
        KnownCoordinate(
            model=item["model"],
            commit=item["revision"],
            effect=None,
            sources=tuple(source["name"] for source in item["sources"]),
            model_type=types.get(item["model"].lower()),
            **{key: item[key] for key in ("layer", "expert", "row", "col", "value", "standing")},
        )
        for _, item in reported
        if item["layer"] is not None
    ]
    return known


def check_destination(folder: Path, family: str) -> None:
    """Raise the CatalogError that save_entry would, as far as it can be known before there is an entry."""
    path = _family_path(folder, family)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise CatalogError(f"cannot write to the catalog folder {shown(folder)}: permission denied")
        if path.exists():
            read_document(path)
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}") from error


def _family_path(folder: Path, family: str) -> Path:
    if not FAMILY.fullmatch(family) or family == "schema":
        raise CatalogError(f"{shown(family)} cannot name a family: use lower-case letters, digits, '.', '_' and '-'")
    return folder / f"{family}.json"


def save_entry(folder: Path, family: str, entry: Entry) -> Path:
    """Put an entry into the family's file; returns the file. Everything else in it stays as it is.

    It takes the place of an entry of the same model and commit that was made in the same way (entry_key), whose note
    it keeps where it has none; analyses made in another way stand beside it, since their figures do not mix.
    Raises CatalogError where the file there is broken or newer, or cannot be written; it is then as it was.
    """
    with _changing(folder, family) as (path, document):
        others = [other for other in document["entries"] if entry_key(other) != entry_key(entry)]
        if entry["note"] is None:
            same = (other["note"] for other in document["entries"] if entry_key(other) == entry_key(entry))
            entry = {**entry, "note": next(same, None)}
        write_document(path, family, entries=[*others, entry], reported=document["reported"])
    return path


def save_reported(folder: Path, family: str, reported: Iterable[Reported]) -> Path:
    """Merge what others report into the family's file; returns the file. Its entries stay as they are.

    Nothing that is there is lost: see merged. Raises CatalogError like save_entry.
    """
    with _changing(folder, family) as (path, document):
        write_document(path, family, entries=document["entries"], reported=merged(document["reported"], reported))
    return path


@contextmanager
def _changing(folder: Path, family: str) -> Iterator[tuple[Path, Document]]:
    """Yield a family's file and its content, or that of an empty one, with all other writers locked out."""
    import filelock

    path = _family_path(folder, family)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / LOCK_FILE, timeout=LOCK_TIMEOUT_S):
            yield path, read_document(path) if path.exists() else {"entries": [], "reported": []}
    except filelock.Timeout as error:
        raise CatalogError(f"{shown(folder)} is locked by another writer: try again when it is done") from error
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}; what was there is unchanged") from error


def known_documents(folder: Path | None) -> dict[str, Document]:
    """Return the content of a catalog by family, to look things up in.

    Without a folder it is that of `catalog` in the current one, if there is such a folder, together with the record
    that comes with the tool. Raises CatalogError like read_document.
    """
    return with_record(DEFAULT_FOLDER) if folder is None else read_documents(folder)


def with_record(folder: Path) -> dict[str, Document]:
    """Return the content of a catalog, where there is one, together with the record that comes with the tool.

    Raises CatalogError like read_document.
    """
    record = read_documents(_record_folder())
    if not folder.is_dir() or folder.samefile(_record_folder()):
        return record
    own = read_documents(folder)
    nothing: Document = {"entries": [], "reported": []}
    return {
        family: _together(own.get(family, nothing), record.get(family, nothing)) for family in sorted({**own, **record})
    }


def _record_folder() -> Path:
    """Return the catalog that was installed with the tool, or that of the checkout that it runs from."""
    package = Path(__file__).parent
    installed = package / "record"
    return installed if installed.is_dir() else package.parent / "catalog"


def _together(own: Document, record: Document) -> Document:
    keys = {entry_key(entry) for entry in own["entries"]}
    return {
        "entries": [*own["entries"], *(entry for entry in record["entries"] if entry_key(entry) not in keys)],
        "reported": merged(own["reported"], record["reported"]),
    }


def read_documents(folder: Path) -> dict[str, Document]:
    """Return the content of every file by its family, in order. Raises CatalogError like read_document."""
    return {path.stem: read_document(path) for path in files(folder)}


def read_file(path: Path) -> list[Entry]:
    """Return a file's entries, checked. Raises CatalogError naming file, entry and field where they are not right."""
    entries: list[Entry] = read_document(path)["entries"]
    return entries


def read_catalog(folder: Path) -> list[tuple[str, Entry]]:
    """Return (family, entry) for every entry of a catalog, in order. Raises CatalogError like read_file."""
    return entries_in(read_documents(folder))


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


def validate(folder: Path) -> tuple[int, int, list[str]]:
    """Return how many files and entries a catalog has, and every problem found, each on one line.

    Raises CatalogError where there is no such folder.
    """
    entries, found = 0, []
    paths = files(folder)
    for path in paths:
        try:
            document = load(path)
        except CatalogError as error:
            found.append(str(error))
            continue
        faults = [f"{shown(path)}: {problem}" for problem in problems(document, path.stem)]
        found += faults
        entries += 0 if faults else len(document["entries"])
    return len(paths), entries, found


def files(folder: Path) -> list[Path]:
    """Return the catalog's files in order. Raises CatalogError where there is no such folder."""
    if not folder.is_dir():
        raise CatalogError(f"there is no catalog folder {shown(folder)}: give one with --catalog")
    return sorted(path for path in folder.glob("*.json") if path.name != SCHEMA_FILE)


def lookup(documents: Mapping[str, Document], model: str) -> tuple[list[tuple[str, Entry]], list[tuple[str, Reported]]]:
    """Return a model's entries and what others report on it, each with its family; also for `model@commit`.

    The model is given by its full id or the part after the slash, in any case. Raises CatalogError, naming the
    nearest models, where the catalog has neither.
    """
    wanted, _, commit = model.lower().partition("@")
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
