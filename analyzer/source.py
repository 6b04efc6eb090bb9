"""Where bytes come from: a local folder, or the Hugging Face Hub (hub.py).

Both pin what they read (the Hub at one commit), list their files with sizes, and answer
`read(filename, start, stop)`. Nothing is ever executed or unpickled.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from analyzer.errors import SourceError, shown

# One word or owner/name, of the characters that the Hub allows.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
MEBIBYTE = 1 << 20


class Source(Protocol):
    """A model's files at one pinned state."""

    model: str
    """The name that results carry: a Hub id, or a folder's name; never a path of this machine."""
    revision: str | None
    commit: str | None
    sizes: Mapping[str, int]
    """Size in bytes of each file, by its path relative to the model's folder."""
    readers: int
    """How many reads at once are worth it."""
    block_bytes: int
    """How many bytes one read should ask for."""

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """Return the bytes from `start` up to, but not including, `stop`.

        Raises SourceError where they cannot be had exactly.
        """
        ...

    def content(self, filename: str) -> str | None:
        """Return the hash that names a file's content where bytes are worth keeping; else null."""
        ...

    def folder(self, weights: Collection[str]) -> Path:
        """Return a local folder with the weight files named, config and tokenizer, downloading what is missing.

        Raises SourceError where it cannot be downloaded.
        """
        ...


def open_source(
    model: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    model_id: str | None = None,
) -> Source:
    """Return the source for a local folder or a Hub id (`owner/name` or `owner/name@revision`).

    A folder that exists goes before a Hub id of the same name. `model_id` renames a local folder in results.
    Raises SourceError where there is no such model or it cannot be reached.
    """
    if not model.strip():
        raise SourceError("the model's name is empty: give a folder or a Hub id of the form owner/name")
    try:
        path = Path(model).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name longer than paths may be, the home of nobody
        raise SourceError(f"cannot look for a folder {shown(model)}: {shown(error)}") from error
    if is_folder:
        if revision is not None:
            raise SourceError(f"{shown(model)} is a local folder and has no revisions: leave --revision out")
        return FolderSource(path, subfolder=subfolder, model_id=model_id)
    name, _, at_revision = model.partition("@")
    if exists:
        raise SourceError(f"{shown(model)} is a file: give the folder that holds the checkpoint")
    if not HUB_ID.fullmatch(name):
        raise SourceError(f"there is no folder {shown(model)}, and it is not a Hub id of the form owner/name")
    if at_revision and revision is not None and revision != at_revision:
        raise SourceError(f"{shown(model)} and --revision {shown(revision)} name two revisions: give one")
    if model_id is not None and model_id != name:
        raise SourceError(f"--model-id names a local folder; {name} already has its name on the Hub")
    from analyzer.hub import open_hub  # needs the Hub's client, which a local scan does not

    return open_hub(name, revision=revision or at_revision or None, subfolder=subfolder, token=token)


class FolderSource:
    """A checkpoint in a local folder."""

    block_bytes = MEBIBYTE  # stays in a core's cache; larger blocks measured slower

    def __init__(
        self,
        path: Path,
        *,
        subfolder: str | None = None,
        model_id: str | None = None,
        revision: str | None = None,
        commit: str | None = None,
    ) -> None:
        """List the folder's files; `revision` and `commit` are those of a downloaded repository.

        Raises SourceError where the folder cannot be listed.
        """
        resolved = path.resolve()
        self.model = model_id or resolved.name or "model"
        self.revision = revision
        self.commit = commit
        self.readers = min(8, os.cpu_count() or 1)
        self._folder = resolved / subfolder if subfolder else resolved
        if not self._folder.resolve().is_relative_to(resolved):
            raise SourceError(f"--subfolder {shown(subfolder)} leads out of {shown(path)}")
        try:
            self.sizes: Mapping[str, int] = dict(_file_sizes(self._folder))
        except OSError as error:
            raise SourceError(f"cannot list {shown(self._folder)}: {error.strerror}") from error

    def read(self, filename: str, start: int, stop: int) -> bytes:
        """See Source.read."""
        return read_file(self._folder / filename, start, stop)

    def content(self, filename: str) -> str | None:
        """See Source.content: reading a local file again is as fast as hashing it."""
        return None

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        return self._folder


def read_file(path: Path, start: int, stop: int) -> bytes:
    """Return the bytes of a regular file from `start` up to, but not including, `stop`.

    Links are followed: the Hub's own cache consists of them. Raises SourceError where the bytes cannot be had.
    """
    try:
        # O_NONBLOCK: opening a FIFO that took a file's place must fail, not wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SourceError(f"{shown(path)} is not a regular file")
            data = _read_range(descriptor, start, stop)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"cannot read {shown(path)}: {error.strerror}") from error
    if len(data) != stop - start:
        raise SourceError(f"{shown(path)} ends at byte {start + len(data)}, expected {stop}: it is truncated")
    return data


def _file_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the regular files of a folder; a link that leads nowhere, or in a circle, is none."""
    for entry in os.scandir(folder):
        with suppress(OSError):
            if entry.is_file():
                yield entry.name, entry.stat().st_size


def _read_range(descriptor: int, start: int, stop: int) -> bytes:
    """Return what the file has of the range: a read may stop short of it, at 2 GiB on Linux for one."""
    os.lseek(descriptor, start, os.SEEK_SET)
    data = os.read(descriptor, stop - start)
    while len(data) < stop - start and (more := os.read(descriptor, stop - start - len(data))):
        data += more
    return data


def is_plain_path(name: str) -> bool:
    """Tell whether this is a relative path that stays inside its folder, on any system and in any URL."""
    return (
        name.isprintable()
        and not re.search(r"[\\:?#%*]", name)
        and not name.startswith("/")
        and all(part not in ("", ".", "..") for part in name.split("/"))
        and PurePosixPath(name).as_posix() == name
    )
