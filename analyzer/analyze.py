"""The jobs behind the commands: open a model, scan it, verify it, and put the result into the catalog."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

from analyzer.architectures import DownProjection, check_can_be_run
from analyzer.cache import ResultCache, cache_folder
from analyzer.catalog import Entry, make_entry
from analyzer.checkpoint import Checkpoint
from analyzer.errors import ArchitectureError, SourceError, shown
from analyzer.progress import Progress, counted
from analyzer.records import Coordinate, Outlier, ScanResult, VerifyResult
from analyzer.scan import (
    down_projection_bytes,
    down_projections,
    in_layers,
    nearest_weights,
    scan,
    static_ranks,
)
from analyzer.source import FolderSource, Source
from analyzer.verify import DEFAULT_THRESHOLDS, PARAMETERS, verify

MAX_TEXT_BYTES = 10_000_000
MAX_PROMPTS = 1000


def evaluation_text() -> str:
    """Return the bundled text, some 1,900 tokens of prose written for this project."""
    return resources.files("analyzer").joinpath("data", "evaluation.txt").read_text("utf-8")


def read_text(path: Path) -> str:
    """Return a text file's content. Raises SourceError where it is not UTF-8 text of bearable length."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
            raise SourceError(f"{shown(path)} is not a text file of at most {MAX_TEXT_BYTES:,} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {shown(path)} as UTF-8 text: {shown(error)}") from error


def read_prompts(path: Path | None) -> list[str]:
    """Return the prompts of a file, one a line, or the bundled ones. Raises SourceError where it holds none."""
    if path is None:
        text = resources.files("analyzer").joinpath("data", "prompts.txt").read_text("utf-8")
    else:
        text = read_text(path)
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts or len(prompts) > MAX_PROMPTS:
        raise SourceError(f"{shown(path)} has {len(prompts)} prompts: give 1 to {MAX_PROMPTS}, one a line")
    return prompts


def run_scan(
    source: Source,
    *,
    layers: Sequence[range] | None = None,
    pattern: str | None = None,
    score: str = "magnitude",
    top: int = 20,
    use_cache: bool = True,
    progress: Progress = lambda *_: None,
) -> ScanResult:
    """Scan a model's down projections. Raises AnalyzerError where it cannot be read or has none.

    `pattern` names the tensors taken for down projections, in the shell's way; `use_cache` keeps the result of each
    tensor of the Hub, and uses what is kept.
    """
    checkpoint = Checkpoint(source)
    projections = down_projections(checkpoint, pattern=pattern)
    num_layers = 1 + max(projection.layer for projection in projections)
    if layers is not None:
        projections = in_layers(source.model, projections, layers)
    return _scan(checkpoint, projections, score, top, progress, use_cache=use_cache, num_layers=num_layers)


def run_verify(
    source: Source,
    *,
    prompt: str,
    text: str,
    prompts: Sequence[str] = (),
    score: str = "magnitude",
    top: int = 20,
    early_stop: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda *_: None,
) -> tuple[Checkpoint, ScanResult | None, VerifyResult]:
    """Scan and verify a model; the scan is null with `early_stop`.

    A model on the Hub is downloaded first, since its weights are needed many times over; with `early_stop` they are
    read by ranges, as far as they are needed. Raises AnalyzerError where it cannot be read or run.
    """
    checkpoint = Checkpoint(source)
    # These fail, where they must, before gigabytes are read or a lying config is built.
    check_can_be_run(source.model, down_projections(checkpoint), checkpoint.config)
    folder = source.folder(() if early_stop else checkpoint.shards)
    if not early_stop:
        local = FolderSource(folder, model_id=source.model, revision=source.revision, commit=source.commit)
        checkpoint = Checkpoint(local)
    projections = down_projections(checkpoint)
    scanned: ScanResult | None = None
    candidates: list[Outlier] = []
    if not early_stop:
        scanned = _scan(checkpoint, projections, score, top, progress)
        candidates += scanned.outliers
        other = "gain" if score == "magnitude" else "magnitude"
        with suppress(ArchitectureError):  # whose gain cannot be told
            candidates += _scan(checkpoint, projections, other, top, progress).outliers

    from analyzer.forward import HookedModel  # imports torch, which a scan never needs

    progress("building the model", 0, 1)
    model = HookedModel(
        checkpoint,
        projections,
        folder,
        device=device,
        dtype=dtype,
        keep_bytes=1 << 62 if early_stop else None,  # the few blocks that run are needed twice
    )
    progress("building the model", 1, 1)
    by_place = {projection.sort_key: projection for projection in projections}

    def rank(coordinates: Sequence[Coordinate]) -> dict[Coordinate, int]:
        return static_ranks(checkpoint, projections, coordinates)

    def nearest(coordinate: Coordinate, count: int) -> list[Coordinate]:
        return nearest_weights(checkpoint, by_place[coordinate.sort_key[:3]], coordinate, count)

    verified = verify(
        model,
        prompt=prompt,
        text=text,
        outliers=candidates,
        rank=rank,
        nearest=nearest,
        prompts=prompts,
        revision=source.revision,
        commit=source.commit,
        model_type=checkpoint.model_type,
        early_stop=early_stop,
        progress=progress,
    )
    return checkpoint, scanned, verified


def run_analyze(
    source: Source,
    *,
    prompt: str,
    text: str,
    prompts: Sequence[str] = (),
    score: str = "magnitude",
    top: int,
    note: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda *_: None,
) -> tuple[ScanResult, VerifyResult, Entry]:
    """Scan and verify a model and make its catalog entry. Raises AnalyzerError where it cannot be read or run."""
    checkpoint, scanned, verified = run_verify(
        source,
        prompt=prompt,
        text=text,
        prompts=prompts,
        score=score,
        top=top,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    assert scanned is not None  # without early_stop there is always a scan
    verified = replace(verified, commit=source.commit or content_hash(checkpoint))
    method = {
        "prompt": prompt,
        "text_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "dtype": verified.dtype,
        "device": verified.device,
        "score": scanned.score,
        "top": top,
        "thresholds": {**asdict(DEFAULT_THRESHOLDS), **PARAMETERS},
    }
    return scanned, verified, make_entry(scanned, verified, method=method, note=note)


def content_hash(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 of what a local folder's result depends on: its config, and every tensor by name.

    It is the same however the tensors are spread over shards, and whatever version of transformers saved them.
    """
    config = {k: v for k, v in checkpoint.config.items() if not k.startswith("_") and k != "transformers_version"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(json.dumps([name, tensor.record.dtype, tensor.record.shape]).encode())
        for block in checkpoint.blocks(tensor, element_bytes=1):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _scan(
    checkpoint: Checkpoint,
    projections: Sequence[DownProjection],
    score: str,
    top: int,
    progress: Progress,
    *,
    use_cache: bool = True,
    num_layers: int | None = None,
) -> ScanResult:
    """Scan these down projections, with the user's cache. Raises AnalyzerError where they cannot be read."""
    advance = counted(progress, "scan", down_projection_bytes(projections))
    cache = ResultCache(cache_folder()) if use_cache else None
    return scan(checkpoint, projections, score=score, top=top, num_layers=num_layers, cache=cache, progress=advance)
