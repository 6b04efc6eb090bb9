"""One file among a source's as a model of its own: a GGUF file, with all of its parts where it was split."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from analyzer.base.errors import SourceError, shown
from analyzer.source.source import Source

GGUF_SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)
MAX_PARTS = 1000
MAX_LISTED = 40


class FileSource:
    """The file of a source, or the parts of one; the model's name carries the file's."""

    def __init__(self, source: Source, filename: str, *, folder: str = "", model: str | None = None) -> None:
        """Take a file by its name, or all parts by that of one; `folder` is the source's own in the repository.

        `model` is the name, where it is not told by these.

        Raises SourceError where it, or one of its parts, is not there.
        """
        parts = parts_of_file(filename)
        missing = next((part for part in parts if part not in source.sizes), None)
        if missing is not None and any(part in source.sizes for part in parts):
            raise SourceError(f"{shown(source.model)}: the part {shown(missing)} is missing: download it too")
        if missing is not None:
            raise SourceError(f"{shown(source.model)} has no file {shown(folder + filename)}{_choice(source, folder)}")
        self.whole = source
        """What it is a file of."""
        self.model = model or f"{source.model}:{folder}{parts[0]}"
        self.revision, self.commit = source.revision, source.commit
        self.sizes: Mapping[str, int] = {part: source.sizes[part] for part in parts}
        self.readers, self.block_bytes = source.readers, source.block_bytes
        self.notes = source.notes

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """See Source.read."""
        return self.whole.read(filename, start, stop)

    def content(self, filename: str) -> str | None:
        """See Source.content."""
        return self.whole.content(filename)

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        return self.whole.folder(weights)

    def check_unchanged(self) -> None:
        """See Source.check_unchanged."""
        self.whole.check_unchanged()


def only_gguf(source: Source, *, folder: str = "") -> Source:
    """Return the source of the one GGUF model that a source has in place of safetensors, else the source as it is.

    Raises SourceError where it has several.
    """
    if any(name.endswith(".safetensors") and "/" not in name for name in source.sizes):
        return source
    files = gguf_files(source.sizes)
    if len(files) > 1:
        raise SourceError(
            f"{shown(source.model)} has {len(files)} GGUF files, and none is named{_choice(source, folder)}"
        )
    return FileSource(source, files[0], folder=folder) if files else source


def gguf_files(names: Collection[str]) -> list[str]:
    """Return the GGUF files among these names, a split one by its first part."""
    found = {parts_of_file(name)[0] for name in names if name.endswith(GGUF_SUFFIX) and name.isprintable()}
    return sorted(found)


def parts_of_file(filename: str) -> list[str]:
    """Return the names of all parts of a file, in order: its own where it was not split."""
    match = PART.fullmatch(filename)
    if match is None or not 1 <= int(match["count"]) <= MAX_PARTS:
        return [filename]
    return [f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


def _choice(source: Source, folder: str) -> str:
    """Return what an error says of the files that can be named."""
    files = gguf_files(source.sizes)
    if not files:
        return ", nor any other GGUF file: is its name right?"
    listed = ", ".join(shown(folder + name, 100) for name in files[:MAX_LISTED]) + (", …" if files[MAX_LISTED:] else "")
    return f": give {shown(source.model)}:FILE, where FILE is one of {listed}"
