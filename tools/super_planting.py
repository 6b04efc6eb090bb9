"""Plants a weight in a stock model so that it makes a super activation there, as the stock model itself tells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from cutting import Cutting, Place
from stock_runs import COLLAPSE, PERSISTS, RATIO, Stream, ratios, run_text, super_activations, text_arguments, zeroed
from tiny_text import PROMPT_IDS
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

WANTED = 3 * RATIO
FIRST = 10.0  # what a weight adds at first: more than all others together, at the position where it reads most
MOST_CANDIDATES, MOST_STEPS = 3, 8
MOST = 1e7


@dataclass(frozen=True)
class Candidate:
    """A weight that may be planted: it acts in the `call`th run of a block of the stack, which has this number."""

    stack: str
    number: int
    call: int
    place: Place
    row: int
    col: int
    entered: float
    """The largest magnitude that it reads."""

    @property
    def index(self) -> int:
        """Where it is in its parameter."""
        return self.place.offset + self.row * self.place.row_step + self.col * self.place.col_step


def plant_super_weight(model: PreTrainedModel, matrices: Sequence[Mapping[str, Any]]) -> Candidate | None:
    """Make a weight of a middle block write a super activation, and return where it is.

    `matrices` are the down projections of the stack that makes text. Where none can be made to, the last one that was
    tried is there; null where text reaches no candidate.
    """
    tried = None
    for with_room in (False, True):
        untouched = {name: value.clone() for name, value in model.named_parameters()}
        if with_room:
            _make_room(model, max(each["rows"] for each in matrices))
        for tried in islice(_candidates(model, matrices), MOST_CANDIDATES):
            weight = _weight(model, tried)
            for norms in _ways(model, tried):
                before = {name: value.clone() for name, value in model.named_parameters()}
                weight.fill_(FIRST / tried.entered)
                for entry in norms:
                    entry.fill_(FIRST)
                if _grow(model, tried, norms or [weight]) and writes_super_activation(model, tried):
                    return tried
                _restore(model, before)
        _restore(model, untouched)
    return tried


def writes_super_activation(model: PreTrainedModel, planted: Candidate) -> bool:
    """Tell whether a model has a super activation in the planted weight's channel that it loses without the weight."""
    stream = _stream(model, planted)
    with zeroed(model.get_parameter(planted.place.parameter), planted.index):
        without = _stream(model, planted)
    left = np.abs(without).max(axis=0) / np.abs(stream).max(axis=0)  # [T, channels]
    here = [place for place in super_activations(stream) if place[1] % planted.place.rows == planted.row]
    return bool(here) and all(left[place] <= 1 - COLLAPSE for place in here)


def _stream(model: PreTrainedModel, planted: Candidate) -> Stream:
    return run_text(model, PROMPT_IDS, [planted.stack]).stream(planted.stack)


