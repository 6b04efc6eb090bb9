"""A checkpoint in a local folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from analyzer.base.errors import GoneError, SourceError, shown
from analyzer.source.local_files import LocalFiles
from analyzer.source.sizes import Sizes
from analyzer.source.source import MEBIBYTE, is_plain_path

# What libraries read of a model's folder by themselves: config and tokenizer.
BESIDE = (".json", ".model", ".jinja", "vocab.txt", "merges.txt")


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
        self._files, self._handed_out = LocalFiles(), False
        try:
            self.sizes: Mapping[str, int] = Sizes(dict(self._listed()), self._size_in_subfolder)
        except OSError as error:
            raise SourceError(f"cannot list {shown(self._folder)}: {error.strerror}") from error

    def read(self, filename: str, start: int, stop: int) -> bytes:
        """See Source.read."""
        return self._files.read(self._folder / filename, start, stop)

    def read_into(self, filename: str, start: int, into: memoryview) -> None:
        """See ReadsInto.read_into."""
        self._files.read_into(self._folder / filename, start, into)

    def content(self, filename: str) -> str | None:
        """See Source.content: reading a local file again is as fast as hashing it."""
        return None

    def identity(self, filename: str) -> str:
        """Return what tells the state of a file here from any other, by whatever path it was reached."""
        return self._files.identity(self._folder / filename)

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        self._handed_out = True
        for name in self.sizes:
            if name.endswith(BESIDE):
                self._files.hand_out(self._folder / name)
        return self._folder

    def check_unchanged(self) -> None:
        """See Source.check_unchanged."""
        self._files.check()
        for path in self._folder.iterdir() if self._handed_out else ():
            if path.name.endswith(BESIDE) and path.name not in self.sizes and path.is_file():
                raise GoneError(f"{shown(path)} is new since the model was opened: run it again")

    def _listed(self) -> Iterator[tuple[str, int]]:
        """Yield the regular files of the folder; a link that leads nowhere, or in a circle, is none."""
        for path in self._folder.iterdir():
            with suppress(OSError):
                if path.is_file():
                    self._files.see(path, status := path.stat())
                    yield path.name, status.st_size

    def _size_in_subfolder(self, filename: str) -> int | None:
        """Return the size of a file that is not in the folder itself: an index may name shards in a subfolder."""
        with suppress(OSError):
            path = self._folder / filename
            if "/" in filename and is_plain_path(filename) and path.is_file():
                self._files.see(path, status := path.stat())
                return status.st_size
        return None
