"""The catalog's files: their JSON Schema, strict reading, the check of what they say, and atomic writing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from analyzer.base.atomic import write_whole
from analyzer.base.errors import CatalogError, shown
from analyzer.base.records import Coordinate

SCHEMA_VERSION = 5
SCHEMA_FILE = "schema.json"
MAX_SCHEMA_BYTES = 1_000_000
MAX_FILE_BYTES = 100_000_000
CHOSEN = ("prompt", "text_sha256", "score", "top")
"""Of a method, what default settings stand for."""

Entry = dict[str, Any]
Reported = dict[str, Any]
Document = dict[str, Any]


def entry_key(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what makes an entry one: model, commit, and how it was analysed.

    The tool's own part of the method, its version and thresholds, is left out, and with default settings all that it
    chose itself: a newer version's analysis takes the place of an older one's.
    """
    method = {key: value for key, value in entry["method"].items() if key not in ("version", "thresholds")}
    if method.get("settings") == "default":
        method = {key: value for key, value in method.items() if key not in CHOSEN}
    return entry["model"], entry["commit"], json.dumps(method, sort_keys=True)


def version_order(version: str) -> tuple[int, ...]:
    """Return what puts versions of this tool in order; a part that is no number comes before any that is."""
    return tuple(int(part) if part.isdecimal() else -1 for part in version.split("."))


def reported_key(item: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return what makes a reported coordinate one, which is also its place in a file: nulls come first."""
    numbers = (-1 if item[axis] is None else item[axis] for axis in ("layer", "expert", "row", "col"))
    tower, mlp = item.get("tower") or "", item.get("mlp")
    return (item["model"], item["revision"] or "", tower, -1 if mlp is None else mlp, *numbers)


def coordinate_in(record: Mapping[str, Any]) -> Coordinate:
    """Return where a record of an entry is."""
    return Coordinate(
        record["layer"], record["expert"], record["row"], record["col"], record.get("tower"), record.get("mlp")
    )


def place_of(item: Mapping[str, Any]) -> str:
    """Return a reported coordinate as text: `2,3968,7003`, `11,507,any` for a row, `none` without any."""
    if item["layer"] is None:
        return "none"
    text = str(coordinate_in({**item, "col": 0 if item["col"] is None else item["col"]}))
    return f"{text.rpartition(',')[0]},any" if item["col"] is None else text


def is_super(weight: Mapping[str, Any]) -> bool:
    """Tell whether a weight of an entry is a super weight: confirmed or critical."""
    return bool(weight["status"] == "confirmed" or weight["effect"] == "critical")


def increase_of(weight: Mapping[str, Any]) -> float | None:
    """Return what zeroing a weight of an entry adds to the loss, in five digits; null where it was not measured."""
    before, after = weight.get("loss"), weight.get("loss_zeroed")
    return None if before is None or after is None else float(f"{after - before:.5g}")


def read_document(path: Path) -> Document:
    """Return a file's content, checked, as of this schema version whatever its own.

    Raises CatalogError naming file, entry and field where it is not right.
    """
    document = load(path)
    for problem in problems(document, path.stem):
        raise CatalogError(f"{shown(path)}: {problem}")
    upgraded: Document = _upgraded(document)
    return upgraded


def load(path: Path) -> Any:
    """Return a file's JSON, unchecked. Raises CatalogError where it is none."""
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


def _upgraded(document: Any) -> Any:
    """Return a document of an older version as one of this version, step by step; any other as it is."""
    while isinstance(document, dict) and (upgrade := UPGRADES.get(_version_of(document))) is not None:
        upgraded = upgrade(document)
        if upgraded is None:
            break
        document = {**upgraded, "schema_version": document["schema_version"] + 1}
    return document


def _version_of(document: Mapping[str, Any]) -> int:
    version = document.get("schema_version")
    return version if type(version) is int else 0


def _with_reported(document: Document) -> Document | None:
    """Version 1 had no `reported`."""
    return None if "reported" in document else {**document, "reported": []}


def _with_unread(document: Document) -> Document | None:
    """Version 2 refused what it did not read whole, and did not say whether its settings were the default ones."""
    entries = document.get("entries")
    if not isinstance(entries, list):
        return None
    return {**document, "entries": [_entry_with_unread(entry) for entry in entries]}


def _entry_with_unread(entry: Any) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), dict):
        return entry
    method = entry["method"]
    settings = "default" if all(method.get(key) == value for key, value in DEFAULTS_OF_2.items()) else "custom"
    tool = {key: method[key] for key in ("tool", "version") if key in method}
    upgraded = {**tool, "settings": settings, **{key: method[key] for key in method if key not in tool}}
    fields = {}
    for key, value in entry.items():
        fields[key] = upgraded if key == "method" else value
        if key == "verdict":
            fields["unread"] = []
    return fields


