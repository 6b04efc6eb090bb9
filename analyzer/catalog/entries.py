"""An analysis -> the catalog's entry for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyzer import __version__
from analyzer.base.records import Coordinate, plain
from analyzer.catalog.documents import Entry as Entry
from analyzer.scan.records import Outlier, ScanResult
from analyzer.verify.records import SuperWeight, VerifyResult

SIGNIFICANT_DIGITS = 5  # of measured numbers; a weight's value is kept exactly


def kept_weights(result: VerifyResult) -> list[SuperWeight]:
    """Return the weights that an entry has, in its order: the rejected only where they are critical."""
    kept = [w for w in result.super_weights if w.status != "rejected" or w.is_super]
    return sorted(kept, key=lambda w: w.coordinate.sort_key)


def make_entry(
    scan: ScanResult,
    result: VerifyResult,
    *,
    method: Mapping[str, Any],
    note: str | None,
    stored: Mapping[Coordinate, Mapping[str, Any]] | None = None,
) -> Entry:
    """Return the catalog's entry for one analysis, whose commit is a content hash for a local folder.

    `stored` has what is told of a weight beside the verification, as analyze/stored.py gives it.
    """
    stored = stored or {}
    return {
        "model": result.model,
        "commit": result.commit,
        "note": note,
        "model_type": scan.model_type,
        "num_layers": scan.num_layers,
        "hidden_size": scan.hidden_size,
        "intermediate_size": scan.intermediate_size,
        **({} if result.streams is None else {"streams": result.streams}),
        "method": {"tool": "superweight-analyzer", "version": __version__, **method},
        "verdict": result.verdict,
        "unread": plain(scan.unread),
        "super_activations": _rounded(plain(result.super_activations)),
        "late_activations": _rounded(plain(result.late_activations)),
        "super_weights": [
            {**_rounded({**plain(w), **stored.get(w.coordinate, {})}), "value": w.value} for w in kept_weights(result)
        ],
        "columns": _rounded(plain(result.columns)),
        "joint": _rounded(plain(result.joint)),
        **{name: _rounded(plain(found)) for name in ("units", "interactions") if (found := getattr(result, name))},
        "headroom": _rounded(plain(result.headroom)),
        "massive_channels": _rounded(plain(result.massive_channels)),
        "sinks": plain(result.sinks),
        "prefix": plain(result.prefix),
        **({"routing": _rounded(plain(result.routing))} if result.routing else {}),
        "outliers": [{**_rounded(_outlier_fields(o)), "value": o.value} for o in scan.outliers],
    }


def _outlier_fields(outlier: Outlier) -> dict[str, Any]:
    fields = plain(outlier)
    return {key: value for key, value in fields.items() if key not in ("score", "tensor")}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_rounded(member) for member in value]
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
