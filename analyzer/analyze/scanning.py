"""The static job: open a model's checkpoint and rank the outliers of its down projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analyzer.base.progress import Progress, counted
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import find_projections
from analyzer.projections.projection import DownProjection, down_projection_bytes, in_layers, num_layers_of
from analyzer.scan.kept import ResultCache, cache_folder
from analyzer.scan.records import ScanResult, ScanSettings
from analyzer.scan.scanner import scan
from analyzer.source.source import Source

DEFAULT_SCAN = ScanSettings()


def scan_model(
    source: Source, settings: ScanSettings = DEFAULT_SCAN, *, progress: Progress = lambda *_: None
) -> ScanResult:
    """Rank the outlier weights of a model's down projections, reading nothing else.

    `source` is what open_model returns. Raises AnalyzerError where the model cannot be read or has no down projection.

    >>> result = scan_model(open_model("./my-model"), ScanSettings(top=3))
    >>> [outlier.rank for outlier in result.outliers]
    [1, 2, 3]
    """
    checkpoint = Checkpoint(source)
    found = find_projections(checkpoint, pattern=settings.pattern, layers=settings.layers)
    projections = found.projections
    num_layers = num_layers_of(projections)
    if settings.layers is not None:
        projections = in_layers(source.model, projections, settings.layers)
    result = scan_projections(checkpoint, projections, settings, progress, num_layers=num_layers)
    source.check_unchanged()
    return replace(result, unread=found.unread, notes=(*checkpoint.notes, *found.notes))


def scan_projections(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    settings: ScanSettings,
    progress: Progress,
    *,
    num_layers: int | None = None,
) -> ScanResult:
    """Scan these down projections, with the user's cache. Raises AnalyzerError where they cannot be read."""
    advance = counted(progress, "scan", down_projection_bytes(projections))
    cache = ResultCache(cache_folder()) if settings.use_cache else None
    return scan(
        checkpoint,
        projections,
        score=settings.score,
        top=settings.top,
        num_layers=num_layers,
        cache=cache,
        progress=advance,
    )
