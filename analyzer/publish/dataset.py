"""Pure: the catalog's documents -> the files of a Hub dataset repository: the JSON, one flat table, the card."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analyzer.base.errors import CatalogError, shown
from analyzer.catalog.documents import (
    SCHEMA_FILE,
    Document,
    Entry,
    Reported,
    entry_key,
    increase_of,
    is_super,
    place_of,
    reported_key,
)
from analyzer.catalog.exports.modules import module_of
from analyzer.catalog.lookup import PLACED, KnownCoordinate, entries_in, reported_in
from analyzer.publish.card import card_of

if TYPE_CHECKING:
    import pyarrow as pa


CARD = "README.md"
TABLE = "data/coordinates.parquet"
FOLDER = "catalog/"  # of the JSON files
SCHEMA = FOLDER + SCHEMA_FILE

# The table's columns and their Arrow types, the ones to filter by first; indexes are below 2^31 by the schema.
COLUMNS = {
    "model": "string",
    "family": "string",
    "standing": "string",
    "layer": "int32",
    "expert": "int32",
    "row": "int32",
    "col": "int32",
    "value": "double",
    "status": "string",
    "effect": "string",
    "change": "double",
    "share": "double",
    "activation_collapse": "double",
    "loss": "double",
    "loss_zeroed": "double",
    "loss_increase": "double",
    "control_loss_max": "double",
    "loss_tokens": "int64",
    "kl_divergence": "double",
    "top1_agreement": "double",
    "destroyed": "bool",
    "static_rank": "int64",
    "row_rank": "int32",
    "rank_in_128": "int32",
    "rank_in_32": "int32",
    "row_others_max": "double",
    "round": "int64",
    "expert_share": "double",
    "expert_weight": "double",
    "largest_magnitude": "double",
    "float16_overflows_from": "int32",
    "verdict": "string",
    "reason": "string",
    "note": "string",
    "module": "string",
    "model_type": "string",
    "revision": "string",
    "tool": "string",
    "dtype": "string",
    "sources": "list",  # these four are of one length, an item for each source
    "source_kinds": "list",
    "source_urls": "list",
    "source_notes": "list",
}
TABLE_KEY = ["model", "commit", "do"]  # of a survey's rows, what must not be lost
_COORDINATE = ("layer", "expert", "row", "col", "value")
_SOURCES = {"sources": "name", "source_kinds": "kind", "source_urls": "url", "source_notes": "note"}


def dataset_files(documents: Mapping[str, Document], originals: Mapping[str, bytes], repo_id: str) -> dict[str, bytes]:
    """Return the repository's files by path.

    `documents` are the checked contents of the catalog's files by family, `originals` their bytes by file name and the
    schema's, which stay as they are. The same input gives the same bytes, with the same version of pyarrow.
    Raises CatalogError where a number fits into no table.
    """
    data = io.BytesIO()
    write_table(table_of(documents), data)
    files = {FOLDER + name: content for name, content in originals.items()}
    return {**dict(sorted(files.items())), TABLE: data.getvalue(), CARD: card_of(documents, repo_id)}


def rows_of(documents: Mapping[str, Document]) -> list[dict[str, Any]]:
    """Return the table's rows: each super weight of each entry, then what others report, family by family.

    An entry that found nothing, and a source that reports no coordinate, has one row without a coordinate.
    """
    types = {entry["model"].lower(): entry["model_type"] for _, entry in entries_in(documents)}
    rows = []
    for family, document in documents.items():
        for entry in document["entries"]:
            rows += [_verified_row(family, entry, weight) for weight in entry["super_weights"] or [{}]]
        rows += [_reported_row(family, item, types.get(item["model"].lower())) for item in document["reported"]]
    return rows


def _verified_row(family: str, entry: Entry, weight: Mapping[str, Any]) -> dict[str, Any]:
    same = {key: value for key, value in weight.items() if key in COLUMNS}
    row = {
        **same,
        "family": family,
        "standing": "verified",
        "loss_increase": increase_of(weight),
        **_routing(entry, weight),
        **_headroom(entry),
        "revision": entry["commit"],
        "tool": f"{entry['method']['tool']} {entry['method']['version']}",
        "dtype": entry["method"]["dtype"],
        **{key: entry[key] for key in ("model", "model_type", "verdict", "note")},
        **{column: [] for column in _SOURCES},
    }
    return _complete(row, {key: weight[key] for key in PLACED if key in weight})


def _routing(entry: Entry, weight: Mapping[str, Any]) -> dict[str, Any]:
    """Return how often the expert of a weight is chosen, and with what weight of the router."""
    place = ("tower", "layer", "mlp", "expert")
    for each in entry.get("routing", []):
        if weight and all(each.get(axis) == weight.get(axis) for axis in place):
            share = each["chosen"] / each["tokens"] if each["tokens"] else None
            return {"expert_share": share, "expert_weight": each["mean_weight"]}
    return {}


def _headroom(entry: Entry) -> dict[str, Any]:
    """Return the largest magnitude in the model, and from which layer on float16 overflows."""
    fit = (entry.get("headroom") or {}).get("float16")
    return {} if fit is None else {"largest_magnitude": fit["largest"], "float16_overflows_from": fit["overflows_from"]}


def _reported_row(family: str, item: Reported, model_type: str | None) -> dict[str, Any]:
    same = {key: item[key] for key in ("model", "revision", "standing", "reason", *_COORDINATE)}
    sources = {column: [source[key] for source in item["sources"]] for column, key in _SOURCES.items()}
    return _complete({**same, **sources, "family": family, "model_type": model_type})


def _complete(row: dict[str, Any], placed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    row = {column: row.get(column) for column in COLUMNS}
    if row["layer"] is not None:
        known = {key: row[key] for key in ("model", "standing", "effect", "model_type", *_COORDINATE)}
        row["module"] = module_of(KnownCoordinate(**known, **placed or {}, commit=row["revision"], sources=()))
    return row


def table_of(documents: Mapping[str, Document]) -> pa.Table:
    """Return the table of all coordinates. Raises CatalogError where a number fits into none of its types."""
    import pyarrow as pa

    types: dict[str, pa.DataType] = {"list": pa.list_(pa.string())}
    schema = pa.schema([(name, types.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    rows = rows_of(documents)
    columns = []
    for field in schema:
        try:
            columns.append(pa.array([row[field.name] for row in rows], field.type))
        except (pa.ArrowException, OverflowError, ValueError) as error:
            raise CatalogError(
                f"the catalog has a {field.name} that no table can hold ({shown(error, 120)}): correct it"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def write_table(table: pa.Table, file: io.BytesIO) -> None:
    """Write a table as Parquet."""
    import pyarrow.parquet as pq

    pq.write_table(table, file, compression="snappy")


def is_same_table(table: bytes, other: bytes) -> bool:
    """Tell whether two Parquet files hold the same table; their bytes differ between versions of pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        one, two = (pq.ParquetFile(pa.BufferReader(data)) for data in (table, other))
        if one.metadata.num_rows != two.metadata.num_rows or not one.schema_arrow.equals(two.schema_arrow):
            return False
        return bool(one.read().equals(two.read()))
    except (pa.ArrowException, OSError, ValueError):
        return False


