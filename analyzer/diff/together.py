"""Two checkpoints read as one: in step, and without what both share."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from analyzer.base.progress import Progress, counted
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.source.folder import FolderSource
from analyzer.source.single_file import FileSource
from analyzer.source.source import Source
from analyzer.source.streaming import Want, in_parallel

OLD, NEW = 0, 1


class Both:
    """Two sources as one to read from: the names of their files begin with the side."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._sources = [checkpoint.source for checkpoint in checkpoints]
        self.readers = max(source.readers for source in self._sources)
        self.block_bytes = max(source.block_bytes for source in self._sources)

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """See Readable.read."""
        return self._sources[int(filename[0])].read(filename[1:], start, stop)


def in_step(sides: Sequence[Iterator[Want]], sizes: Sequence[int]) -> Iterator[Want]:
    """Yield the wants of both sides, always of that of which less has been wanted."""
    done = [0, 0]
    waiting = [next(side, None) for side in sides]
    while left := [side for side in (OLD, NEW) if waiting[side] is not None]:
        side = min(left, key=lambda side: done[side] / sizes[side])
        want = waiting[side]
        assert want is not None
        done[side] += want.stop - want.start
        yield replace(want, filename=f"{side}{want.filename}")
        waiting[side] = next(sides[side], None)


def contents_of(
    checkpoints: Sequence[Checkpoint], files: Sequence[Collection[str]], progress: Progress
) -> Sequence[Mapping[str, str | None]]:
    """Return what tells the content of these files of each side; two that say the same have the same.

    That is a hash or, of a local file, which file it is, where both are local. Where the other side has a file of its
    size with a hash, hashing a local one costs less than reading that.
    """
    local = [_folder_of(checkpoint.source) for checkpoint in checkpoints]
    if (old := local[OLD]) is not None and (new := local[NEW]) is not None:
        return [
            {name: side.identity(name) for name in sorted(names)} for side, names in zip((old, new), files, strict=True)
        ]
    known: list[dict[str, str | None]] = []
    for checkpoint, names in zip(checkpoints, files, strict=True):
        known.append({name: checkpoint.source.content(name) for name in sorted(names)})
    hashing = []
    for side, checkpoint in enumerate(checkpoints):
        other = checkpoints[1 - side].source
        sizes = {other.sizes[name] for name, content in known[1 - side].items() if content is not None}
        missing = [name for name, content in known[side].items() if content is None]
        hashing += [(side, name) for name in missing if checkpoint.source.sizes[name] in sizes]
    advance = counted(progress, "hash", sum(checkpoints[side].source.sizes[name] for side, name in hashing))
    digests = in_parallel(
        lambda each: checkpoints[each[0]].sha256(each[1], advance), hashing, threads=os.cpu_count() or 1
    )
    for (side, name), digest in zip(hashing, digests, strict=True):
        known[side][name] = digest
    return known


def _folder_of(source: Source) -> FolderSource | None:
    whole = source.whole if isinstance(source, FileSource) else source
    return whole if isinstance(whole, FolderSource) else None
