"""Which weights go first when a model is pruned: by magnitude, by Wanda, or by chance; and when each would go.

Wanda scores |W| times the norm of its input and compares within an output row (arXiv 2306.11695); what is dropped of a
group is what the authors' code drops (locuslab/wanda, lib/prune.py), but that Wanda's norms are the unpruned model's.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.analyze.running import Runnable
from analyzer.experiments.controls.others import Places
from analyzer.forward.linears import InputStatistics, linears_of
from analyzer.forward.runner import Runner
from analyzer.model.weights import ChangeTensor, StoredWeights

GROUPS = {"magnitude": "matrix", "global": "all matrices", "wanda": "row", "random": "matrix"}
"""What weights are compared within, by the name of the criterion."""


@dataclass(frozen=True)
class Norms:
    """The norms of what goes into a matrix, [in_features], and whether the matrix is stored [in, out]."""

    values: torch.Tensor
    inputs_first: bool


@dataclass(frozen=True)
class Criterion:
    """A way to choose what to drop: of every matrix of the blocks, which are `names`.

    `norms` are what Wanda needs of each, `thresholds` by sparsity what is dropped over all matrices (`global`).
    """

    name: str
    seed: int | None = None
    norms: Mapping[str, Norms] = field(default_factory=dict)
    thresholds: Mapping[float, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name} {self.seed}"

    def scores(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the score of each weight of a tensor, [groups, weights of a group]; experts are matrices."""
        if self.name == "wanda":
            norms = self.norms[name]
            magnitudes = tensor.T if norms.inputs_first else tensor
            return magnitudes.abs().float() * norms.values
        if self.name == "random":
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
            scores = torch.rand(tensor.shape, generator=generator)
        else:
            scores = tensor.abs().float()
        return scores.reshape(len(tensor) if tensor.ndim == 3 else 1, -1)

    def dropped(self, name: str, tensor: torch.Tensor, sparsity: float) -> torch.Tensor:
        """Return which weights of a tensor go at a sparsity, in its shape."""
        scores = self.scores(name, tensor)
        if self.name == "global":
            return (scores <= self.thresholds[sparsity]).reshape(tensor.shape)
        last = int(scores.shape[1] * sparsity) - (self.name != "magnitude")
        if last < 0:
            return torch.zeros(tensor.shape, dtype=torch.bool)
        drop = scores <= scores.kthvalue(last + 1, dim=1, keepdim=True).values
        turned = self.name == "wanda" and self.norms[name].inputs_first
        return (drop.T.contiguous() if turned else drop).reshape(tensor.shape)

    def leaves_at(self, name: str, tensor: torch.Tensor, place: int) -> tuple[float, int]:
        """Return the part of its group that has gone once a weight goes, by its flat place, and how large the group is.

        Equal scores go together.
        """
        scores = self.scores(name, tensor)
        if self.name == "wanda" and self.norms[name].inputs_first:
            column, row = divmod(place, scores.shape[0])
        else:
            row, column = divmod(place, scores.shape[1])
        group = scores[row]
        return int((group <= group[column]).sum()) / len(group), len(group)


def matrices_of(runnable: Runnable) -> list[str]:
    """Return the matrices of the blocks of the tower, by name, and the parameters that experts share."""
    stack = f"{runnable.projections[0].stack}."
    tensors = runnable.checkpoint.tensors
    shapes = {name: tensors[name].record.shape for name in tensors if name.startswith(stack)}
    return sorted(name for name, shape in shapes.items() if len(shape) in (2, 3) and min(shape) > 1)


def norms_of(runner: Runner, names: Iterable[str], seen: InputStatistics) -> tuple[dict[str, Norms], list[str]]:
    """Return the norms of what went into each matrix, and those matrices of which that is not known."""
    linears = {name: module for block in runner.stack for name, module in linears_of(block).items()}
    found: dict[str, Norms] = {}
    unknown: list[str] = []
    stored = StoredWeights(runner.checkpoint)
    for name in names:
        module = runner.blocks.targets.get(name, "").removesuffix(".weight")
        squares = seen.squares.get(module)
        inputs_first = not isinstance(linears.get(module), torch.nn.Linear)
        shape = stored.shape(name)
        if squares is None or len(shape) != 2 or shape[0 if inputs_first else 1] != len(squares):
            unknown.append(name)
        else:
            found[name] = Norms(squares.sqrt().float(), inputs_first)
    return found, unknown


def dropping(
    criterion: Criterion, sparsity: float, names: Iterable[str], kept: Places, counts: dict[str, int]
) -> ChangeTensor:
    """Return the change that drops what a criterion says of these matrices, but never the weights that are `kept`.

    How many it drops of each goes into `counts`.
    """
    matrices = frozenset(names)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in matrices:
            return tensor
        drop = criterion.dropped(name, tensor, sparsity)
        drop.view(-1)[torch.from_numpy(kept.get(name, np.empty(0, np.int64)))] = False
        counts[name] = int(drop.sum())
        return tensor.masked_fill(drop, 0)

    return change


def over_all(
    stored: StoredWeights, names: Sequence[str], sparsities: Sequence[float], values: Sequence[float]
) -> tuple[dict[float, float], list[float]]:
    """Return what is dropped over all matrices at each sparsity, and what has gone once each of these values goes.

    The first are magnitudes, exactly those at these places of all in order. The bits of floats from 0 are in the order
    of their values: two passes count them, by upper halves, and by the lower ones of those that matter.
    """
    high = np.zeros(1 << 16, np.int64)
    larger = np.zeros(len(values), np.int64)
    for name in names:
        magnitudes = _magnitudes(stored, name)
        high += np.bincount(magnitudes.view(np.uint32) >> 16, minlength=len(high))
        larger += [int((magnitudes > np.float32(abs(value))).sum()) for value in values]
    total, below = int(high.sum()), np.concatenate([[0], np.cumsum(high)])
    wanted = {sparsity: min(int(total * sparsity), total - 1) for sparsity in sparsities}
    upper = {sparsity: int(np.searchsorted(below, place, side="right")) - 1 for sparsity, place in wanted.items()}
    low = {half: np.zeros(1 << 16, np.int64) for half in upper.values()}
    for name in names if low else ():
        bits = _magnitudes(stored, name).view(np.uint32)
        for half, counts in low.items():
            counts += np.bincount(bits[bits >> 16 == half] & 0xFFFF, minlength=len(counts))
    thresholds = {}
    for sparsity, half in upper.items():
        lower = int(np.searchsorted(np.cumsum(low[half]), wanted[sparsity] - below[half], side="right"))
        thresholds[sparsity] = float(np.array([half << 16 | lower], np.uint32).view(np.float32)[0])
    return thresholds, [(total - int(count)) / total for count in larger]


def _magnitudes(stored: StoredWeights, name: str) -> NDArray[np.float32]:
    return stored.read([name])[name].abs().flatten().float().numpy()
