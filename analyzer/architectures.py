"""Which tensor is a down projection, and which way round it lies: data, not code.

The names come from llama.cpp's map of tensor names to roles (the `gguf` package), extended with what its
converters rename before they look a name up. `{bid}` stands for the layer, `{xid}` for the expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.errors import ArchitectureError, shown
from analyzer.outliers import FORMATS

# Besides gguf's own.
MORE_NAMES = (
    "model.decoder.layers.{bid}.fc2",  # opt
    "decoder.layers.{bid}.fc2",  # opt, saved without its head
    "bert.encoder.layer.{bid}.output.dense",  # bert, saved with its head
    "roberta.encoder.layer.{bid}.output.dense",  # roberta
    "transformer.h.{bid}.mlp.down_proj",  # exaone4-style
    "model.layers.{bid}.mlp.experts.{xid}.down_proj",  # qwen2_moe, qwen3_moe, olmoe, deepseek
    "model.layers.{bid}.block_sparse_moe.experts.{xid}.w2",  # mixtral, phimoe
)

# Their Conv1D stores [in, out]; every other layer type stores [out, in].
TRANSPOSED_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

HIDDEN_SIZE_KEYS = ("hidden_size", "n_embd", "d_model", "dim")
NUM_LAYERS_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class DownProjection:
    """A tensor that is a down projection; `shape` is (rows, cols) = (output, input channels).

    `transposed` tells that the file stores it as [cols, rows].
    """

    name: str
    layer: int
    expert: int | None
    shape: tuple[int, int]
    transposed: bool

    def file_place(self, row: int, col: int) -> int:
        """Return the index of an element in the order of the file."""
        rows, cols = self.shape
        return col * rows + row if self.transposed else row * cols + col

    def row_major(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return indices in (rows, cols), row by row, for indices in the order of the file."""
        rows, cols = self.shape
        return places % rows * cols + places // rows if self.transposed else places


@dataclass(frozen=True)
class BlockName:
    """What a module's or tensor's name says: the block it belongs to, its layer and its expert."""

    block: str
    layer: int
    expert: int | None


def parse_down_projection(name: str) -> BlockName | None:
    """Return what the name of a down projection (a module's, without `.weight`) says; null for any other name."""
    match = _pattern().fullmatch(name)
    if match is None:
        return None
    groups = {key: value for key, value in match.groupdict().items() if value is not None}
    layer_group = next(key for key in groups if key.startswith("bid"))
    expert = next((int(value) for key, value in groups.items() if key.startswith("xid")), None)
    return BlockName(name[: match.end(layer_group)], int(groups[layer_group]), expert)


def find_down_projections(
    model: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], config: Mapping[str, Any]
) -> list[DownProjection]:
    """Return the down projections among `tensors` (name -> dtype, shape), by layer and expert.

    Raises ArchitectureError where there are none, where two claim one place, or where a shape or dtype cannot be a
    down projection's.
    """
    model_type = config.get("model_type")
    if config.get("is_encoder_decoder") is True:
        raise ArchitectureError(f"{model} is an encoder-decoder model: such cannot be scanned yet")
    transposed = model_type in TRANSPOSED_MODEL_TYPES if isinstance(model_type, str) else False
    found: dict[tuple[int, int], DownProjection] = {}
    for name, (dtype, shape) in tensors.items():
        parsed = parse_down_projection(name.removesuffix(".weight"))
        if parsed is None:
            continue
        if len(shape) != 2:
            raise ArchitectureError(
                f"{model}: {shown(name)} has {len(shape)} dimensions; fused experts cannot be scanned yet"
            )
        if dtype not in FORMATS:
            raise ArchitectureError(
                f"{model}: {shown(name)} is stored as {dtype}; only {', '.join(FORMATS)} can be scanned yet"
            )
        rows, cols = reversed(shape) if transposed else shape
        _check_rows(model, name, rows, cols, config)
        place = (parsed.layer, -1 if parsed.expert is None else parsed.expert)
        if place in found:
            raise ArchitectureError(
                f"{model}: {shown(name)} and {shown(found[place].name)} both claim layer {parsed.layer}"
            )
        found[place] = DownProjection(name, parsed.layer, parsed.expert, (rows, cols), transposed)
    if not found:
        example = next(iter(_examples(tensors)), "none")
        raise ArchitectureError(
            f"{model} (model_type {shown(model_type, 40)}) has no MLP down projection that this version knows; "
            f"its 2-D tensors are named like {shown(example, 80)}"
        )
    return [found[place] for place in sorted(found)]


def check_one_in_each_block(model: str, projections: Sequence[DownProjection], config: Mapping[str, Any]) -> None:
    """Refuse what the forward pass cannot follow yet: every block must have one down projection, and no experts.

    Raises ArchitectureError, also where config.json has another number of blocks than the weights: the model that
    it describes is not the one that was scanned.
    """
    if any(projection.expert is not None for projection in projections):
        raise ArchitectureError(f"{model} is a mixture of experts: it can be scanned, but not yet verified")
    layers = [projection.layer for projection in projections]
    claimed = next((config[key] for key in NUM_LAYERS_KEYS if type(config.get(key)) is int), len(layers))
    if layers != list(range(len(layers))) or claimed != len(layers):
        raise ArchitectureError(
            f"{model} has {len(layers)} down projections in layers up to {max(layers)}, but config.json says it has "
            f"{claimed} blocks: a model can only be verified where each block has one"
        )


def _check_rows(model: str, name: str, rows: int, cols: int, config: Mapping[str, Any]) -> None:
    """Refuse a tensor whose input side, not its output side, has the model's hidden size: rows would be columns."""
    sizes = [config[key] for key in HIDDEN_SIZE_KEYS if type(config.get(key)) is int]
    if sizes and rows not in sizes and cols in sizes:
        raise ArchitectureError(
            f"{model}: {shown(name)} has {rows} output and {cols} input channels, but config.json says the hidden "
            f"size is {sizes[0]}: it lies the other way round than this architecture's tensors do"
        )


def _examples(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterable[str]:
    return (name for name, (_, shape) in sorted(tensors.items()) if len(shape) == 2)


@cache
def _pattern() -> re.Pattern[str]:
    """One expression for all names; the groups of its alternatives are numbered to be distinct."""
    from gguf.constants import MODEL_TENSOR
    from gguf.tensor_mapping import TensorNameMap

    roles = (MODEL_TENSOR.FFN_DOWN, MODEL_TENSOR.FFN_DOWN_EXP, MODEL_TENSOR.FFN_DOWN_SHEXP)
    known = [name for role in roles for name in TensorNameMap.block_mappings_cfg[role]]
    alternatives = []
    for number, name in enumerate([*known, *MORE_NAMES]):
        expression = re.escape(name)
        expression = expression.replace(re.escape("{bid}"), rf"(?P<bid{number}>\d{{1,5}})")
        alternatives.append(expression.replace(re.escape("{xid}"), rf"(?P<xid{number}>\d{{1,5}})"))
    return re.compile("|".join(alternatives), re.ASCII)
