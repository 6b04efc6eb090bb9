"""The catalog: one JSON file per model family, with this tool's entries and what others have reported.

Writing the same analysis again leaves a file byte for byte the same. Writes are atomic (a temporary file, fsync,
rename) and take a lock, so that two writers lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from analyzer.base.atomic import check_writable, leftovers
from analyzer.base.errors import CatalogError, shown
from analyzer.catalog.documents import (
    SCHEMA_FILE,
    Document,
    Reported,
    entry_key,
    fault_of_name,
    is_older_schema,
    load,
    problems,
    read_document,
    version_order,
    write_document,
)
from analyzer.catalog.documents import Entry as Entry
from analyzer.catalog.families import FAMILY
from analyzer.catalog.reported import merged

DEFAULT_FOLDER = Path("catalog")
LOCK_FILE = ".lock"
LOCK_TIMEOUT_S = 30


def check_destination(folder: Path, family: str, model: str) -> None:
    """Raise the CatalogError that saving an entry of this model would, as far as it is known before there is one."""
    if fault := fault_of_name(model):
        raise CatalogError(f"no catalog may hold the name {shown(model)}: {fault}: give another (--model-id)")
    with _changing(folder, family) as (path, _):
        if path.is_symlink() and not path.exists():
            raise CatalogError(f"{shown(path)} is a link that leads nowhere: remove it, or make what it leads to")
        for each in (path, folder / SCHEMA_FILE):
            if each == path or is_older_schema(each):
                try:
                    check_writable(each)
                except OSError as error:
                    raise CatalogError(f"cannot write {shown(each)}: {error.strerror}") from error


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
    save_entries(folder, family, [entry])
    return _family_path(folder, family)


def save_entries(folder: Path, family: str, entries: Iterable[Entry], *, keep_newer: bool = False) -> int:
    """Put entries into the family's file, each as save_entry does, all in one write; returns how many.

    With `keep_newer` those that a newer version of this tool made stay, in the place of which one would come.
    Raises CatalogError like save_entry.
    """
    count = 0
    with _changing(folder, family) as (path, document):
        kept = {entry_key(entry): entry for entry in document["entries"]}
        for entry in entries:
            key = entry_key(entry)
            before = kept.get(key)
            if keep_newer and before is not None and _version_of(before) > _version_of(entry):
                continue
            kept[key] = {**entry, "note": before["note"]} if before and entry.get("note") is None else entry
            count += 1
        write_document(path, family, entries=kept.values(), reported=document["reported"])
    return count


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

    path, lock = _family_path(folder, family), filelock.FileLock(folder / LOCK_FILE, timeout=LOCK_TIMEOUT_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise CatalogError(f"{shown(folder)} is locked by another writer: try again when it is done") from error
    except FileExistsError as error:
        raise CatalogError(f"{shown(folder)} is a file: give a folder for the catalog (--catalog)") from error
    except OSError as error:
        what = f"the lock {shown(folder / LOCK_FILE)}" if _is_there(folder) else f"the folder {shown(folder)}"
        raise CatalogError(f"cannot make {what}: {error.strerror}: give another catalog (--catalog)") from error
    try:
        yield path, read_document(path) if path.exists() else {"entries": [], "reported": []}
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}; what was there is unchanged") from error
    finally:
        lock.release()


def _version_of(entry: Entry) -> tuple[int, ...]:
    return version_order(str(entry["method"].get("version")))


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
    if not _is_there(folder) or folder.samefile(_record_folder()):
        return record
    own = read_documents(folder)
    nothing: Document = {"entries": [], "reported": []}
    return {
        family: _together(own.get(family, nothing), record.get(family, nothing)) for family in sorted({**own, **record})
    }


def _record_folder() -> Path:
    """Return the catalog that was installed with the tool, or that of the checkout that it runs from."""
    package = Path(__file__).parents[1]
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


def left_in(folder: Path) -> list[str]:
    """Return the names of files in a catalog's folder that a writer began, and was killed before it was done."""
    return [path.name for path in leftovers(folder)]


def files(folder: Path) -> list[Path]:
    """Return the catalog's files in order. Raises CatalogError where there is no such folder, or it cannot be read."""
    try:
        if folder.is_dir():
            return sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name != SCHEMA_FILE)
    except OSError as error:
        raise CatalogError(f"cannot read the catalog {shown(folder)}: {error.strerror}") from error
    raise CatalogError(f"there is no catalog folder {shown(folder)}: give another (--catalog)")


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # no name that a folder can have, or one that may not be looked for
        return False
