"""The main job: scan and verify a model, and make its catalog entry."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from analyzer.analyze.scanning import DEFAULT_SCAN, scan_projections
from analyzer.analyze.stored import facts_of
from analyzer.analyze.verifying import Verified, verify_with_scan
from analyzer.base.progress import Progress
from analyzer.catalog.documents import Entry
from analyzer.catalog.entries import kept_weights, make_entry
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.scan.records import ScanResult, ScanSettings
from analyzer.source.source import Source
from analyzer.verify.records import VerifyResult
from analyzer.verify.settings import VerifySettings


@dataclass(frozen=True)
class Analysis:
    """A scan, a verification, and the catalog's entry for them; `run` is what the verification was made from."""

    scanned: ScanResult
    verified: VerifyResult
    entry: Entry
    run: Verified


def analyze_model(
    source: Source,
    settings: VerifySettings | None = None,
    *,
    scan: ScanSettings = DEFAULT_SCAN,
    note: str | None = None,
    progress: Progress = lambda *_: None,
) -> Analysis:
    """Scan and verify a model and make its catalog entry, which is not written.

    `source` is what open_model returns; `note` is a sentence kept in the entry. A local folder's commit is the hash of
    its content. Raises AnalyzerError where the model cannot be read or run.

    >>> analysis = analyze_model(open_model("./my-model"), VerifySettings(prompt=PROMPT, text=TEXT))
    >>> analysis.entry["verdict"], analysis.entry["commit"][:7]
    ('found', 'sha256:')
    """
    from analyzer.verify.verification import PARAMETERS  # imports torch

    settings = settings or VerifySettings()
    done = verify_with_scan(source, replace(settings, early_stop=False), scan, progress)
    checkpoint, scanned = done.runnable.checkpoint, done.scanned
    assert scanned is not None  # without early_stop there is always a scan
    if beside := (*done.runnable.before, *done.runnable.others):
        everything = sorted((*done.runnable.projections, *beside), key=lambda each: each.place)
        scanned = scan_projections(checkpoint, everything, scan, progress)
    verified = replace(done.result, commit=source.commit or content_hash(checkpoint))
    stored = facts_of(done.runnable, done.parameters, [weight.coordinate for weight in kept_weights(verified)])
    checkpoint.source.check_unchanged()  # the hash, too, is of what was analyzed
    default = VerifySettings()
    chosen = (settings.prompt, settings.text, settings.tower, scan.score, scan.top)
    method = {
        "settings": "default" if chosen == (default.prompt, default.text, default.tower, "magnitude", 20) else "custom",
        "prompt": settings.prompt,
        "text_sha256": hashlib.sha256(settings.text.encode("utf-8")).hexdigest(),
        "dtype": verified.dtype,
        "device": verified.device,
        "score": scanned.score,
        "top": scan.top,
        "thresholds": {**asdict(settings.thresholds), **PARAMETERS},
    }
    entry = make_entry(scanned, verified, method=method, note=note, stored=stored)
    return Analysis(scanned, verified, entry, done)


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
