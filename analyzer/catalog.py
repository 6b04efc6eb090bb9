"""The catalog: one JSON file per model family, with entries keyed by (model, commit).

Writing the same analysis again leaves a file byte for byte the same. Writes are atomic (a temporary file, fsync,
rename) and take a lock, so that two writers lose nothing.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from analyzer import __version__
from analyzer.errors import CatalogError, shown
from analyzer.records import Coordinate, Outlier, ScanResult, VerifyResult, plain

SCHEMA_VERSION = 1
SCHEMA_FILE = "schema.json"
LOCK_FILE = ".lock"
LOCK_TIMEOUT_S = 30
MAX_FILE_BYTES = 100_000_000
SIGNIFICANT_DIGITS = 5  # of measured numbers; a weight's value is kept exactly

Entry = dict[str, Any]

FAMILY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# 7b, 1.5B, 135M, 8x7B, stories260K: the size ends the family's name, with what stands before it in the same word.
_SIZE = re.compile(r"(.*?)(?:\d+x)?\d+(?:\.\d+)?[kmbt]", re.IGNORECASE)
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


def check_destination(folder: Path, family: str) -> None:
    """Raise the CatalogError that save_entry would, as far as it can be known before there is an entry."""
    path = _family_path(folder, family)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise CatalogError(f"cannot write to the catalog folder {shown(folder)}: permission denied")
        if path.exists():
            read_file(path)
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}") from error


def _family_path(folder: Path, family: str) -> Path:
    if not FAMILY.fullmatch(family) or family == "schema":
        raise CatalogError(f"{shown(family)} cannot name a family: use lower-case letters, digits, '.', '_' and '-'")
    return folder / f"{family}.json"


def save_entry(folder: Path, family: str, entry: Entry) -> Path:
    """Put an entry into the family's file, in place of one with the same model and commit; returns the file.

    Raises CatalogError where the file there is broken or newer, or cannot be written; it is then as it was.
    """
    import filelock

    path = _family_path(folder, family)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / LOCK_FILE, timeout=LOCK_TIMEOUT_S):
            entries = read_file(path) if path.exists() else []
            entries = [e for e in entries if (e["model"], e["commit"]) != (entry["model"], entry["commit"])]
            entries = sorted([*entries, entry], key=lambda e: (e["model"], e["commit"]))
            document = {"schema_version": SCHEMA_VERSION, "family": family, "entries": entries}
            if problems := list(_problems(document, family)):
                raise CatalogError(f"refusing to write {shown(path)}: {problems[0]}")
            _write(path, (_formatted(document) + "\n").encode("ascii"))
            if not (folder / SCHEMA_FILE).exists():
                _write(folder / SCHEMA_FILE, _schema_text().encode("utf-8"))
    except filelock.Timeout as error:
        raise CatalogError(f"{shown(folder)} is locked by another writer: try again when it is done") from error
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}; what was there is unchanged") from error
    return path


def read_file(path: Path) -> list[Entry]:
    """Return a file's entries, checked. Raises CatalogError naming file, entry and field where they are not right."""
    document = _load(path)
    for problem in _problems(document, path.stem):
        raise CatalogError(f"{shown(path)}: {problem}")
    entries: list[Entry] = document["entries"]
    return entries


def read_catalog(folder: Path) -> list[tuple[str, Entry]]:
    """Return (family, entry) for every entry of a catalog, in order. Raises CatalogError like read_file."""
    return [(path.stem, entry) for path in files(folder) for entry in read_file(path)]


def validate(folder: Path) -> tuple[int, int, list[str]]:
    """Return how many files and entries a catalog has, and every problem found, each on one line.

    Raises CatalogError where there is no such folder.
    """
    entries, problems = 0, []
    paths = files(folder)
    for path in paths:
        try:
            document = _load(path)
        except CatalogError as error:
            problems.append(str(error))
            continue
        found = [f"{shown(path)}: {problem}" for problem in _problems(document, path.stem)]
        problems += found
        entries += 0 if found else len(document["entries"])
    return len(paths), entries, problems


def files(folder: Path) -> list[Path]:
    """Return the catalog's files in order. Raises CatalogError where there is no such folder."""
    if not folder.is_dir():
        raise CatalogError(f"there is no catalog folder {shown(folder)}: give one with --catalog")
    return sorted(path for path in folder.glob("*.json") if path.name != SCHEMA_FILE)


