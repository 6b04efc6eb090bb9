"""Local files, opened once and held, each as it was when it was first looked at: what changes meanwhile is an error."""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analyzer.base.errors import GoneError, SourceError, shown

MAX_HELD = 64  # a process may have few files open, 256 on some systems; others are opened for each read
CAN_HOLD = hasattr(os, "pread")  # reads of several threads at once
# O_NONBLOCK: opening a FIFO that took a file's place must fail, not wait.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

Identity = tuple[int, int, int, int, int]


def identity(status: os.stat_result) -> Identity:
    """Return what tells one state of a file from any other: device, inode, size, and the times of changes."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class LocalFiles:
    """Files by their path, of which no byte is returned that is not of the state that was seen first."""

    def __init__(self) -> None:
        """Hold nothing yet; what is held is closed with the last reference to this."""
        self._seen: dict[Path, Identity] = {}
        self._held: dict[Path, int] = {}
        self._used: set[Path] = set()
        self._opening = threading.Lock()
        weakref.finalize(self, _close, self._held)

    def see(self, path: Path, status: os.stat_result) -> None:
        """Take this for the state of a file, unless one was seen before."""
        self._seen.setdefault(path, identity(status))

    def identity(self, path: Path) -> str:
        """Return what tells the state of a file that was seen from any other, by whatever path; it counts as used."""
        self._used.add(path)
        return "file:" + ",".join(map(str, self._seen[path]))

    def hand_out(self, path: Path) -> None:
        """Let a library read a file by itself: what it reads is of the state that was seen if `check` says so."""
        self._used.add(path)

    def read(self, path: Path, start: int, stop: int) -> bytes:
        """Return the bytes of a regular file from `start` up to, but not including, `stop`.

        Links are followed: the Hub's own cache consists of them. Raises SourceError where the bytes cannot be had, or
        are not those of the state that was seen first.
        """
        with self._reading(path) as descriptor:
            data = _read_range(descriptor, start, stop)
        _check_end(path, start + len(data), stop)
        return data

    def read_into(self, path: Path, start: int, into: memoryview) -> None:
        """Fill this with a file's bytes from `start` on. Raises like `read`."""
        with self._reading(path) as descriptor:
            count = _read_into(descriptor, start, into)
        _check_end(path, start + count, start + len(into))

    def check(self) -> None:
        """Raise SourceError where a file that was read or handed out is not, or no longer, as it was seen first."""
        for path in sorted(self._used):
            try:
                self._compare(path, path.stat())
            except OSError as error:
                raise GoneError(f"{shown(path)} was read, and is gone ({error.strerror}): {_ADVICE}") from error

    @contextmanager
    def _reading(self, path: Path) -> Iterator[int]:
        """Yield a file's descriptor. Raises SourceError where it cannot be read, or is no longer as it was seen."""
        self._used.add(path)
        try:
            with self._opened(path) as descriptor:
                yield descriptor
                self._compare(path, os.fstat(descriptor))  # after the read: what it brought was not yet changed
        except OSError as error:
            raise SourceError(f"cannot read {shown(path)}: {error.strerror}") from error

    def _compare(self, path: Path, status: os.stat_result) -> None:
        if self._seen.setdefault(path, identity(status)) != identity(status):
            raise GoneError(f"{shown(path)} changed while it was read: {_ADVICE}")

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        """Yield a file's descriptor: the one that is held, or that will be as long as there are not too many."""
        with self._opening:
            descriptor = self._held.get(path)
            held = descriptor is not None
            if descriptor is None:
                descriptor = os.open(path, FLAGS)
                try:
                    status = os.fstat(descriptor)
                    if not stat.S_ISREG(status.st_mode):
                        raise SourceError(f"{shown(path)} is not a regular file")
                    self._compare(path, status)
                    if held := CAN_HOLD and len(self._held) < MAX_HELD:
                        self._held[path] = descriptor
                except BaseException:
                    os.close(descriptor)
                    raise
        try:
            yield descriptor
        finally:
            if not held:
                os.close(descriptor)


_ADVICE = "run it again when nothing writes to the model"


def _close(held: dict[Path, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)


def _check_end(path: Path, end: int, wanted: int) -> None:
    if end != wanted:
        raise SourceError(f"{shown(path)} ends at byte {end}, expected {wanted}: it is truncated")


def _read_range(descriptor: int, start: int, stop: int) -> bytes:
    """Return what the file has of the range: a read may stop short of it, at 2 GiB on Linux for one."""
    data = _read_at(descriptor, start, stop - start)
    while len(data) < stop - start and (more := _read_at(descriptor, start + len(data), stop - start - len(data))):
        data += more
    return data


def _read_into(descriptor: int, start: int, into: memoryview) -> int:
    """Return how much of this the file had bytes for."""
    if not hasattr(os, "preadv"):
        data = _read_range(descriptor, start, start + len(into))
        into[: len(data)] = data
        return len(data)
    done = 0
    while done < len(into) and (count := os.preadv(descriptor, [into[done:]], start + done)):
        done += count
    return done


def _read_at(descriptor: int, start: int, count: int) -> bytes:
    if CAN_HOLD:
        return os.pread(descriptor, count, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, count)
