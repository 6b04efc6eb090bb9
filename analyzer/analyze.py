"""The jobs behind the commands: open a model, scan it, verify it, and put the result into the catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from analyzer.architectures import DownProjection
from analyzer.catalog import family_of, make_entry, save_entry
from analyzer.checkpoint import Checkpoint
from analyzer.diff import Side, parse_side, side_of_scan
from analyzer.errors import ResultError, SourceError, shown
from analyzer.records import Coordinate, ScanResult, VerifyResult
from analyzer.scan import down_projection_bytes, down_projections, scan, static_ranks
from analyzer.source import FolderSource, Source, open_source
from analyzer.verify import DEFAULT_THRESHOLDS, Progress, verify

MAX_RESULT_BYTES = 100_000_000


def evaluation_text() -> str:
    """Return the bundled text, some 1,900 tokens of prose written for this project."""
    return resources.files("analyzer").joinpath("data", "evaluation.txt").read_text("utf-8")


def read_text(path: Path) -> str:
    """Return a text file's content. Raises SourceError where it is not UTF-8 text."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {shown(path)} as UTF-8 text: {shown(error)}") from error


def run_scan(
    source: Source, *, layers: Sequence[range] | None, top: int, progress: Progress = lambda *_: None
) -> ScanResult:
    """Scan a model's down projections. Raises AnalyzerError where it cannot be read or has none."""
    checkpoint = Checkpoint(source)
    return _scan(checkpoint, down_projections(checkpoint, layers), top, progress)


def run_verify(
    source: Source,
    *,
    prompt: str,
    text: str,
    top: int,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda *_: None,
) -> tuple[Checkpoint, ScanResult, VerifyResult]:
    """Scan and verify a model, downloading it first where it is on the Hub.

    Raises AnalyzerError where it cannot be read or run.
    """
    checkpoint = Checkpoint(source)
    down_projections(checkpoint)  # fails, where it must, before gigabytes are downloaded
    if not isinstance(source, FolderSource):
        progress("download", 0, 1)
        folder = source.folder(checkpoint.shards)
        checkpoint = Checkpoint(
            FolderSource(folder, model_id=source.model, revision=source.revision, commit=source.commit)
        )
        progress("download", 1, 1)
    projections = down_projections(checkpoint)
    scanned = _scan(checkpoint, projections, top, progress)

    from analyzer.forward import HookedModel  # imports torch, which a scan never needs

    progress("loading the model", 0, 1)
    model = HookedModel(checkpoint.source.folder(checkpoint.shards), name=source.model, device=device, dtype=dtype)
    progress("loading the model", 1, 1)

    def rank(coordinates: Sequence[Coordinate]) -> dict[Coordinate, int]:
        return static_ranks(checkpoint, projections, coordinates)

    verified = verify(
        model,
        prompt=prompt,
        text=text,
        outliers=scanned.outliers,
        rank=rank,
        revision=source.revision,
        commit=source.commit,
        model_type=checkpoint.model_type,
        progress=progress,
    )
    return checkpoint, scanned, verified


def run_analyze(
    source: Source,
    *,
    prompt: str,
    text: str,
    top: int,
    catalog: Path,
    family: str | None = None,
    note: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda *_: None,
) -> tuple[ScanResult, VerifyResult, Path]:
    """Scan and verify a model and write its catalog entry; returns the catalog's file too.

    Raises AnalyzerError where it cannot be read or run, or the entry cannot be written.
    """
    checkpoint, scanned, verified = run_verify(
        source, prompt=prompt, text=text, top=top, device=device, dtype=dtype, progress=progress
    )
    entry = make_entry(
        scanned,
        verified,
        commit=source.commit or content_hash(checkpoint, down_projections(checkpoint)),
        method={
            "prompt": prompt,
            "text_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
            "dtype": verified.dtype,
            "device": verified.device,
            "score": scanned.score,
            "thresholds": asdict(DEFAULT_THRESHOLDS),
        },
        note=note,
    )
    return scanned, verified, save_entry(catalog, family or family_of(source.model), entry)


def content_hash(checkpoint: Checkpoint, projections: Sequence[DownProjection]) -> str:
    """Return the SHA-256 of the down projections: of each one's name, dtype, shape and bytes, in order."""
    digest = hashlib.sha256()
    for projection in projections:
        record = checkpoint.tensors[projection.name].record
        digest.update(f"{record.name}\n{record.dtype}\n{list(record.shape)}\n".encode())
        for block in checkpoint.blocks(checkpoint.tensors[projection.name], element_bytes=1):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def open_side(name: str, *, token: str | None = None, top: int = 20, progress: Progress = lambda *_: None) -> Side:
    """Return one side of a comparison: a result saved with --json, or a model that is scanned now.

    Raises AnalyzerError where it is neither.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        return side_of_scan(run_scan(open_source(name, token=token), layers=None, top=top, progress=progress))
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            raise ResultError(f"{shown(name)} has more than {MAX_RESULT_BYTES} bytes, too many to be a saved result")
        return parse_side(path.read_text("utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"cannot read {shown(name)}: {shown(error)}") from error


def _scan(checkpoint: Checkpoint, projections: Sequence[DownProjection], top: int, progress: Progress) -> ScanResult:
    done, total = 0, down_projection_bytes(checkpoint, projections)

    def advance(count: int) -> None:
        nonlocal done
        done += count  # from several threads; a lost update would only misdraw the bar
        progress("scan", done, total)

    return scan(checkpoint, projections, top=top, progress=advance)
