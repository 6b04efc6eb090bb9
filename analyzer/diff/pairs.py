"""Two checkpoints side by side: what both share is not read, the rest is ranked and compared in one pass."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from analyzer.base.progress import Progress, counted
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.diff.changes import Comparison, MatrixChange, comparable
from analyzer.diff.together import NEW, OLD, Both, contents_of, in_step
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Unsigned
from analyzer.projections.projection import DownProjection, num_layers_of
from analyzer.scan.kept import ResultCache
from analyzer.scan.outliers import TensorSummary
from analyzer.scan.records import ScanResult
from analyzer.scan.scanner import TensorScanner, gather
from analyzer.source.streaming import Want, stream


@dataclass(frozen=True)
class Pair:
    """One down projection in two versions, of one shape.

    `shared` tells that both lie in files of the same content, so that neither was read; then there are no `summaries`.
    `change` is null too where the two cannot be compared weight by weight.
    """

    projections: tuple[DownProjection, DownProjection]
    shared: bool
    summaries: tuple[TensorSummary, TensorSummary] | None
    change: MatrixChange | None

    @property
    def same(self) -> bool:
        """No weight differs."""
        return self.shared or (self.change is not None and self.change.same)


@dataclass(frozen=True)
class PairScan:
    """The down projections of two checkpoints: in pairs, and those whose place or shape the other has not.

    `scans` rank each side's weights in the pairs that differ; `shared_bytes` of each side were not read.
    """

    pairs: tuple[Pair, ...]
    unpaired: tuple[tuple[DownProjection | None, DownProjection | None], ...]
    scans: tuple[ScanResult, ScanResult]
    shared_bytes: int


def scan_pair(
    checkpoints: tuple[Checkpoint, Checkpoint],
    projections: tuple[Sequence[DownProjection], Sequence[DownProjection]],
    *,
    score: str,
    top: int,
    cache: ResultCache | None,
    progress: Progress,
) -> PairScan:
    """Compare the down projections of two checkpoints, and rank the weights of those that differ.

    Both versions of one are read in step, so that memory is bounded by blocks and not by tensors, and neither where
    they lie in files of the same content. Raises ArchitectureError where the gain cannot be told, SourceError where
    bytes cannot be read.
    """
    both, unpaired = _paired(projections)
    total = sum(projection.matrix.stored_bytes for pair in both for projection in pair)
    advance = counted(progress, "scan", total)
    readers = tuple(
        TensorScanner(
            checkpoints[side], [pair[side] for pair in both], score=score, top=top, cache=cache, progress=advance
        )
        for side in (OLD, NEW)
    )
    files = [
        {checkpoint.tensors[pair[side].matrix.data.tensor].filename for pair in both}
        for side, checkpoint in enumerate(checkpoints)
    ]
    contents = contents_of(checkpoints, files, progress)
    found: dict[int, Pair] = {}

    def wants() -> Iterator[Want]:
        for number, pair in enumerate(both):
            keys = [readers[side].key(pair[side], contents[side].get) for side in (OLD, NEW)]
            if keys[OLD] is not None and keys[OLD] == keys[NEW]:
                found[number] = Pair(pair, True, None, None)
                advance(sum(projection.matrix.stored_bytes for projection in pair))
            else:
                reading = _Reading(pair, partial(found.__setitem__, number), cache)
                yield from reading.wants(readers, top, advance)

    stream(Both(checkpoints), wants())
    pairs = tuple(found[number] for number in range(len(both)))
    read = [(pair, pair.summaries) for pair in pairs if pair.summaries is not None and not pair.same]
    scans = [
        gather(
            checkpoints[side],
            [pair.projections[side] for pair, _ in read],
            [summaries[side] for _, summaries in read],
            score=score,
            top=top,
            num_layers=num_layers_of(projections[side]),
        )
        for side in (OLD, NEW)
    ]
    shared = sum(pair.projections[NEW].matrix.stored_bytes for pair in pairs if pair.shared)
    return PairScan(pairs, tuple(unpaired), (scans[OLD], scans[NEW]), shared)


def _paired(
    projections: tuple[Sequence[DownProjection], Sequence[DownProjection]],
) -> tuple[list[tuple[DownProjection, DownProjection]], list[tuple[DownProjection | None, DownProjection | None]]]:
    """Return what is at one place in both and of one shape, and what is not, in the order of places."""
    both: list[tuple[DownProjection, DownProjection]] = []
    unpaired: list[tuple[DownProjection | None, DownProjection | None]] = []
    by_place = [{projection.place: projection for projection in side} for side in projections]
    for place in sorted({**by_place[OLD], **by_place[NEW]}):
        old, new = by_place[OLD].get(place), by_place[NEW].get(place)
        if old is None or new is None or old.shape != new.shape:
            unpaired.append((old, new))
        else:
            both.append((old, new))
    return both, unpaired


class _Reading:
    """One pair on its way."""

    def __init__(
        self,
        projections: tuple[DownProjection, DownProjection],
        finish: Callable[[Pair], None],
        cache: ResultCache | None,
    ) -> None:
        self._projections, self._finish, self._cache = projections, finish, cache
        old, new = (projection.matrix for projection in projections)
        self._comparison = Comparison(old, new) if comparable(old, new) else None
        self._summaries: dict[int, TensorSummary] = {}
        self._finishing = threading.Lock()
        self._key: str | None = None

    def wants(self, readers: Sequence[TensorScanner], top: int, progress: Callable[[int], object]) -> Iterator[Want]:
        """Yield the wishes to read both versions in step, unless the cache has all that they would tell."""
        keys = [reader.key(each) for reader, each in zip(readers, self._projections, strict=True)]
        if self._cache and keys[OLD] and keys[NEW]:
            self._key = json.dumps(keys)
            old, new = (self._cache.load(key or "", top) for key in keys)
            change = MatrixChange.of_kept(self._cache.load_body(self._key))
            if old and new and (change or not self._comparison):
                self._finish(Pair(self._projections, False, (old, new), change))
                progress(sum(each.matrix.stored_bytes for each in self._projections))
                return
        sides = [
            reader.wants(each, partial(self._take_summary, side), self._watch(side))
            for side, (reader, each) in enumerate(zip(readers, self._projections, strict=True))
        ]
        sizes = [
            sum(part.stop - part.start for part in reader.parts(each))
            for reader, each in zip(readers, self._projections, strict=True)
        ]
        yield from in_step(sides, sizes)

    def _watch(self, side: int) -> Callable[[int, Tile, Unsigned], None] | None:
        comparison = self._comparison
        return (lambda _, tile, bits: comparison.take(side, tile, bits)) if comparison else None

    def _take_summary(self, side: int, summary: TensorSummary) -> None:
        with self._finishing:
            self._summaries[side] = summary
            if len(self._summaries) < 2:
                return
        change = self._comparison.result() if self._comparison else None
        if change and self._cache and self._key:
            self._cache.save_body(self._key, asdict(change))
        self._finish(Pair(self._projections, False, (self._summaries[OLD], self._summaries[NEW]), change))
