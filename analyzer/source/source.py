"""What a source of bytes is: a model's files, pinned to one state, read by ranges."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

MEBIBYTE = 1 << 20
# One word or owner/name, of the characters that the Hub allows.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


@runtime_checkable
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
    notes: tuple[str, ...]
    """What there is to know of how the model was found, a line each."""

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

    def check_unchanged(self) -> None:
        """Raise SourceError where a local file that was read has changed since it was first looked at.

        A job ends with it: its result would be of neither state.
        """
        ...


@runtime_checkable
class ReadsInto(Source, Protocol):
    """A source that can read into memory that is there already."""

    def read_into(self, filename: str, start: int, into: memoryview) -> None:
        """Fill this with the bytes from `start` on. Raises SourceError where they cannot be had exactly."""
        ...


def is_plain_path(name: str) -> bool:
    """Tell whether this is a relative path that stays inside its folder, on any system and in any URL."""
    return (
        name.isprintable()
        and not re.search(r"[\\:?#%*]", name)
        and not name.startswith("/")
        and all(part not in ("", ".", "..") for part in name.split("/"))
        and PurePosixPath(name).as_posix() == name
    )
