"""The static scanner: ranks the outlier weights of a checkpoint's down projections without running anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import numpy as np

from analyzer.architectures import DownProjection, find_down_projections
from analyzer.checkpoint import Checkpoint
from analyzer.errors import ArchitectureError
from analyzer.outliers import FORMATS, FloatFormat, Int64, TensorSummary, count_before, summarize
from analyzer.records import Coordinate, Outlier, ScanResult, TensorStatistics

Progress = Callable[[int], object]
"""Called with the number of bytes of down projections just done, from any thread."""

T = TypeVar("T")


def down_projections(checkpoint: Checkpoint, layers: Sequence[range] | None = None) -> list[DownProjection]:
    """Return the checkpoint's down projections by layer and expert; `layers` keeps only those in its ranges.

    Raises ArchitectureError where there are none, or where a range names no layer.
    """
    shapes = {name: (tensor.record.dtype, tensor.record.shape) for name, tensor in checkpoint.tensors.items()}
    found = find_down_projections(checkpoint.source.model, shapes, checkpoint.config)
    if layers is None:
        return found
    present = {projection.layer for projection in found}
    for wanted in layers:
        if wanted.start not in present or wanted.stop - 1 not in present:
            raise ArchitectureError(
                f"{checkpoint.source.model} has no down projection in layer "
                f"{wanted.start if wanted.start not in present else wanted.stop - 1}: "
                f"its layers go from {min(present)} to {max(present)}"
            )
    return [p for p in found if any(p.layer in wanted for wanted in layers)]


def down_projection_bytes(checkpoint: Checkpoint, projections: Collection[DownProjection]) -> int:
    """Return how many bytes of the checkpoint these tensors are."""
    records = (checkpoint.tensors[projection.name].record for projection in projections)
    return sum(record.stop - record.start for record in records)


def scan(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    *,
    top: int = 20,
    progress: Progress = lambda _: None,
) -> ScanResult:
    """Rank the weights of these tensors by |W| and keep the `top` largest of the model.

    Every weight is read once. Ties are in order of layer, expert, row, col. Raises SourceError where bytes cannot
    be read.
    """
    began = time.perf_counter()

    def summarize_tensor(projection: DownProjection, blocks: Iterator[bytes]) -> TensorSummary:
        return summarize(blocks, _format(checkpoint, projection), top=top, row_major=projection.row_major)

    summaries = _over_tensors(checkpoint, projections, summarize_tensor, progress)
    statistics = tuple(
        TensorStatistics(
            name=projection.name,
            layer=projection.layer,
            expert=projection.expert,
            shape=projection.shape,
            dtype=checkpoint.tensors[projection.name].record.dtype,
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
        num_layers=1 + max(projection.layer for projection in down_projections(checkpoint)),
        hidden_size=rows.pop() if len(rows) == 1 else None,
        intermediate_size=cols.pop() if len(cols) == 1 else None,
        score="magnitude",
        bytes_read=checkpoint.bytes_read,
        checkpoint_bytes=checkpoint.total_bytes,
        seconds=time.perf_counter() - began,
        tensors=statistics,
        outliers=_merge(projections, summaries, top),
    )


def static_ranks(
    checkpoint: Checkpoint, projections: Sequence[DownProjection], coordinates: Sequence[Coordinate]
) -> dict[Coordinate, int]:
    """Return the rank by |W| that each coordinate has among all weights of these tensors, 1 being the largest.

    Costs one more pass over the tensors. Raises SourceError where bytes cannot be read.
    """
    if not coordinates:
        return {}
    values = np.array(list(read_weights(checkpoint, projections, coordinates).values()))

    def count_in_tensor(projection: DownProjection, blocks: Iterator[bytes]) -> Int64:
        rows, cols = projection.shape
        here = Coordinate(projection.layer, projection.expert, 0, 0).sort_key[:2]
        # Equal magnitudes rank by coordinate: all of an earlier tensor's come first, none of a later one's.
        ties = [
            c.row * cols + c.col if c.sort_key[:2] == here else (rows * cols if here < c.sort_key[:2] else 0)
            for c in coordinates
        ]
        return count_before(
            blocks,
            _format(checkpoint, projection),
            magnitudes=np.abs(values),
            tie_places=np.array(ties),
            row_major=projection.row_major,
        )

    before = np.sum(_over_tensors(checkpoint, projections, count_in_tensor, lambda _: None), axis=0)
    return {coordinate: 1 + int(count) for coordinate, count in zip(coordinates, before, strict=True)}


def read_weights(
    checkpoint: Checkpoint, projections: Sequence[DownProjection], coordinates: Sequence[Coordinate]
) -> dict[Coordinate, float]:
    """Return these weights, each read on its own.

    Raises ArchitectureError where the tensors have no such weight, SourceError where bytes cannot be read.
    """
    by_place = {(projection.layer, projection.expert): projection for projection in projections}

    def read(coordinate: Coordinate) -> float:
        projection = by_place.get((coordinate.layer, coordinate.expert))
        if projection is None or coordinate.row >= projection.shape[0] or coordinate.col >= projection.shape[1]:
            raise ArchitectureError(f"{checkpoint.source.model} has no weight {coordinate}")
        float_format = _format(checkpoint, projection)
        size = float_format.bits.itemsize
        start = projection.file_place(coordinate.row, coordinate.col) * size
        data = checkpoint.read(checkpoint.tensors[projection.name], start, start + size)
        return float(float_format.decode(np.frombuffer(data, float_format.bits))[0])

    with ThreadPoolExecutor(checkpoint.source.readers) as pool:
        return dict(zip(coordinates, pool.map(read, coordinates), strict=True))


def _over_tensors(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    work: Callable[[DownProjection, Iterator[bytes]], T],
    progress: Progress,
) -> list[T]:
    """Run `work` on each tensor's blocks, several tensors at once; a failure or Ctrl-C stops all of them."""
    stop = Event()

    def run(projection: DownProjection) -> T:
        try:
            return work(projection, blocks(projection))
        except BaseException:
            stop.set()  # what the others return is then cut short, but never used: this is raised
            raise

    def blocks(projection: DownProjection) -> Iterator[bytes]:
        tensor = checkpoint.tensors[projection.name]
        for block in checkpoint.blocks(tensor, element_bytes=_format(checkpoint, projection).bits.itemsize):
            if stop.is_set():
                return
            yield block
            progress(len(block))

    with ThreadPoolExecutor(checkpoint.source.readers) as pool:
        try:
            return list(pool.map(run, projections))
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _merge(projections: Sequence[DownProjection], summaries: Sequence[TensorSummary], top: int) -> tuple[Outlier, ...]:
    """Return the `top` outliers of the model from each tensor's own."""
    found = [
        (-abs(float(value)), Coordinate(p.layer, p.expert, *divmod(int(place), p.shape[1])), float(value), p, summary)
        for p, summary in zip(projections, summaries, strict=True)
        for place, value in zip(summary.places, summary.values, strict=True)
    ]
    found.sort(key=lambda entry: (entry[0], entry[1].sort_key))
    return tuple(
        Outlier(
            rank=rank,
            layer=coordinate.layer,
            expert=coordinate.expert,
            row=coordinate.row,
            col=coordinate.col,
            value=value,
            score=abs(value),
            zscore=(abs(value) - summary.mean_abs) / summary.std if summary.std > 0 else 0.0,
            tensor=projection.name,
        )
        for rank, (_, coordinate, value, projection, summary) in enumerate(found[:top], start=1)
    )


def _format(checkpoint: Checkpoint, projection: DownProjection) -> FloatFormat:
    return FORMATS[checkpoint.tensors[projection.name].record.dtype]
