"""The static scanner: ranks the outlier weights of a checkpoint's down projections without running anything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from analyzer.base.records import Coordinate, Place
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.reading import UseTile
from analyzer.numbers.encoding import Tile
from analyzer.numbers.floats import Unsigned
from analyzer.numbers.matrices import Part
from analyzer.projections.projection import DownProjection, num_layers_of
from analyzer.scan.gain import GainScan
from analyzer.scan.kept import ResultCache, describe
from analyzer.scan.kept_blocks import KeptBlocks
from analyzer.scan.outliers import Magnitudes, TensorSummary
from analyzer.scan.records import Outlier, ScanResult, TensorStatistics
from analyzer.source.streaming import Want, stream

Progress = Callable[[int], object]
"""Called with the number of bytes just done, from any thread."""


def scan(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    *,
    score: str = "magnitude",
    top: int = 20,
    num_layers: int | None = None,
    cache: ResultCache | None = None,
    progress: Progress = lambda _: None,
) -> ScanResult:
    """Rank the weights of these down projections and keep the `top` best of the model.

    `score` is "magnitude", |W|, or "gain" (see gain.py). Every weight is read once, or not at all where `cache` holds
    the result of its tensor. `num_layers` is the model's, where not all of its layers are scanned. Ties are in order
    of tower, layer, expert, row, col. Raises ArchitectureError where the gain cannot be told, SourceError where bytes
    cannot be read.
    """
    began = time.perf_counter()
    summaries: dict[int, TensorSummary] = {}
    scanner = TensorScanner(checkpoint, projections, score=score, top=top, cache=cache, progress=progress)

    blocks = KeptBlocks(checkpoint, cache.folder) if cache else None

    def finish(index: int, projection: DownProjection, summary: TensorSummary) -> None:
        summaries[index] = summary
        if blocks:
            blocks.drop(scanner.parts(projection))

    def wants() -> Iterator[Want]:
        for index, projection in enumerate(projections):
            yield from scanner.wants(projection, partial(finish, index, projection))

    stream(blocks or checkpoint.source, wants())
    in_order = [summaries[index] for index in range(len(projections))]
    result = gather(checkpoint, projections, in_order, score=score, top=top, num_layers=num_layers)
    return replace(result, seconds=time.perf_counter() - began)


class TensorScanner:
    """Reads single down projections of one checkpoint, or takes what an earlier scan of the same bytes kept."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        projections: Sequence[DownProjection],
        *,
        score: str,
        top: int,
        cache: ResultCache | None,
        progress: Progress,
    ) -> None:
        """Raises ArchitectureError where the gain of one of the projections cannot be told."""
        self._checkpoint, self._score, self._top, self._progress = checkpoint, score, top, progress
        self._cache = cache
        self._gain = GainScan(checkpoint, projections) if score == "gain" else None

    def parts(self, projection: DownProjection) -> tuple[Part, ...]:
        """Return all of the checkpoint that a projection's summary depends on."""
        return self._gain.parts(projection) if self._gain else projection.matrix.parts

    def key(self, projection: DownProjection, content: Callable[[str], str | None] | None = None) -> str | None:
        """Return what names a projection's summary by its content; null where that is not known. See describe."""
        return describe(self._checkpoint, self._score, projection.matrix, self.parts(projection), content)

    def wants(
        self, projection: DownProjection, finish: Callable[[TensorSummary], None], watch: UseTile | None = None
    ) -> Iterator[Want]:
        """Yield the wishes to read a projection; `finish` gets its summary, once it is kept, and at once where it was.

        With `watch`, which is handed every tile too, it is always read.
        """
        matrix = projection.matrix
        key = self.key(projection) if self._cache else None
        known = self._cache.load(key, self._top) if self._cache and key and watch is None else None
        if known is not None:
            finish(known)
            self._progress(matrix.stored_bytes)
            return

        def keep(summary: TensorSummary) -> None:
            if self._cache and key:
                self._cache.save(key, self._top, summary)
            finish(summary)

        if self._gain:
            yield from self._gain.wants(projection, self._top, keep, self._progress, watch)
            return
        magnitudes = Magnitudes(matrix.encoding.decoded, self._top)

        def use(number: int, tile: Tile, bits: Unsigned) -> None:
            magnitudes.add(bits.ravel(), lambda indices: matrix.row_major(tile, indices))
            if watch:
                watch(number, tile, bits)

        yield from self._checkpoint.read_matrix(
            matrix, use, done=lambda: keep(magnitudes.summary()), progress=self._progress
        )


