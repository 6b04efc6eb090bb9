"""What a reader of results should know about how matrices are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from analyzer.base.config import ternary_when_run
from analyzer.encodings.fp8 import Unscaled8
from analyzer.numbers.floats import FORMATS
from analyzer.numbers.matrices import Matrix


def notes(matrices: Iterable[Matrix], config: Mapping[str, Any]) -> list[str]:
    """Return what one should know of these matrices' values, a line each.

    Where they are not what the model multiplies with, or are not all as precise.
    """
    encodings = [matrix.encoding for matrix in matrices]
    found = []
    if any(isinstance(encoding, Unscaled8) for encoding in encodings):
        found.append("no scale belongs to any of the 8-bit floats: they are taken as they are")
    if ternary_when_run(config) and any(encoding.name in FORMATS for encoding in encodings):
        found.append("config.json says bitnet: these weights are made ternary whenever the model runs")
    kinds = Counter(encoding.name for encoding in encodings)
    if len(kinds) > 1 and not set(kinds) <= set(FORMATS):
        found.append(
            "of mixed precision: " + ", ".join(f"{count:,} in {name}" for name, count in sorted(kinds.items()))
        )
    return found
