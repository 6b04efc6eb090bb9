"""A scan as text."""

from __future__ import annotations

from analyzer.base.errors import shown
from analyzer.base.text import (
    byte_size,
    coordinate_cells,
    count_of,
    fill,
    model_title,
    place_name,
    table,
)
from analyzer.scan.records import ScanResult


def render_scan(result: ScanResult) -> str:
    """Return a scan as text."""
    sections = [_what_was_read(result)]
    if result.outliers:
        best = result.outliers[0]
        gain = result.score == "gain"
        sections.append(
            fill(
                f"Largest {'gain' if gain else 'weight'}: {place_name(best)} = {best.value:+.5g}, "
                + (f"{best.score:.3g} times the norm of its layer's median row and " if gain else "")
                + f"{best.zscore:.0f} standard deviations above its tensor's mean magnitude."
            )
        )
        header, places = coordinate_cells([outlier.coordinate for outlier in result.outliers])
        sections.append(
            table(
                ["rank", *header, "value", *(["gain"] if gain else []), "z-score"],
                [
                    [o.rank, *place, f"{o.value:+.5g}", *([f"{o.score:.3g}"] if gain else []), f"{o.zscore:.1f}"]
                    for o, place in zip(result.outliers, places, strict=True)
                ],
            )
        )
    else:
        sections.append("No outliers: no down projection has a finite weight.")
    nonfinite = [tensor for tensor in result.tensors if tensor.nonfinite]
    if nonfinite:
        count = sum(tensor.nonfinite for tensor in nonfinite)
        sections.append(
            fill(
                f"Warning: {count:,} weights in {count_of(len(nonfinite), 'tensor')} are NaN or infinite "
                f"(the first in {shown(nonfinite[0].name, 60)}); they are not ranked."
            )
        )
    sections.append(
        fill(
            f"Scanned in {result.seconds:.1f} s. Large weights are candidates: `superweight verify` tells which of "
            "them are super weights."
        )
    )
    return "\n\n".join(sections)


def _what_was_read(result: ScanResult) -> str:
    """Return the line that says where the scan stands: of which model what was read, and what was left out."""
    layers = {(tensor.tower, tensor.layer) for tensor in result.tensors}
    parts = [f"{count_of(len(result.tensors), 'down projection')} of {count_of(len(layers), 'layer')}"]
    if result.experts:
        parts.append(count_of(result.experts, "expert"))
    if result.towers:
        towers = sorted({tensor.tower or "main" for tensor in result.tensors})
        parts.append(f"{count_of(len(towers), 'tower')} ({', '.join(shown(each, 30) for each in towers)})")
    parts.append(" and ".join(result.encodings))
    parts.append(f"{byte_size(result.bytes_read)} read (all weights: {byte_size(result.checkpoint_bytes)})")
    left = sum(each.count for each in result.unread)
    title = model_title(result.model, result.revision, result.commit)
    return f"{title}: {', '.join(parts)}; {f'{left:,} not read' if left else 'nothing left out'}"