def gather(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    summaries: Sequence[TensorSummary],
    *,
    score: str,
    top: int,
    num_layers: int | None = None,
) -> ScanResult:
    """Return the summaries of these projections as a scan, whose time is not known, with the `top` best of them all."""
    statistics = tuple(
        TensorStatistics(
            name=projection.name,
            tower=projection.tower,
            layer=projection.layer,
            mlp=projection.mlp,
            layers=projection.layers,
            expert=projection.expert,
            shape=projection.shape,
            writes=projection.writes,
            dtype=projection.matrix.encoding.name,
            mean_abs=summary.mean_abs,
            std=summary.std,
            max_abs=summary.max_abs,
            nonfinite=summary.nonfinite,
        )
        for projection, summary in zip(projections, summaries, strict=True)
    )
    rows = {projection.shape[0] for projection in projections}
    cols = {projection.shape[1] for projection in projections}
    return ScanResult(
        model=checkpoint.source.model,
        revision=checkpoint.source.revision,
        commit=checkpoint.source.commit,
        model_type=checkpoint.model_type,
        num_layers=num_layers or num_layers_of(projections),
        hidden_size=rows.pop() if len(rows) == 1 else None,
        intermediate_size=cols.pop() if len(cols) == 1 else None,
        score=score,
        bytes_read=checkpoint.bytes_read,
        checkpoint_bytes=checkpoint.total_bytes,
        seconds=0.0,
        experts=_most_experts(projections),
        towers=tuple(sorted({projection.tower for projection in projections if projection.tower is not None})),
        encodings=dict(sorted(Counter(projection.matrix.encoding.name for projection in projections).items())),
        unread=(),
        notes=(),
        tensors=statistics,
        outliers=_merge(projections, summaries, top),
    )


def kept_weights(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    coordinates: Sequence[Coordinate],
    *,
    cache: ResultCache,
    top: int,
) -> dict[Coordinate, float]:
    """Return those of these weights that a scan of the `top` by magnitude has kept: the top of each tensor."""
    by_place: dict[Place, list[Coordinate]] = {}
    for coordinate in coordinates:
        by_place.setdefault(coordinate.place, []).append(coordinate)
    values: dict[Coordinate, float] = {}
    for projection in projections:
        wanted = by_place.get(projection.place)
        key = describe(checkpoint, "magnitude", projection.matrix, projection.matrix.parts) if wanted else None
        summary = cache.load(key, top) if key else None
        if wanted and summary:
            kept = dict(zip(summary.places.tolist(), summary.values.tolist(), strict=True))
            places = {coordinate: coordinate.row * projection.shape[1] + coordinate.col for coordinate in wanted}
            values |= {coordinate: kept[place] for coordinate, place in places.items() if place in kept}
    return values


def _most_experts(projections: Sequence[DownProjection]) -> int | None:
    of_block = Counter((each.tower, each.layer) for each in projections if each.expert is not None)
    return max(of_block.values(), default=None)


def _merge(projections: Sequence[DownProjection], summaries: Sequence[TensorSummary], top: int) -> tuple[Outlier, ...]:
    """Return the `top` outliers of the model from each tensor's own; of equal scores the first in order of place."""
    scores = np.concatenate([np.empty(0), *(summary.scores for summary in summaries)])
    starts = np.cumsum([0, *(summary.scores.size for summary in summaries)])
    found = []
    for rank, best in enumerate(np.argsort(-scores, kind="stable")[:top], start=1):
        tensor = int(np.searchsorted(starts, best, side="right")) - 1
        projection, summary, number = projections[tensor], summaries[tensor], best - starts[tensor]
        row, col = divmod(int(summary.places[number]), projection.shape[1])
        value = float(summary.values[number])
        outlier = Outlier(
            rank=rank,
            tower=projection.tower,
            layer=projection.layer,
            mlp=projection.mlp,
            layers=projection.layers,
            expert=projection.expert,
            row=row,
            col=col,
            value=value,
            score=float(scores[best]),
            zscore=(abs(value) - summary.mean_abs) / summary.std if summary.std > 0 else 0.0,
            tensor=projection.name,
            writes=projection.writes,
        )
        found.append(outlier)
    return tuple(found)
