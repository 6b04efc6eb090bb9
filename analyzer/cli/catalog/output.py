"""What the commands of the catalog print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[tuple[str, Mapping[str, Any]]]


def records_json(entries: Records, reported: Records) -> dict[str, Any]:
    """Return entries and what others report, each with its family, as one JSON object."""
    return {
        "entries": [{"family": family, **entry} for family, entry in entries],
        "reported": [{"family": family, **item} for family, item in reported],
    }