def find(entries: Sequence[tuple[str, Entry]], model: str) -> list[tuple[str, Entry]]:
    """Return the entries of a model (or of `model@commit`), by full id or by its part of the id, in any case.

    Raises CatalogError, naming the nearest models, where there is none.
    """
    wanted, _, commit = model.lower().partition("@")
    found = [
        (family, entry)
        for family, entry in entries
        if wanted in (entry["model"].lower(), entry["model"].lower().rsplit("/", 1)[-1])
        and entry["commit"].removeprefix("sha256:").startswith(commit.removeprefix("sha256:"))
    ]
    if not found:
        names = {entry["model"].lower(): entry["model"] for _, entry in entries}
        near = [names[name] for name in difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)]
        near += [name for lower, name in names.items() if wanted in lower and name not in near]
        hint = f"; near it: {', '.join(shown(name, 80) for name in near[:3])}" if near else ""
        raise CatalogError(f"the catalog has no entry for {shown(model)}{hint} (`superweight catalog list` shows all)")
    return found


def _load(path: Path) -> Any:
    try:
        if not path.is_file():  # a pipe of that name would be waited for
            raise CatalogError(f"{shown(path)} is not a regular file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CatalogError(f"{shown(path)} has more than {MAX_FILE_BYTES} bytes, too many to be a catalog file")
        return json.loads(
            path.read_text("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
    except OSError as error:
        raise CatalogError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{shown(path)} is not JSON: {shown(error)}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shown(text, 40)} is too large a number")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _problems(document: Any, family: str) -> Iterator[str]:
    """Yield what is wrong with a file's content, each as entry, field and fault."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        yield f"has schema version {version}, newer than the {SCHEMA_VERSION} of this tool: upgrade the tool"
        return
    faults = sorted(_validator().iter_errors(document), key=lambda fault: fault.json_path)
    for fault in faults:
        yield f"{_where(document, fault.absolute_path)}: {shown(fault.message, 120)}"
    if faults:
        return
    if document["family"] != family:
        yield f"family: is {shown(document['family'])}, but the file is named {shown(family)}.json"
    seen = set()
    for entry in document["entries"]:
        name = f"{shown(entry['model'], 80)}@{shown(entry['commit'], 15)}"
        if (entry["model"], entry["commit"]) in seen:
            yield f"{name}: stands twice"
        seen.add((entry["model"], entry["commit"]))
        for field in ("super_weights", "outliers"):
            yield from (f"{name}: {field}: {fault}" for fault in _coordinate_faults(entry, entry[field]))


def _coordinate_faults(entry: Entry, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    limits = {"layer": entry["num_layers"], "row": entry["hidden_size"], "col": entry["intermediate_size"]}
    seen = set()
    for record in records:
        coordinate = Coordinate(record["layer"], record["expert"], record["row"], record["col"])
        if coordinate in seen:
            yield f"{coordinate} stands twice"
        seen.add(coordinate)
        for axis, limit in limits.items():
            if limit is not None and record[axis] >= limit:
                yield f"{coordinate} has {axis} {record[axis]}, but the model has {limit}"


def _where(document: Any, path: Sequence[str | int]) -> str:
    """Return where in a file a fault is, with the entry by its model's name where it has one."""
    parts = [str(part) for part in path]
    if len(path) > 1 and path[0] == "entries" and isinstance(path[1], int):
        entry = document["entries"][path[1]]
        model = entry.get("model") if isinstance(entry, dict) else None
        parts[:2] = [shown(model, 80) if isinstance(model, str) else f"entry {path[1]}"]
    return shown(": ".join(parts)) or "the file"


@cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(_schema_text()))


def _schema_text() -> str:
    return resources.files("analyzer").joinpath("data", "catalog.schema.json").read_text("utf-8")


def _formatted(value: Any, indent: str = "") -> str:
    """Return JSON with one record to a line, so that a git diff shows the records that changed."""
    inner = indent + "  "
    if isinstance(value, dict) and any(isinstance(member, dict | list) for member in value.values()):
        members = (f"{inner}{json.dumps(key)}: {_formatted(member, inner)}" for key, member in value.items())
        return "{\n" + ",\n".join(members) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(member, dict) for member in value):
        return "[\n" + ",\n".join(inner + _formatted(member, inner) for member in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically; one that already has this content is left alone."""
    if path.exists() and path.read_bytes() == data:
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private; a catalog is for others to read
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
