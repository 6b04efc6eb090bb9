"""Finds, verifies and catalogs the super weights of large language models.

What is listed in `__all__` is the library; everything else is private and may change. Nothing heavy is imported before
it is used.

>>> from analyzer import open_model, scan_model
>>> scan_model(open_model("./my-model")).outliers[0].coordinate
Coordinate(layer=1, expert=None, row=77, col=31, tower=None)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyzer.analyze.analyzing import analyze_model
    from analyzer.analyze.running import load_model
    from analyzer.analyze.scanning import scan_model
    from analyzer.analyze.verifying import verify_model
    from analyzer.base.errors import AnalyzerError
    from analyzer.base.records import Coordinate
    from analyzer.catalog.lookup import coordinates_of, read_catalog
    from analyzer.diff.records import DiffResult
    from analyzer.diff.versions import compare_models
    from analyzer.scan.records import ScanResult, ScanSettings
    from analyzer.source.opening import open_model
    from analyzer.verify.records import VerifyResult
    from analyzer.verify.settings import VerifySettings

__version__ = "0.1.0"

__all__ = [
    "AnalyzerError",
    "Coordinate",
    "DiffResult",
    "ScanResult",
    "ScanSettings",
    "VerifyResult",
    "VerifySettings",
    "analyze_model",
    "compare_models",
    "coordinates_of",
    "load_model",
    "open_model",
    "read_catalog",
    "scan_model",
    "verify_model",
]

_HOME = {
    "AnalyzerError": "base.errors",
    "Coordinate": "base.records",
    "DiffResult": "diff.records",
    "ScanResult": "scan.records",
    "ScanSettings": "scan.records",
    "VerifyResult": "verify.records",
    "VerifySettings": "verify.settings",
    "analyze_model": "analyze.analyzing",
    "compare_models": "diff.versions",
    "coordinates_of": "catalog.lookup",
    "load_model": "analyze.running",
    "open_model": "source.opening",
    "read_catalog": "catalog.lookup",
    "scan_model": "analyze.scanning",
    "verify_model": "analyze.verifying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
