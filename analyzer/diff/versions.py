"""The jobs behind `diff`: two versions side by side, or a model through its revisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path

from analyzer.base.errors import ResultError, shown
from analyzer.base.progress import Progress, counted
from analyzer.base.records import Coordinate, Place, Unread
from analyzer.catalog.documents import Document
from analyzer.catalog.files import known_documents
from analyzer.catalog.lookup import known_of
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.diff.comparison import compare
from analyzer.diff.history import follow, followed
from analyzer.diff.layers import layers_of_pairs
from analyzer.diff.pairs import scan_pair
from analyzer.diff.records import DiffResult, History
from analyzer.diff.sides import Side, known_weights, parse_side, side_of_scan
from analyzer.diff.together import NEW, OLD
from analyzer.projections.down_projections import find_projections
from analyzer.projections.projection import DownProjection, down_projection_bytes
from analyzer.projections.weights import read_weights
from analyzer.scan.kept import ResultCache, cache_folder
from analyzer.scan.records import ScanResult, ScanSettings
from analyzer.scan.scanner import kept_weights, scan
from analyzer.source.opening import existing_file, open_model
from analyzer.source.single_file import GGUF_SUFFIX
from analyzer.source.source import Source

Documents = Mapping[str, Document]
DEFAULT_SCAN = ScanSettings()
MAX_RESULT_BYTES = 100_000_000


@dataclass(frozen=True)
class Model:
    """A model that is there to be read, and how it is ranked."""

    checkpoint: Checkpoint
    projections: Sequence[DownProjection]
    score: str
    top: int
    cache: ResultCache | None
    unread: tuple[Unread, ...] = ()

    @property
    def places(self) -> frozenset[Place]:
        """Where its down projections are."""
        return frozenset(projection.place for projection in self.projections)

    def scan(self, progress: Progress) -> ScanResult:
        """Scan it. Raises AnalyzerError where it cannot be read."""
        advance = counted(progress, "scan", down_projection_bytes(self.projections))
        scanned = scan(
            self.checkpoint, self.projections, score=self.score, top=self.top, cache=self.cache, progress=advance
        )
        return replace(scanned, unread=self.unread)

    def weights(self, coordinates: Sequence[Coordinate]) -> dict[Coordinate, float]:
        """Return these weights, as far as the model has them. Raises SourceError where bytes cannot be read."""
        shapes = {projection.place: projection.shape for projection in self.projections}
        here = [
            coordinate
            for coordinate in coordinates
            if (shape := shapes.get(coordinate.place)) and coordinate.row < shape[0] and coordinate.col < shape[1]
        ]
        kept: dict[Coordinate, float] = {}
        if self.cache:
            kept = kept_weights(self.checkpoint, self.projections, here, cache=self.cache, top=self.top)
        return kept | read_weights(self.checkpoint, self.projections, [each for each in here if each not in kept])


def compare_models(
    old: str | PathLike[str],
    new: str | PathLike[str],
    settings: ScanSettings = DEFAULT_SCAN,
    *,
    token: str | None = None,
    catalog: str | PathLike[str] | None = None,
    progress: Progress = lambda *_: None,
) -> DiffResult:
    """Compare two models, revisions or saved results; what the catalog knows of them are the super weights looked up.

    Each is given by its name, or by the path of a folder or of what a command printed with --json. `catalog` is a
    folder, by default `catalog` in the current one together with the record that comes with the tool. Raises
    AnalyzerError where one is none of these, or the two have nothing in common.

    >>> compare_models("./my-model", "./my-model").identical
    True
    """
    documents = known_documents(None if catalog is None else Path(catalog))
    opened = [_open(fspath(name), token, settings) for name in (old, new)]
    first, second = opened
    if isinstance(first, Model) and isinstance(second, Model):
        result = _diff_models((first, second), documents, progress)
    else:
        ranked = all(isinstance(each, Model) or each.outliers is not None for each in opened)
        sides = [each if isinstance(each, Side) else _side_of(each, progress, ranked) for each in opened]
        result = compare(*(_with_known(side, documents) for side in sides))
    models = [each for each in opened if isinstance(each, Model)]
    for each in models:
        each.checkpoint.source.check_unchanged()
    return replace(result, bytes_read=sum(each.checkpoint.bytes_read for each in models))


def compare_revisions(
    model: str,
    revisions: Sequence[str],
    settings: ScanSettings = DEFAULT_SCAN,
    *,
    token: str | None = None,
    catalog: Path | None = None,
    progress: Progress = lambda *_: None,
) -> History:
    """Scan several revisions of a Hub model, and follow their outliers and what the catalog knows of the model.

    Raises AnalyzerError where the model or one of its revisions cannot be read.
    """
    if "@" in model:
        raise ResultError(f"{shown(model)} names one revision, and --revisions others: leave the @ and its name out")
    if _is_folder(model):
        raise ResultError(f"{shown(model)} is a local folder, which has no revisions: give a model on the Hub")
    documents = known_documents(catalog)
    models: list[Model] = []
    scans: list[ScanResult] = []
    sources = [open_model(model, revision=revision, token=token) for revision in revisions]  # a wrong name fails now
    for source in sources:
        models.append(_model_of(source, settings))
        scans.append(models[-1].scan(progress))
    places = {projection.place for each in models for projection in each.projections}
    known = known_weights(known_of(documents, scans[0].model), places)
    coordinates = followed(scans, list(known), settings.top)
    weights = [each.weights(coordinates) for each in models]
    for source in sources:
        source.check_unchanged()
    return follow(scans, revisions, known, weights, settings.top)


def _diff_models(models: tuple[Model, Model], documents: Documents, progress: Progress) -> DiffResult:
    top = models[NEW].top
    compared = scan_pair(
        (models[OLD].checkpoint, models[NEW].checkpoint),
        (models[OLD].projections, models[NEW].projections),
        score=models[NEW].score,
        top=top,
        cache=models[NEW].cache,
        progress=progress,
    )
    names = [side_of_scan(scanned).name for scanned in compared.scans]
    if not compared.pairs:
        there = compared.unpaired[0]
        shapes = [" x ".join(map(str, each.shape)) if each else "missing" for each in there]
        layer = next(each.layer for each in there if each)
        raise ResultError(
            f"{names[OLD]} and {names[NEW]} cannot be compared: no down projection has the same place and shape in "
            f"both (the first, in layer {layer}, is {shapes[OLD]} and {shapes[NEW]})"
        )
    sides = [
        _with_known(replace(side_of_scan(scanned, model.weights), scanned=model.places, unread=model.unread), documents)
        for scanned, model in zip(compared.scans, models, strict=True)
    ]
    notes = []
    if compared.unpaired:
        notes.append(f"Not ranked, since only one has that place or shape: {len(compared.unpaired)} down projections.")
    return compare(*sides, layers=layers_of_pairs(compared, top), notes=notes, bytes_shared=compared.shared_bytes)


def _with_known(side: Side, documents: Documents) -> Side:
    if side.model is None:
        return side
    return replace(side, known=known_weights(known_of(documents, side.model), side.scanned or ()))


def _model_of(source: Source, settings: ScanSettings) -> Model:
    checkpoint = Checkpoint(source)
    cache = ResultCache(cache_folder()) if settings.use_cache else None
    found = find_projections(checkpoint)
    return Model(checkpoint, found.projections, settings.score, settings.top, cache, found.unread)


def _open(name: str, token: str | None, settings: ScanSettings) -> Model | Side:
    """Return a result saved with --json, or the model of that name. Raises AnalyzerError where it is neither."""
    path = existing_file(name)
    if path is None or name.endswith(GGUF_SUFFIX):
        if name.endswith(".json"):
            raise ResultError(f"there is no saved result {shown(name)}")
        return _model_of(open_model(name, token=token), settings)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_RESULT_BYTES + 1)
        if len(text) > MAX_RESULT_BYTES:
            raise ResultError(f"{shown(name)} has more than {MAX_RESULT_BYTES} bytes, too many to be a saved result")
        return parse_side(text.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise ResultError(f"{shown(name)} is no saved result: give that, or the folder of a model") from error
    except OSError as error:
        raise ResultError(f"cannot read {shown(name)}: {shown(error)}") from error


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False


def _side_of(model: Model, progress: Progress, ranked: bool) -> Side:
    """Return a model as one side; without a ranking where the other side has none that it could be compared with."""
    scanned = (model if ranked else replace(model, projections=[])).scan(progress)
    side = replace(side_of_scan(scanned, model.weights), scanned=model.places)
    return side if ranked else replace(side, outliers=None)
