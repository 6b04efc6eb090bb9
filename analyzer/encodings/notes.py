"""What a reader of results should know about how matrices are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analyzer.base.config import ternary_when_run
from analyzer.encodings.floats import FORMATS
from analyzer.encodings.fp8 import Unscaled8
from analyzer.encodings.matrices import Matrix


def notes(matrices: Iterable[Matrix], config: Mapping[str, Any]) -> list[str]:
    """Return in what the stored values of these matrices may not be the model's: a line each, none where all are."""
    encodings = [matrix.encoding for matrix in matrices]
    found = []
    if any(isinstance(encoding, Unscaled8) for encoding in encodings):
        found.append("no scale belongs to any of the 8-bit floats: they are taken as they are")
    if ternary_when_run(config) and any(encoding.name in FORMATS for encoding in encodings):
        found.append("config.json says bitnet: these weights are made ternary whenever the model runs")
    return found
