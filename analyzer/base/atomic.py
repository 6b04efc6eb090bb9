"""Writes a file whole or not at all, and clears away what writers that were killed have left."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which lets nobody remove a file that is open
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".writing.", ".tmp"


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file atomically; one that already has this content is left alone.

    A link is followed, what it leads to is written. A new file has the mode that the umask leaves, one that is there
    keeps its own. `durable` waits until the disk has it. Raises OSError where it cannot be written; the file that was
    there is then as it was.
    """
    path = check_writable(path)
    if path.is_file() and path.read_bytes() == data:
        return
    for left in _candidates(path.parent):
        _if_left(left, Path.unlink)
    with _temporary(path) as (temporary, file):
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows renames nothing that is open
        temporary.replace(path)


def check_writable(path: Path) -> Path:
    """Return where `write_whole` would write, links followed; raises the OSError that it would, as far as is known."""
    path = Path(os.path.realpath(path))
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    if not path.parent.is_dir():
        fault = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
        raise OSError(fault, os.strerror(fault))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def leftovers(folder: Path) -> list[Path]:
    """Return the files in a folder that writers began and did not finish, and that no writer holds any longer."""
    return [path for path in _candidates(folder) if _if_left(path)]


def _candidates(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def _if_left(path: Path, act: Callable[[Path], object] = lambda _: None) -> bool:
    """Tell whether no writer holds this file and, while none can, do something with it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                act(path)
                return True
        finally:
            os.close(descriptor)
    return False


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file beside `path`, its name and itself, which is locked until it is closed; gone afterwards."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    while True:
        temporary = path.with_name(f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(temporary, flags, 0o666 if mode is None else mode & 0o777), "wb") as file:
                if fcntl is not None:
                    with suppress(OSError):  # of a file system without locks, where what is left stays
                        fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(temporary, file):
                    continue  # another writer took it for left before it was locked
                if mode is not None:
                    temporary.chmod(mode)  # whatever the umask says
                yield temporary, file
                return
        finally:
            temporary.unlink(missing_ok=True)


def _is_at(path: Path, file: BinaryIO) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