UPGRADES: Mapping[int, Callable[[Document], Document | None]] = {1: _with_reported, 2: _with_unread, 3: dict, 4: dict}
"""By the version that they take: each makes of a document one of the next version, of one that is none nothing."""
DEFAULTS_OF_2 = {
    "prompt": "Apple Inc. is a worldwide tech company.",
    "text_sha256": "b8aea6d629e084d88143b520ce36fddbf375ce1bc505c10b38d0469423bfffb9",
    "score": "magnitude",
    "top": 20,
}


def fault_of_name(model: str) -> str | None:
    """Return why no catalog may hold a model of this name; null where it may."""
    fault = next(_validator().descend(model, {"$ref": "#/$defs/entry/properties/model"}), None)
    if fault is None:
        return None
    return "it has control or invisible characters" if fault.validator == "not" else shown(fault.message, 120)


def problems(document: Any, family: str) -> Iterator[str]:
    """Yield what is wrong with a file's content, each as entry, field and fault."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        yield f"has schema version {version}, newer than the {SCHEMA_VERSION} of this tool: upgrade the tool"
        return
    document = _upgraded(document)
    faults = sorted(_validator().iter_errors(document), key=lambda fault: fault.json_path)
    for fault in faults:
        hidden = fault.validator == "not"
        what = f"{fault.instance!r} has control or invisible characters" if hidden else fault.message
        yield f"{_where(document, fault.absolute_path)}: {shown(what, 120)}"
    if faults:
        return
    if document["family"] != family:
        yield f"family: is {shown(document['family'])}, but the file is named {shown(family)}.json"
    seen = set()
    for entry in document["entries"]:
        name = f"{shown(entry['model'], 80)}@{shown(entry['commit'], 15)}"
        if entry_key(entry) in seen:
            yield f"{name}: stands twice"
        seen.add(entry_key(entry))
        yield from (f"{name}: {fault}" for fault in _entry_faults(entry))
    yield from _reported_faults(document["reported"], document["entries"])


def _entry_faults(entry: Entry) -> Iterator[str]:
    limits = {"layer": entry["num_layers"], "row": entry["hidden_size"], "col": entry["intermediate_size"]}
    lists = {name: entry[name] for name in ("super_weights", "outliers")}
    lists["joint"] = entry["joint"]["coordinates"] if entry["joint"] else []
    for field, records in lists.items():
        seen = set()
        for record in records:
            coordinate = coordinate_in(record)
            if coordinate in seen:
                yield f"{field}: {coordinate} stands twice"
            seen.add(coordinate)
            yield from (f"{field}: {coordinate} {fault}" for fault in _too_large(record, limits))
    channels = entry["hidden_size"] and entry["hidden_size"] * entry.get("streams", 1)
    limits = {"layer": entry["num_layers"], "last_layer": entry["num_layers"], "channel": channels}
    for activation in entry["super_activations"]:
        yield from (f"super_activations: {fault}" for fault in _too_large(activation, limits))
    for each in entry.get("massive_channels", []):
        layers, magnitudes = each["layers"], each["magnitudes"]
        if len(layers) != len(magnitudes):
            yield f"massive_channels: {each['channel']} has {len(layers)} layers, but {len(magnitudes)} magnitudes"
        limits = {"channel": channels, "layer": entry["num_layers"]}
        yield from (f"massive_channels: {fault}" for fault in _too_large({**each, "layer": max(layers)}, limits))


def _reported_faults(reported: Sequence[Reported], entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what is wrong with reported coordinates; the sizes of a model are known where it has an entry."""
    sizes = {entry["model"].lower(): entry for entry in entries}
    seen = set()
    for item in reported:
        name = f"{shown(item['model'], 80)}: reported: {place_of(item)}"
        if reported_key(item) in seen:
            yield f"{name} stands twice"
        seen.add(reported_key(item))
        if entry := sizes.get(item["model"].lower()):
            limits = {"layer": entry["num_layers"], "row": entry["hidden_size"], "col": entry["intermediate_size"]}
            yield from (f"{name} {fault}" for fault in _too_large(item, limits))


