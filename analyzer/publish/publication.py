"""The catalog -> a dataset repository on the Hub, in one commit that holds only what changed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer.base.errors import CatalogError, SourceError, shown
from analyzer.catalog.documents import (
    MAX_FILE_BYTES,
    SCHEMA_FILE,
    SCHEMA_VERSION,
    Document,
    load,
    problems,
    read_document,
    schema_text,
)
from analyzer.catalog.files import files as catalog_files
from analyzer.publish.card import counts_of, is_own_card, summary_of
from analyzer.publish.dataset import (
    CARD,
    FOLDER,
    SCHEMA,
    TABLE,
    dataset_files,
    is_same_table,
    lost_between,
    lost_rows,
    rows_of,
)
from analyzer.publish.repository import Repository, quiet_client


@dataclass(frozen=True, slots=True)
class Change:
    """One file that a publication adds, changes or deletes; sizes in bytes."""

    change: str
    path: str
    size: int | None
    old_size: int | None


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing did or, in a dry run, would do; `commit` is null where nothing was uploaded."""

    repo_id: str
    url: str
    dry_run: bool
    creates: bool
    parent: str | None
    changes: tuple[Change, ...]
    unchanged: int
    counts: dict[str, int]
    rows: int
    message: str
    commit: str | None = None
    commit_url: str | None = None


def publish(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    dry_run: bool = False,
    private: bool = False,
    replace: bool = False,
    tables: Mapping[str, bytes] | None = None,
) -> Publication:
    """Bring a dataset repository to what the catalog is; without a change to its data nothing is uploaded.

    `tables` are Parquet files that go beside it, by path, with the columns of TABLE_KEY; where there are some, the
    catalog may be missing. The repository is created where there is none, `private` or not. What it holds and the
    catalog lacks, and a card that was not made here, is overwritten with `replace` only. Raises CatalogError where the
    catalog is not valid or something would be lost, SourceError where the Hub says no.
    """
    tables = tables or {}
    documents, originals = _read(folder) if not tables or _has_files(folder) else ({}, {})
    wanted = {**(dataset_files(documents, originals, repo_id) if documents else {}), **tables}
    with quiet_client():
        repository = Repository(repo_id, token)
        found = repository.look()
        if found and private and repository.public:
            raise SourceError(
                f"{repository.name} exists and is public, and --private is for one that is created: "
                f"make it private at {repository.url}/settings, or leave --private out"
            )
        changes = _differences(repository, documents, wanted, tables, replace)
        if changes and not dry_run:
            repository.check_token()
            if not found:
                repository.create(private)
                changes = _differences(repository, documents, wanted, tables, replace)
        message = f"superweight catalog: {summary_of(documents)}" if documents else "superweight survey: its table"
        info = None
        if changes and not dry_run:
            upload = {change.path: wanted[change.path] for change in changes if change.path in wanted}
            info = repository.commit(upload, [change.path for change in changes if change.path not in wanted], message)
    return Publication(
        repo_id=repo_id,
        url=repository.url,
        dry_run=dry_run,
        creates=not found,
        parent=repository.head,
        changes=tuple(changes),
        unchanged=len(wanted) - sum(change.change != "deleted" for change in changes),
        counts=counts_of(documents),
        rows=len(rows_of(documents)),
        message=message,
        commit=info.oid if info else None,
        commit_url=info.commit_url if info else None,
    )


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and bool(catalog_files(folder))


def _read(folder: Path) -> tuple[dict[str, Document], dict[str, bytes]]:
    """Return the catalog's documents by family, and the very bytes that they were read from by file name."""
    documents, originals = {}, {SCHEMA_FILE: schema_text().encode("utf-8")}
    for path in catalog_files(folder):
        try:
            before = path.read_bytes() if path.is_file() else b""
            documents[path.stem] = read_document(path)
            originals[path.name] = path.read_bytes()
        except OSError as error:
            raise CatalogError(f"cannot read {shown(path)}: {error.strerror}") from error
        if originals[path.name] != before:
            raise CatalogError(f"{shown(path)} changed while it was read: try again when nobody writes the catalog")
    if not documents:
        raise CatalogError(f"the catalog {shown(folder)} has no files: there is nothing to publish")
    return documents, originals