def lost_rows(old: bytes, new: bytes) -> str | None:
    """Return what one Parquet file has found and another has not, by TABLE_KEY; null where nothing would be lost.

    What has failed may be done by now. A file that is no such table counts as lost.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        before, after = (
            {
                tuple(row[name] for name in TABLE_KEY)
                for row in pq.read_table(pa.BufferReader(data), columns=[*TABLE_KEY, "failure"]).to_pylist()
                if row["failure"] is None
            }
            for data in (old, new)
        )
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return "a file that is no such table"
    lost = sorted(before - after, key=str)
    return " ".join(shown(part, 80) for part in lost[0] if part is not None) if lost else None


def keys_of(documents: Mapping[str, Document]) -> dict[tuple[Any, ...], str]:
    """Return everything that a catalog must not lose, each by what makes it one, with its name for a message.

    That is each entry, its coordinates and its note, each reported coordinate, its sources and their notes; in which
    family's file is all one. The key of a part begins with that of the whole.
    """
    keys: dict[tuple[Any, ...], str] = {}
    for _, entry in entries_in(documents):
        key: tuple[Any, ...] = ("entry", *entry_key(entry))
        name = _name(entry["model"], entry["commit"])
        keys[key] = f"the entry of {name}"
        for weight in entry["super_weights"]:
            what = "super weight" if is_super(weight) else "coincident weight"
            place = [weight[axis] for axis in ("layer", "expert", "row", "col")]
            keys[*key, "weight", *place] = f"the {what} {place_of(weight)} of {name}"
        if entry["note"] is not None:
            keys[*key, "note", entry["note"]] = f"the note on {name}"
    for _, item in reported_in(documents):
        places = [] if item["layer"] is None else [place_of(item)]
        name = " ".join([_name(item["model"], item["revision"]), *places])
        key = ("reported", *reported_key(item))
        keys[key] = f"what is reported of {name}"
        for source in item["sources"]:
            of, who = (*key, source["name"], source["url"]), shown(source["name"], 60)
            keys[of] = f"the source {who} of {name}"
            if source["note"] is not None:
                keys[*of, "note", source["note"]] = f"the note of {who} on {name}"
    return keys


def lost_between(old: Mapping[str, Document], new: Mapping[str, Document]) -> list[str]:
    """Return the names of what the old documents hold and the new ones lack; of a whole that is lost not its parts."""
    kept = keys_of(new)
    missing = {key: name for key, name in keys_of(old).items() if key not in kept}
    return [name for key, name in missing.items() if not any(key[:end] in missing for end in range(len(key)))]


def _name(model: str, revision: str | None) -> str:
    return (
        shown(model, 80) if revision is None else f"{shown(model, 80)}@{shown(revision.removeprefix('sha256:')[:12])}"
    )
