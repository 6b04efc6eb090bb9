"""Saves a model as the library does, and tells by planted numbers where each matrix went."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cutting import Place
from torch import nn
from transformers import PreTrainedModel

FIRST_NUMBER = 1 << 12  # larger than what any other tensor has
SPREAD = 0.02
DECOY = 99.0  # larger than what is planted: in every parameter that is no down projection


@dataclass(frozen=True)
class Stored:
    """Where a matrix is saved: it is the `number`th of those of its size in tensor `name`, [cols, rows] if `turned`.

    `number` is null where it is no contiguous part of the tensor.
    """

    name: str
    number: int | None
    turned: bool


def locate(model: PreTrainedModel, places: Sequence[Place]) -> dict[Place, Stored | None]:
    """Return where each matrix is saved; null where no tensor of the checkpoint has it as one matrix.

    Every element of the matrices' parameters is given a number of its own, and the numbers are looked for.
    """
    parameters = dict(model.named_parameters())
    names = sorted({place.parameter for place in places})
    first: dict[str, int] = {}
    number = FIRST_NUMBER
    with _restored(parameters[name] for name in names), tempfile.TemporaryDirectory() as folder:
        for name in names:
            values = parameters[name].data
            first[name] = number
            values.copy_(torch.arange(number, number + values.numel(), dtype=torch.float32).reshape(values.shape))
            number += values.numel()
        model.save_pretrained(folder)
        tensors = read_tensors(Path(folder))
    where: dict[int, tuple[str, int]] = {}
    for name, saved in tensors.items():
        flat = saved.ravel()
        for position in np.flatnonzero((flat >= FIRST_NUMBER) & (flat < number)):
            where.setdefault(int(flat[position]), (name, int(position)))
    return {place: _stored(place, first[place.parameter], where, tensors) for place in places}


def _stored(
    place: Place, first: int, where: Mapping[int, tuple[str, int]], tensors: Mapping[str, np.ndarray]
) -> Stored | None:
    rows, cols = np.arange(place.rows)[:, None], np.arange(place.cols)
    numbers = first + place.offset + rows * place.row_step + cols * place.col_step
    found = where.get(int(numbers[0, 0]))
    if found is None:
        return None
    name, offset = found
    flat = tensors[name].ravel()
    below, beside = where.get(int(numbers[1, 0])), where.get(int(numbers[0, 1]))
    if below is None or beside is None or below[0] != name or beside[0] != name:
        return None
    row_step, col_step = below[1] - offset, beside[1] - offset
    positions = offset + rows * row_step + cols * col_step
    if positions.min() < 0 or positions.max() >= flat.size or not np.array_equal(flat[positions], numbers):
        return None
    size = place.rows * place.cols
    whole = {row_step, col_step} in ({1, place.cols}, {1, place.rows}) and offset % size == 0
    return Stored(name, offset // size if whole else None, col_step > row_step)


def number_as_filed(matrices: list[dict[str, Any]]) -> None:
    """Give each expert, and each MLP of a block with several, the number that the checkpoint's own names give it.

    The library joins and parts lists of experts when it saves them: they are numbered as the file has them.
    """
    blocks: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for matrix in matrices:
        if matrix["expert"] is not None and matrix["name"] is not None:
            blocks[matrix["stack"], matrix["layer"]][re.sub(r"\d+", "*", matrix["name"])].append(matrix)
    for groups in blocks.values():
        for order, group in enumerate(sorted(groups.values(), key=lambda each: each[0]["mlp"] or 0)):
            words = [matrix["name"].split(".") for matrix in group]
            differing = [index for index, each in enumerate(zip(*words, strict=True)) if len(set(each)) > 1]
            for matrix in group:
                matrix["mlp"] = order if len(groups) > 1 else None
                if differing:
                    matrix["expert"] = int(re.findall(r"\d+", matrix["name"].split(".")[differing[-1]])[-1])
                else:
                    matrix["expert"] = matrix["number"]


def plant(
    model: PreTrainedModel, places: Iterable[Place], at: Place, row: int, col: int, value: float, folder: Path
) -> None:
    """Save a model whose down projections are small but for one weight, and whose other parameters have decoys."""
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    downs = {place.parameter for place in places}
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in downs:
                parameter.normal_(0, SPREAD, generator=generator)
            elif parameter.is_floating_point() and parameter.numel():
                parameter.view(-1)[0] = DECOY
        parameters[at.parameter].view(-1)[at.offset + row * at.row_step + col * at.col_step] = value
    model.save_pretrained(folder)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return a small checkpoint's tensors of floats."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point():
                tensors[name] = tensor.float().numpy()
    return tensors


@contextmanager
def _restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    saved = [(parameter, parameter.data.clone()) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, values in saved:
            parameter.data.copy_(values)