def _restore(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        value.copy_(values[name])


def _make_room(model: PreTrainedModel, width: int) -> None:
    """Let nothing write the channel that will be planted in, and center the others.

    Norms after a block keep a channel small; where they are made to let it grow, whatever is in it grows.
    """
    row = _row(width)
    others = [channel for channel in range(width) if channel != row]
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            module.reset_parameters()
        turned = isinstance(module, nn.Embedding | Conv1D)
        for value in module.parameters(recurse=False) if turned or isinstance(module, nn.Linear) else ():
            written = value.T if turned and value.ndim == 2 else value
            if len(written) == width:
                written[row] = 0.0
                written[others] -= written[others].mean(dim=0)


def _row(width: int) -> int:
    """Return the channel that is planted in, of so many."""
    return width // 3


def _candidates(model: PreTrainedModel, matrices: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """Yield weights that read what one position alone makes large: of middle blocks first, and of experts."""
    latent = {(each["stack"], each["layer"]) for each in matrices if each["writes"] == "latent"}  # not followed there
    stack_of = {each["parameter"]: each["stack"] for each in matrices if (each["stack"], each["layer"]) not in latent}
    done = run_text(model, PROMPT_IDS, {each["stack"] for each in matrices})
    numbers = done.numbers(done.last)
    found = []
    for place, read in _reads(model):
        if stack_of.get(place.parameter) != done.last:
            continue
        number = int(place.parameter.removeprefix(f"{done.last}.").partition(".")[0])
        call = numbers.index(number)
        if call + PERSISTS < len(numbers):
            col, peak = _peak(read)
            entered = float(read[:, col].abs().max())
            expert = place.rows * place.cols < model.get_parameter(place.parameter).numel()
            order = (call == 0, call, not expert, -peak)
            found.append((order, Candidate(done.last, number, call, place, _row(place.rows), col, entered)))
    yield from (candidate for _, candidate in sorted(found, key=lambda each: each[0]))


def _reads(model: PreTrainedModel) -> Iterator[tuple[Place, Tensor]]:
    """Yield each matrix that is used on the prompt with what it reads, [n, cols]."""
    cutting = Cutting(model)
    with suppress(Exception), torch.enable_grad(), cutting:
        model(**text_arguments(model, PROMPT_IDS))
    for call in cutting.calls:
        for number, place in enumerate(call.places):
            if call.read is not None:
                read = call.read.detach() if len(call.places) == 1 else call.read.detach()[number]
                yield place, read.reshape(-1, place.cols)


def _peak(read: Tensor) -> tuple[int, float]:
    """Return the channel in which one position stands out most from the others, and how much."""
    entered = read.abs()
    silent = torch.zeros(max(0, len(PROMPT_IDS) - len(read)), entered.shape[1])  # an expert has but some
    usual = torch.cat([entered, silent]).median(dim=0).values
    peaks = entered.amax(dim=0) if len(entered) else torch.zeros(entered.shape[1])
    scores = peaks * peaks / (usual + peaks.max() / 1000).clamp(min=1e-9)
    return int(scores.argmax()), float(scores.max())


def _weight(model: PreTrainedModel, candidate: Candidate) -> Tensor:
    flat: Tensor = model.get_parameter(candidate.place.parameter).data.view(-1)
    return flat[candidate.index : candidate.index + 1]


def _ways(model: PreTrainedModel, candidate: Candidate) -> Iterator[Sequence[Tensor]]:
    """Yield the channel's weights of the norms that may have to grow, so that they do not keep the channel small.

    None, those that do most, or all.
    """
    yield []
    norms = _vectors(model, candidate)
    if norms:
        yield max(norms, key=lambda entries: _strength_with(model, candidate, entries))
        yield [entry for entries in norms for entry in entries]


def _strength_with(model: PreTrainedModel, candidate: Candidate, entries: Sequence[Tensor]) -> float:
    """Return the channel's strength with a weight planted and these entries large."""
    changed = [_weight(model, candidate), *entries]
    before = [entry.clone() for entry in changed]
    for entry in changed:
        entry.fill_(FIRST)
    strength = _strength(model, candidate)
    for entry, value in zip(changed, before, strict=True):
        entry.copy_(value)
    return strength


def _vectors(model: PreTrainedModel, candidate: Candidate) -> list[list[Tensor]]:
    """Return the candidate's channel of each vector of the block, each with those of the blocks that follow."""
    found: dict[str, list[Tensor]] = {}
    for name, value in model.named_parameters():
        number, _, rest = name.removeprefix(f"{candidate.stack}.").partition(".")
        inside = name.startswith(f"{candidate.stack}.") and number.isdigit() and int(number) >= candidate.number
        if inside and value.shape == (candidate.place.rows,):
            found.setdefault(rest, []).append(value.data[candidate.row : candidate.row + 1])
    return list(found.values())


def _grow(model: PreTrainedModel, candidate: Candidate, entries: Sequence[Tensor]) -> bool:
    """Scale these numbers until the channel is large enough; false where it does not become so."""
    for _ in range(MOST_STEPS):
        strength = _strength(model, candidate)
        if strength >= WANTED:
            return True
        factor = min(max(1.3 * WANTED / max(strength, 1e-6), 1.5), 1000.0)
        for entry in entries:
            entry *= factor
        if not math.isfinite(strength) or any(float(entry.abs()) > MOST for entry in entries):
            return False
    return False


def _strength(model: PreTrainedModel, candidate: Candidate) -> float:
    """Return what multiple of the median the channel has at one position, from its block on to those that follow."""
    along = ratios(_stream(model, candidate))[
        candidate.call : candidate.call + PERSISTS + 1, :, candidate.row :: candidate.place.rows
    ]
    return float(np.nan_to_num(along.min(axis=0).max()))
