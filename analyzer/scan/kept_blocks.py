"""What a slow link has brought of tensors that are not finished, kept on the disk, so that no second of it is lost.

A summary is kept once its tensor is read whole (kept.py); on a slow link that takes minutes. So until then each block
is read in pieces of a fraction of a second, and each piece is added to the block's file as soon as it is there.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.numbers.matrices import Part
from analyzer.scan.kept import BLOCKS

SLOW_BYTES_S = 32e6  # a link that brings less is slow: a tensor of a large model takes seconds
PIECE_S = 0.25  # how long a piece should take
FIRST_PIECE, LEAST_PIECE = 1 << 18, 1 << 17
MAX_BYTES = 2_000_000_000  # of all blocks that are kept
MAX_AGE_S = 7 * 86400.0
FRAME = struct.Struct("<QQ32s")  # before each piece: its start within the block, its length, its SHA-256


class KeptBlocks:
    """Reads a checkpoint's source as `stream` wants it; where the link is slow, what it brings is kept meanwhile."""

    def __init__(self, checkpoint: Checkpoint, cache: Path) -> None:
        """Use a folder of the cache, in which what is old is cleared away."""
        self._checkpoint, self._source = checkpoint, checkpoint.source
        self.readers, self.block_bytes = self._source.readers, self._source.block_bytes
        self._folder = cache / BLOCKS
        self._room = MAX_BYTES - _cleared(self._folder)
        self._measuring = threading.Lock()
        self._began: float | None = None
        self._bytes, self._piece = 0, FIRST_PIECE

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """See Source.read."""
        content = self._source.content(filename)
        if content is None or stop - start <= FIRST_PIECE:
            return self._source.read(filename, start, stop)
        with self._measuring:
            self._began = time.monotonic() if self._began is None else self._began
        path = self._path(content, start, stop)
        data = _load(path, stop - start)
        self._checkpoint.take_back(len(data))
        while len(data) < stop - start:
            first, slow = start + len(data), self._is_slow()
            last = min(stop, first + self._piece) if slow else stop
            began = time.monotonic()
            piece = self._source.read(filename, first, last)
            self._measure(len(piece), time.monotonic() - began)
            if self._is_slow() and len(piece) <= self._room:
                self._room -= len(piece)
                _add(path, len(data), piece)
            data += piece
        return data

    def drop(self, parts: Iterable[Part]) -> None:
        """Forget the blocks of a tensor whose summary is kept, or of its scales."""
        for part in parts if self._room < MAX_BYTES else ():
            tensor = self._checkpoint.tensors[part.tensor]
            content = self._source.content(tensor.filename)
            if content is None:
                continue
            start = tensor.record.start
            for path in _blocks_in(self._folder_of(content)):
                with suppress(OSError, ValueError):
                    first, last = map(int, path.name.split("-"))
                    if first < start + part.stop and last > start + part.start:
                        self._room += path.stat().st_size
                        path.unlink()

    def _is_slow(self) -> bool:
        """Tell whether the link has brought little so far, or nothing yet."""
        return self._began is None or self._bytes < SLOW_BYTES_S * (time.monotonic() - self._began)

    def _measure(self, count: int, seconds: float) -> None:
        with self._measuring:
            self._bytes += count
            self._piece = max(LEAST_PIECE, min(self.block_bytes, int(count * PIECE_S / max(seconds, 1e-6))))

    def _folder_of(self, content: str) -> Path:
        return self._folder / hashlib.sha256(content.encode()).hexdigest()[:32]

    def _path(self, content: str, start: int, stop: int) -> Path:
        return self._folder_of(content) / f"{start}-{stop}"


def _blocks_in(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in folder.iterdir() if path.is_file()]
    return []


def _load(path: Path, size: int) -> bytearray:
    """Return what is kept of a block from its start on; what is damaged, and all after it, is as good as none."""
    data = bytearray()
    with suppress(OSError):
        if not path.is_file() or path.stat().st_size > 2 * size + LEAST_PIECE:
            return data
        kept = path.read_bytes()
        place = 0
        while place + FRAME.size <= len(kept):
            start, length, digest = FRAME.unpack_from(kept, place)
            place += FRAME.size
            piece = kept[place : place + length]
            place += length
            if start == len(data) and len(data) + length <= size and hashlib.sha256(piece).digest() == digest:
                data += piece
    return data


def _add(path: Path, start: int, piece: bytes | bytearray) -> None:
    """Add a piece to a block's file, in one write, so that two scans of a model spoil nothing."""
    frame = FRAME.pack(start, len(piece), hashlib.sha256(piece).digest())
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(frame + piece)


def _cleared(folder: Path) -> int:
    """Remove blocks that nobody has added to for long, and return how many bytes the others have."""
    total, now = 0, time.time()
    with suppress(OSError):
        for each in folder.iterdir():
            for path in _blocks_in(each):
                with suppress(OSError):
                    status = path.stat()
                    if now - status.st_mtime > MAX_AGE_S:
                        path.unlink()
                    else:
                        total += status.st_size
            with suppress(OSError):
                each.rmdir()  # where it is empty
    return total
