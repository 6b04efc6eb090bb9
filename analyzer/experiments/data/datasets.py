"""Data sets of the Hub, through its client's cache, at the commit that it names; and files like theirs."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer.base.errors import SourceError, shown
from analyzer.source.hub.refusals import hub_errors
from analyzer.source.streaming import interruptible

LINE_BYTES = 1 << 26  # of the longest line of JSON
MAX_BYTES = 200_000_000  # of a file


@dataclass(frozen=True)
class HubFile:
    """One file of a data set, a row a text."""

    repository: str
    file: str


WIKITEXT2 = HubFile("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet")
C4 = HubFile("allenai/c4", "en/c4-validation.00000-of-00008.json.gz")
LAMBADA = HubFile("EleutherAI/lambada_openai", "data/lambada_test_en.jsonl")


@dataclass(frozen=True)
class Rows:
    """Texts, and where they are from: a file's hash, or a data set's file and commit."""

    texts: tuple[str, ...]
    facts: dict[str, Any]


def read_hub(wanted: HubFile, *, token: str | None, instead: str) -> Rows:
    """Return a data set's texts, downloaded where the cache lacks them.

    The commit is the one that the client resolved: the folder of its cache is called by it. Raises SourceError where
    it cannot be had, naming the option to use `instead`.
    """
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def download() -> str:
        return huggingface_hub.hf_hub_download(wanted.repository, wanted.file, repo_type="dataset", token=token)

    try:
        with hub_errors(f"datasets/{wanted.repository}", None, path=wanted.file, token=token):
            path = Path(interruptible(download))
    except SourceError as error:
        raise SourceError(
            f"the data set {wanted.repository} cannot be had: {error}; or give a file ({instead} FILE)"
        ) from error
    commit = path.parents[wanted.file.count("/")].name
    return Rows(_texts_of(path), {"repository": wanted.repository, "file": wanted.file, "commit": commit})


def read_file(path: Path, *, lines: bool) -> Rows:
    """Return a file's texts: of .jsonl the `text` of each line, else the text as it is or, with `lines`, each line.

    Raises SourceError where it cannot be read.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise SourceError(f"cannot read {shown(path)}: there is no such file of at most {MAX_BYTES:,} bytes")
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            texts = _texts_of(path)
        else:
            whole = data.decode("utf-8")
            texts = tuple(line for line in whole.splitlines() if line.strip()) if lines else (whole,)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {shown(path)} as UTF-8 text: {shown(error)}") from error
    return Rows(texts, {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()})


def _texts_of(path: Path) -> tuple[str, ...]:
    """Return the column `text` of a Parquet file, or of lines of JSON. Raises SourceError where there is none."""
    import pyarrow

    try:
        texts = _table_of(path).column("text").to_pylist()
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise SourceError(f"cannot read {shown(path)}: it should have a `text` a row ({shown(error, 100)})") from error
    if not all(isinstance(text, str) for text in texts):
        raise SourceError(f"cannot read {shown(path)}: a row of it has no `text`")
    return tuple(texts)


def _table_of(path: Path) -> Any:
    import pyarrow
    from pyarrow import json, parquet

    if path.suffix == ".parquet":
        return parquet.read_table(path, columns=["text"])
    with pyarrow.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
        schema = pyarrow.schema([("text", pyarrow.string())])
        return json.read_json(
            stream,
            read_options=json.ReadOptions(block_size=LINE_BYTES),
            parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
