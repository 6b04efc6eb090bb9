"""One file of a checkpoint: JSON, a safetensors header, or what lies in the place of either."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from analyzer.base.errors import CheckpointError, HeaderError, shown
from analyzer.checkpoint.header import LENGTH_BYTES, TensorRecord, header_length, parse_header
from analyzer.source.source import Source

MAX_CONFIG_BYTES = 10_000_000
MAX_INDEX_BYTES = 100_000_000  # the largest index on the Hub is some 10 MB
GUESS_BYTES = 65_536  # of a header whose length nothing tells; those of most dense models are shorter
ENTRY_BYTES = 96  # of a tensor's entry in a header beside its name, amply
FILE_PER_GUESS = 1000  # how much longer than a guess its file must be: a scan reads next to nothing it does not need
LOOKED_AT = 256  # first bytes of a file that is not what its name says

Read = Callable[[str, int, int], bytes]
"""Reads the bytes of a file from a start to a stop, exclusive."""


def read_json(source: Source, read: Read, filename: str, *, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file of at most so many bytes.

    Raises CheckpointError, which begins with the file's name, where there is none.
    """
    size = source.sizes[filename]
    if size > most:
        raise CheckpointError(f"{filename} has {size} bytes, too many to be true")
    data = read(filename, 0, size) if size else b"null"
    try:
        loaded = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        fault = _intruder(data[:LOOKED_AT]) or f"is not JSON ({shown(error)}): download it again"
        raise CheckpointError(f"{filename} {fault}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{filename} is not a JSON object")
    return loaded


def read_header(source: Source, read: Read, filename: str, guess: int) -> dict[str, TensorRecord] | HeaderError:
    """Return the tensors of a safetensors file by name or, beginning with its own name, what is wrong with it.

    A header of at most `guess` bytes takes one read, unless its file is too small for guesses.
    """
    size = source.sizes[filename]
    ask = guess if guess * FILE_PER_GUESS <= size else min(LENGTH_BYTES, size)
    first = read(filename, 0, ask) if size else b""
    try:
        stop = LENGTH_BYTES + header_length(first, size)
        if stop > len(first):
            first += read(filename, len(first), stop)
        return parse_header(first[LENGTH_BYTES:stop], size)
    except HeaderError as error:
        fault = HeaderError(f"{shown(filename)} {intruder_in(source, read, filename) or error}")
        fault.__cause__ = error
        return fault


def intruder_in(source: Source, read: Read, filename: str) -> str | None:
    """Return what to say of a file in whose place there is a Git LFS pointer, a web page or a text; else null."""
    size = source.sizes[filename]
    beginning = read(filename, 0, min(LOOKED_AT, size)) if size else b""
    return _intruder(beginning) or _text(beginning)


def _intruder(beginning: bytes) -> str | None:
    """Return what to say of a file whose beginning tells that another one took its place; else null."""
    text = beginning.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download the model with `hf download`"
    if re.match(r"<(!doctype\s+)?html", text, re.IGNORECASE):
        return "is a web page (HTML), a login or an error that was saved in the file's place: download it again"
    return None


def _text(beginning: bytes) -> str | None:
    """Return what to say of text where none belongs; null of anything else."""
    text = beginning.decode("utf-8-sig", "ignore")  # a character may be cut in two
    if not text or not all(c.isprintable() or c in "\t\n\r" for c in text):
        return None
    said = shown(" ".join(text.split()), 80)
    return f"is text, perhaps a server's message that was saved in the file's place: download it again ({said})"