def _differences(
    repository: Repository,
    documents: Mapping[str, Document],
    wanted: Mapping[str, bytes],
    tables: Mapping[str, bytes],
    replace: bool,
) -> list[Change]:
    """Return what differs from the files wanted; only such files are ever downloaded.

    Raises CatalogError where the difference is something that must not be lost.
    """
    there = repository.files
    catalogs = f"{FOLDER}[^/]+[.]json"
    ours = {path for path in there if path in wanted or (documents and re.fullmatch(catalogs, path))}
    differ = {path for path in ours if path not in wanted or not there[path].holds(wanted[path])}
    _check_catalog(repository, documents, sorted(path for path in differ if path.startswith(FOLDER)), replace)
    if (
        TABLE in differ
        and there[TABLE].size <= MAX_FILE_BYTES
        and is_same_table(repository.fetch(TABLE), wanted[TABLE])
    ):
        differ.remove(TABLE)
    for path in sorted(differ & tables.keys() if not replace else ()):
        data = repository.fetch(path) if there[path].size <= MAX_FILE_BYTES else b""
        if lost := lost_rows(data, tables[path]):
            raise CatalogError(
                f"{repository.name}/{shown(path, 80)} has what is not here: {lost}; bring it together, or lose it with "
                "--replace"
            )
    if TABLE in differ and CARD not in there and not replace:
        raise CatalogError(f"{repository.name} has a {TABLE} of its own: --replace overwrites it")
    if (
        CARD in differ
        and not replace
        and not (there[CARD].size <= MAX_FILE_BYTES and is_own_card(repository.fetch(CARD)))
    ):
        raise CatalogError(
            f"{repository.name} has a {CARD} that was written or edited by hand: --replace overwrites it"
        )
    sizes = {path: file.size for path, file in there.items()}
    return [
        Change(
            "added" if path not in there else "changed" if path in wanted else "deleted",
            path,
            len(wanted[path]) if path in wanted else None,
            sizes.get(path),
        )
        for path in sorted(differ | (wanted.keys() - there.keys()))
    ]


def _check_catalog(
    repository: Repository, documents: Mapping[str, Document], paths: Sequence[str], replace: bool
) -> None:
    """Raise CatalogError where these files of the repository hold what the catalog lacks, or are newer."""
    remote = {}
    for path in paths:
        name = f"{repository.name}/{shown(path, 80)}"
        document = _parsed(repository, path)
        version = _version(document, path)
        if version > SCHEMA_VERSION:
            raise CatalogError(
                f"{name} is of schema version {version}, newer than the {SCHEMA_VERSION} of this tool: upgrade the tool"
            )
        if path == SCHEMA:
            continue
        family = path.removeprefix(FOLDER).removesuffix(".json")
        fault = next(problems(document, family), None)
        if fault is None:
            remote[family] = {"reported": [], **document}
        elif not replace:
            raise CatalogError(f"{name} is no catalog file that this tool can read ({fault}): --replace overwrites it")
    lost = lost_between(remote, documents)
    if lost and not replace:
        more = f" and {len(lost) - 1:,} more" if lost[1:] else ""
        raise CatalogError(
            f"{repository.name} has what this catalog lacks: {lost[0]}{more}; bring it into the catalog, or lose it "
            "with --replace"
        )


def _parsed(repository: Repository, path: str) -> Any:
    """Return a file's JSON, by the strict reader of the catalog; null where it is none."""
    if repository.files[path].size > MAX_FILE_BYTES:
        return None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.json"
        copy.write_bytes(repository.fetch(path))
        try:
            return load(copy)
        except CatalogError:
            return None


def _version(document: Any, path: str) -> int:
    """Return which version of the schema a file is of, or the schema itself is; 0 where it does not say."""
    for key in ("properties", "schema_version", "const") if path == SCHEMA else ("schema_version",):
        document = document.get(key) if isinstance(document, dict) else None
    return document if type(document) is int else 0
