"""A checkpoint in a local folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from analyzer.base.errors import SourceError, shown
from analyzer.source.sizes import Sizes
from analyzer.source.source import MEBIBYTE, is_plain_path


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
        notes: tuple[str, ...] = (),
    ) -> None:
        """List the folder's files; `revision`, `commit` and `notes` are those of a downloaded repository.

        Raises SourceError where the folder cannot be listed.
        """
        resolved = path.resolve()
        self.model = model_id or resolved.name or "model"
        self.revision = revision
        self.commit = commit
        self.notes = notes
        self.readers = min(8, os.cpu_count() or 1)
        self._folder = resolved / subfolder if subfolder else resolved
        if not self._folder.resolve().is_relative_to(resolved):
            raise SourceError(f"--subfolder {shown(subfolder)} leads out of {shown(path)}")
        try:
            self.sizes: Mapping[str, int] = Sizes(dict(_file_sizes(self._folder)), self._size_in_subfolder)
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

    def _size_in_subfolder(self, filename: str) -> int | None:
        """Return the size of a file that is not in the folder itself: an index may name shards in a subfolder."""
        with suppress(OSError):
            path = self._folder / filename
            if "/" in filename and is_plain_path(filename) and path.is_file():
                return path.stat().st_size
        return None


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
