"""Pure: what units have found -> one flat table, the same bytes for the same results."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.base.errors import SurveyError, shown
from analyzer.survey.units import Failure, Job, Unit

if TYPE_CHECKING:
    import pyarrow as pa

# The columns and their Arrow types: of the unit, of the model, of the weight.
UNIT = {"model": "string", "revision": "string", "commit": "string", "do": "string", "version": "string"}
FAILED = {"failure": "string", "line": "string"}
MODEL = {
    "model_type": "string",
    "num_layers": "int32",
    "hidden_size": "int32",
    "intermediate_size": "int32",
    "checkpoint_bytes": "int64",
    "ranked_by": "string",
    "dtype": "string",
    "device": "string",
    "verdict": "string",
}
WEIGHT = {
    "tower": "string",
    "layer": "int32",
    "mlp": "int32",
    "expert": "int32",
    "row": "int32",
    "col": "int32",
    "value": "double",
    "rank": "int64",
    "score": "double",
    "zscore": "double",
    "static_rank": "int64",
    "share": "double",
    "status": "string",
    "effect": "string",
    "reason": "string",
    "activation_collapse": "double",
    "loss": "double",
    "loss_zeroed": "double",
    "control_loss_max": "double",
}
COLUMNS = {**UNIT, **FAILED, **MODEL, **WEIGHT}


def rows_of(
    unit: Unit, job: Job, result: Mapping[str, Any] | None, failure: Failure | None
) -> Iterator[dict[str, Any]]:
    """Yield a unit's rows: its outliers, or its super weights and candidates; one without a weight where it has none.

    How long it took and how often it was tried is no part of them.
    """
    named = {
        "model": Path(unit.model).name if Path(unit.model).is_absolute() else unit.model,  # no path of this machine
        "revision": unit.revision,
        "commit": unit.commit,
        "do": unit.do,
        "version": job.version,
    }
    if result is None:
        yield {**named, "failure": failure and failure.kind, "line": failure and failure.line}
        return
    found = result.get("entry") or result
    about = {key: found.get(key, result.get(key)) for key in MODEL}
    named |= {"commit": found.get("commit", unit.commit), **about, "ranked_by": job.scan.score}
    for weight in result.get("super_weights", result.get("outliers")) or [{}]:
        yield {**named, **{key: weight.get(key) for key in WEIGHT}}


def write_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the rows as Parquet. Raises SurveyError where one holds what no column can."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    with pq.ParquetWriter(data, schema, compression="snappy") as writer:
        for batch in _batches(rows):
            writer.write_table(_table(batch, schema))
    return data.getvalue()


def _batches(rows: Iterable[Mapping[str, Any]], size: int = 10_000) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _table(rows: list[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = []
    for field in schema:
        try:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise SurveyError(f"a result has a {field.name} that no table can hold: {shown(error, 120)}") from error
    return pa.Table.from_arrays(columns, schema=schema)
