"""Other weights to zero, as controls: which of all matrices of the blocks, and their zeroing as they are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate

if TYPE_CHECKING:
    from analyzer.analyze.running import Runnable
    from analyzer.model.weights import ChangeTensor
    from analyzer.projections.projection import DownProjection

Places = Mapping[str, NDArray[np.int64]]
"""Weights by the tensor that stores them: their places in it, counted along its rows."""
KINDS = {
    "global": "largest of all matrices",
    "per-tensor": "largest part of each matrix",
    "same-tensor": "largest of the weights' own matrices",
    "random": "drawn from all matrices",
}


@dataclass(frozen=True)
class Others:
    """So many other weights: a number of them, or of each tensor a part."""

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Others:
        """Return what `global:7000`, `per-tensor:1e-6`, `same-tensor:7000` or `random:7000` stand for.

        Raises ValueError for any other text.
        """
        kind, _, amount = text.partition(":")
        if kind in KINDS:
            value = float(amount) if kind == "per-tensor" else int(amount)
            if 0 < value < (1 if kind == "per-tensor" else math.inf):
                return cls(kind, value)
        raise ValueError(f"{text!r} is none of global:N, per-tensor:F, same-tensor:N, random:N")

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}" if self.kind == "per-tensor" else f"{self.kind}:{int(self.amount)}"


def choose(runnable: Runnable, weights: Sequence[Coordinate], others: Others, *, seed: int) -> Places:
    """Return the weights that are meant, never one of these `weights`; ties go by layer, name and place.

    The authors' code (`per-tensor`) takes of each matrix all that are as large as the last of the part, and of one
    that is too small for a part none. Tensors are read one at a time. Raises ForwardError where there are too few.
    """
    from analyzer.model.weights import StoredWeights

    own = places_in(runnable.projections, weights)
    names = list(own) if others.kind == "same-tensor" else _matrices(runnable)
    stored = StoredWeights(runnable.checkpoint)
    sizes = {name: math.prod(stored.shape(name)) for name in names}
    if others.kind != "per-tensor" and others.amount > sum(sizes.values()) - sum(map(len, own.values())):
        raise ForwardError(f"--others {others}: there are {sum(sizes.values()):,} weights there, those named included")
    if others.kind == "random":
        return _drawn(sizes, own, int(others.amount), seed)
    magnitudes = ((name, stored.read([name])[name].abs().flatten().float().numpy()) for name in names)
    if others.kind == "per-tensor":
        return dict(_largest_part(magnitudes, own, others.amount))
    return _largest(magnitudes, own, int(others.amount))


def count_of_places(places: Places) -> int:
    """Return how many weights these are."""
    return sum(map(len, places.values()))


def zeroed_as_loaded(places: Places) -> ChangeTensor:
    """Return the change that sets these weights to zero, each in the copy that a model gets."""
    import torch

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        here = places.get(name)
        if here is None or not len(here):
            return tensor
        changed = tensor.clone()
        changed.view(-1)[torch.from_numpy(here)] = 0
        return changed

    return change


def places_in(projections: Sequence[DownProjection], weights: Sequence[Coordinate]) -> Places:
    """Return where weights are in the tensors that store them, as plain floats."""
    by_place = {projection.place: projection for projection in projections}
    found: dict[str, list[int]] = {}
    for c in weights:
        matrix = by_place[c.place].matrix
        lines, width = matrix.data.shape
        first = lines * width * (matrix.data.start // (matrix.data.stop - matrix.data.start))  # of one of its experts
        line, place = (c.col, c.row) if matrix.transposed else (c.row, c.col)
        found.setdefault(matrix.data.tensor, []).append(first + line * width + place)
    return {name: np.array(sorted(places), dtype=np.int64) for name, places in found.items()}


def _matrices(runnable: Runnable) -> list[str]:
    """Return the matrices of the blocks of the tower, by name: of attention and MLPs, no norms, embeddings or head."""
    stack = runnable.projections[0].stack
    tensors = runnable.checkpoint.tensors
    found = [name for name, each in tensors.items() if name.startswith(f"{stack}.") and len(each.record.shape) > 1]
    return sorted(found, key=_in_order)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return what puts names into the order of their layers: numbers by their size, before words."""
    return [(int(part), "") if part.isdecimal() else (1 << 60, part) for part in name.split(".")]


def _largest(magnitudes: Iterator[tuple[str, Any]], own: Places, count: int) -> Places:
    names: list[str] = []
    best = np.empty(0, np.float32)
    where = np.empty((0, 2), np.int64)  # tensor's number, place
    for number, (name, values) in enumerate(magnitudes):
        names.append(name)
        values[own.get(name, [])] = -1
        here = _top(values, min(count, len(values)))
        best = np.concatenate([best, values[here]])
        where = np.concatenate([where, np.stack([np.full_like(here, number), here], axis=1)])
        order = np.lexsort((where[:, 1], where[:, 0], -best))[:count]
        best, where = best[order], where[order]
    return {name: np.sort(where[where[:, 0] == number, 1]) for number, name in enumerate(names)}


def _largest_part(
    magnitudes: Iterator[tuple[str, Any]], own: Places, part: float
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    for name, values in magnitudes:
        count = int(len(values) * part)
        if count:
            last = np.partition(values, len(values) - count)[len(values) - count]
            yield name, np.setdiff1d(np.flatnonzero(values >= last), own.get(name, []))


def _top(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the places of the largest values, those that come first where they are equal."""
    last = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > last)
    return np.concatenate([above, np.flatnonzero(values == last)[: count - len(above)]])


def _drawn(sizes: Mapping[str, int], own: Places, count: int, seed: int) -> Places:
    """Return so many weights, each as likely as any other."""
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
    avoided = np.concatenate([starts[name] + places for name, places in own.items() if name in starts])
    total = sum(sizes.values())
    drawn = np.random.default_rng(seed).choice(total, min(total, count + len(avoided)), replace=False)
    drawn = np.sort(drawn[~np.isin(drawn, avoided)][:count])
    ends = np.searchsorted(drawn, [starts[name] + size for name, size in sizes.items()])
    parts = np.split(drawn, ends[:-1])
    return {name: part - starts[name] for name, part in zip(sizes, parts, strict=True)}
