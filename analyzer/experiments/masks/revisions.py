"""Weights through a training run: their values and ranks, and the last revision's mask on the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analyzer.analyze.running import Runnable, open_runnable
from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import Coordinate, plain
from analyzer.experiments.controls.others import places_in
from analyzer.experiments.lab.opening import Lab
from analyzer.experiments.masks.criteria import Criterion, dropping
from analyzer.forward.checking import run_like
from analyzer.forward.edits import UNTOUCHED, Intervention, zeroing
from analyzer.forward.losses.plain import token_losses
from analyzer.forward.runner import Runner
from analyzer.model.weights import ChangeTensor, StoredWeights
from analyzer.projections.weights import read_weights
from analyzer.source.opening import open_model

MAGNITUDE = Criterion("magnitude")


@dataclass(frozen=True)
class Last:
    """What of the last revision is laid on the others: its mask by magnitude, at a sparsity."""

    lab: Lab
    names: Sequence[str]
    sparsity: float

    def mask(self) -> ChangeTensor:
        """Return the change that drops of a revision what the last one would drop of itself, its weights kept."""
        stored = StoredWeights(self.lab.runnable.checkpoint)
        weights = [weight.coordinate for weight in self.lab.weights]
        kept = places_in(self.lab.runnable.projections, weights)

        def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if name not in self.names:
                return tensor
            drop = MAGNITUDE.dropped(name, stored.read([name])[name], self.sparsity)
            drop.view(-1)[torch.from_numpy(kept.get(name, np.empty(0, np.int64)))] = False
            return tensor.masked_fill(drop, 0)

        return change


def through(last: Last, revisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield of each revision, the last one at the end, where the weights rank in it and its losses under masks.

    Raises ForwardError where the model is no model on the Hub, or a revision is another model.
    """
    lab = last.lab
    source = lab.runnable.checkpoint.source
    if source.commit is None or "/" not in source.model or source.commit.startswith("sha256:"):
        raise ForwardError(f"{shown(source.model)} has no revisions: --revisions needs a model on the Hub")
    sources = [open_model(source.model, revision=each, token=lab.token) for each in revisions]  # a wrong name fails now
    for number, (revision, each) in enumerate(zip(revisions, sources, strict=True)):
        lab.progress("revisions", number, len(revisions))
        runnable = open_runnable(each, tower=lab.settings.tower)
        yield _of(last, revision, runnable)
        each.check_unchanged()
    lab.progress("revisions", len(revisions), len(revisions))
    yield _of(last, source.revision or "main", lab.runnable)


def _of(last: Last, revision: str, runnable: Runnable) -> dict[str, Any]:
    lab, coordinates = last.lab, [weight.coordinate for weight in last.lab.weights]
    shapes = [{name: stored.shape(name) for name in last.names} for stored in _both(runnable, lab.runnable, last.names)]
    if shapes[0] != shapes[1]:
        raise ForwardError(f"{lab.runner.name}@{shown(revision)} has matrices of other shapes than the last revision")
    kept = places_in(runnable.projections, coordinates)
    random = dropping(Criterion("random", lab.settings.seed), last.sparsity, last.names, kept, {})
    dense = _losses(last, runnable, None, [UNTOUCHED])[0]
    masked, without = _losses(last, runnable, last.mask(), [UNTOUCHED, zeroing(coordinates)])
    by_chance = _losses(last, runnable, random, [UNTOUCHED])[0]
    return {
        "revision": revision,
        "commit": runnable.checkpoint.source.commit,
        "weights": list(_ranks(runnable, coordinates)),
        "sparsity": last.sparsity,
        "nll": dense,
        "nll_masked": masked,
        "nll_masked_without": without,
        "nll_random": by_chance,
    }


def _both(one: Runnable, other: Runnable, names: Sequence[str]) -> Iterator[StoredWeights]:
    for each in (one, other):
        missing = [name for name in names if name not in each.checkpoint.tensors]
        if missing:
            raise ForwardError(f"{each.checkpoint.source.model} has no {shown(missing[0])} in one of the revisions")
        yield StoredWeights(each.checkpoint)


def _ranks(runnable: Runnable, coordinates: Sequence[Coordinate]) -> Iterator[dict[str, Any]]:
    stored = StoredWeights(runnable.checkpoint)
    values = read_weights(runnable.checkpoint, runnable.projections, coordinates)
    for c in coordinates:
        ((name, places),) = places_in(runnable.projections, [c]).items()
        leaves, size = MAGNITUDE.leaves_at(name, stored.read([name])[name], int(places[0]))
        yield plain(c) | {"value": values[c], "rank": 1 + size - round(leaves * size), "leaves_at": leaves}


def _losses(last: Last, runnable: Runnable, change: ChangeTensor | None, rows: Sequence[Intervention]) -> list[float]:
    lab = last.lab
    runner: Runner = lab.runner
    if change is not None or runnable is not lab.runnable:
        runner, _ = runnable.build(device=lab.settings.device, dtype=lab.settings.dtype, change=change)
        run_like(runner, lab.runner)
    if runner.vocabulary != lab.runner.vocabulary:
        raise ForwardError(f"{runner.name} has another vocabulary in one of the revisions")
    pairs = [(window, row) for row in rows for window in lab.windows]
    found = np.array([each.mean(dtype=np.float64) for each in token_losses(runner, pairs)])
    lab.runs += len(rows)
    return [float(each) for each in found.reshape(len(rows), -1).mean(axis=1)]
