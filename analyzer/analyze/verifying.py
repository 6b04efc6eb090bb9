"""The dynamic job: scan a model, run it, and say which weights are super weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from analyzer.analyze.running import Runnable, open_runnable
from analyzer.analyze.scanning import DEFAULT_SCAN, scan_projections
from analyzer.base.errors import ArchitectureError
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate, Place, Unit
from analyzer.projections.projection import MAIN_TOWERS
from analyzer.projections.weights import read_weights
from analyzer.scan.ranks import nearest_units, nearest_weights, static_ranks
from analyzer.scan.records import Outlier, ScanResult, ScanSettings
from analyzer.source.source import Source
from analyzer.verify.preparation import Statics, prepare
from analyzer.verify.records import VerifyResult
from analyzer.verify.settings import VerifySettings


@dataclass(frozen=True)
class Verified:
    """A verification with what it was made from.

    `scanned`, of the tower that ran, is null with early_stop and where weights were asked for; `outliers_by` has the
    outliers of that tower by each score that can be told. `parameters` has the stock model's parameter that holds each
    down projection.
    """

    runnable: Runnable
    scanned: ScanResult | None
    result: VerifyResult
    outliers_by: Mapping[str, tuple[Outlier, ...]]
    parameters: Mapping[Place, str]


def verify_model(
    source: Source,
    settings: VerifySettings | None = None,
    *,
    scan: ScanSettings = DEFAULT_SCAN,
    progress: Progress = lambda *_: None,
) -> VerifyResult:
    """Run a model and return which weights are super weights, and what zeroing them does.

    `source` is what open_model returns; `scan` says which static candidates are screened too. A model on the Hub is
    downloaded first, since its weights are needed many times over; with `early_stop` they are read by ranges, as far
    as they are needed. Raises AnalyzerError where the model cannot be read or run.

    >>> result = verify_model(open_model("./my-model"), VerifySettings(prompt=PROMPT, text=TEXT))
    >>> result.verdict
    'found'
    """
    return verify_with_scan(source, settings or VerifySettings(), scan, progress).result


def verify_with_scan(source: Source, settings: VerifySettings, scan: ScanSettings, progress: Progress) -> Verified:
    """Do what verify_model does, and return the scan too."""
    early_stop = settings.early_stop
    runnable = open_runnable(source, tower=settings.tower, download=not early_stop)
    checkpoint, projections = runnable.checkpoint, runnable.projections
    asked, units = values_in(runnable, settings.weights), units_in(runnable, settings.units)
    scanned: ScanResult | None = None
    outliers_by: dict[str, tuple[Outlier, ...]] = {}
    if not early_stop and not settings.is_asked:
        scanned = scan_projections(checkpoint, projections, scan, progress)
        outliers_by[scan.score] = scanned.outliers
        other = replace(scan, score="gain" if scan.score == "magnitude" else "magnitude")
        with suppress(ArchitectureError):  # whose gain cannot be told
            outliers_by[other.score] = scan_projections(checkpoint, projections, other, progress).outliers

    from analyzer.verify.verification import verify  # imports torch

    progress("building the model", 0, 1)
    keep_bytes = 1 << 62 if early_stop else None  # the few blocks that run are needed twice
    runner, tokens = runnable.build(device=settings.device, dtype=settings.dtype, keep_bytes=keep_bytes)
    progress("building the model", 1, 1)
    by_place = {projection.place: projection for projection in projections}

    def rank(coordinates: Sequence[Coordinate]) -> dict[Coordinate, int]:
        return static_ranks(checkpoint, projections, coordinates)

    def nearest(coordinate: Coordinate, count: int) -> list[Coordinate]:
        return nearest_weights(checkpoint, by_place[coordinate.place], coordinate, count)

    def shape(coordinate: Coordinate) -> tuple[int, int]:
        return by_place[coordinate.place].shape

    def near(unit: Unit, count: int) -> list[Unit]:
        return nearest_units(checkpoint, by_place[unit.place], unit, count)

    def experts(unit: Unit) -> list[Unit]:
        return [Unit(place) for place in sorted(by_place) if place[:3] == unit.place[:3] and place[3] >= 0]

    candidates = [outlier for outliers in outliers_by.values() for outlier in outliers]
    prepared = prepare(settings, tokens, source.model)
    statics = Statics(source.model, candidates, rank, nearest, shape, near, experts, asked, units)
    result = verify(runner, prepared, statics, settings, progress)
    checkpoint.source.check_unchanged()
    parameters = {place: runner.blocks.targets[projection.name] for place, projection in by_place.items()}
    return Verified(runnable, scanned, result, outliers_by, parameters)


def values_in(runnable: Runnable, weights: Sequence[Coordinate]) -> dict[Coordinate, float]:
    """Return the values of weights that were asked for, which are of the tower that runs where they name none.

    Raises ArchitectureError where the model has no such weight, or it cannot be followed.
    """
    return read_weights(runnable.checkpoint, runnable.projections, [_followed(runnable, c) for c in weights])


def units_in(runnable: Runnable, units: Sequence[Unit]) -> list[Unit]:
    """Return rows, columns and experts that were asked for, of the tower that runs. Raises like values_in."""
    found = [unit._replace(place=_followed(runnable, unit.first).place) for unit in units]
    read_weights(runnable.checkpoint, runnable.projections, [unit.first for unit in found])
    return list(dict.fromkeys(found))


def _followed(runnable: Runnable, wanted: Coordinate) -> Coordinate:
    """Return a weight of the tower that runs where it names none. Raises ArchitectureError where its tower does not."""
    tower = runnable.projections[0].tower
    if wanted.tower is None or (tower is None and wanted.tower in MAIN_TOWERS):
        wanted = wanted._replace(tower=tower)
    beside = {p.place: "its tower does not run" for p in runnable.others}
    beside |= {p.place: "its tower is another than the one judged (--tower)" for p in runnable.before}
    if wanted.place in beside:
        raise ArchitectureError(
            f"{runnable.checkpoint.source.model}: {wanted} cannot be verified: {beside[wanted.place]}"
        )
    return wanted