def _too_large(record: Mapping[str, Any], limits: Mapping[str, int | None]) -> Iterator[str]:
    for axis, limit in limits.items():
        if limit is not None and record[axis] is not None and record[axis] >= limit:
            yield f"has {axis} {record[axis]}, but the model has {limit}"


def _where(document: Any, path: Sequence[str | int]) -> str:
    """Return where in a file a fault is, with the entry by its model's name where it has one."""
    parts = [str(part) for part in path]
    if len(path) > 1 and path[0] in ("entries", "reported") and isinstance(path[1], int):
        entry = document[path[0]][path[1]]
        model = entry.get("model") if isinstance(entry, dict) else None
        name = shown(model, 80) if isinstance(model, str) else f"entry {path[1]}"
        parts[:2] = [name] if path[0] == "entries" else [name, f"reported {path[1]}"]
    return shown(": ".join(parts)) or "the file"


@cache
def _validator() -> Any:
    import jsonschema

    # By JSON Schema 1.0 is an integer; as an index it would be written back as one more spelling of 1.
    integers = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, type_checker=integers)(json.loads(schema_text()))


def schema_text() -> str:
    """Return the JSON Schema of the files, as the package carries it."""
    return resources.files("analyzer.catalog").joinpath("schema.json").read_text("utf-8")


def write_document(path: Path, family: str, *, entries: Iterable[Entry], reported: Iterable[Reported]) -> None:
    """Write a file, sorted and atomically, with the schema beside it; one that says the same already is left alone.

    Raises CatalogError where the content would not be valid, OSError where it cannot be written.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "family": family,
        "entries": sorted(entries, key=entry_key),
        "reported": sorted(reported, key=reported_key),
    }
    if fault := next(problems(document, family), None):
        raise CatalogError(f"refusing to write {shown(path)}: {fault}")
    data = (_formatted(document) + "\n").encode("ascii")
    if len(data) > MAX_FILE_BYTES:
        raise CatalogError(
            f"refusing to write {shown(path)}: it would have {len(data):,} bytes, of at most {MAX_FILE_BYTES:,}: put a "
            "part of its models into another catalog (--catalog)"
        )
    write_whole(path, data)
    schema = path.parent / SCHEMA_FILE
    if is_older_schema(schema):
        try:
            write_whole(schema, schema_text().encode("utf-8"))
        except OSError as error:
            raise CatalogError(
                f"{shown(path)} is written, but not {SCHEMA_FILE} beside it: {error.strerror}; the next write adds it"
            ) from error


def is_older_schema(path: Path) -> bool:
    """Tell whether there is no schema yet, or one of an earlier version; any other is left alone."""
    if path.is_file() and path.stat().st_size > MAX_SCHEMA_BYTES:
        return False
    if not path.is_file():
        return not (path.exists() or path.is_symlink())  # a pipe would be waited for
    try:
        version = json.loads(path.read_text("utf-8"))["properties"]["schema_version"]["const"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return type(version) is int and version < SCHEMA_VERSION


def _formatted(value: Any, indent: str = "") -> str:
    """Return JSON with one record to a line, so that a git diff shows the records that changed."""
    inner = indent + "  "
    if isinstance(value, dict) and any(isinstance(member, dict | list) for member in value.values()):
        members = (f"{inner}{json.dumps(key)}: {_formatted(member, inner)}" for key, member in value.items())
        return "{\n" + ",\n".join(members) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(member, dict) for member in value):
        return "[\n" + ",\n".join(inner + _formatted(member, inner) for member in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
