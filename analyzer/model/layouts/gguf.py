"""A GGUF file's tensors as the stock model's: named by the gguf library, turned back by the one of transformers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from analyzer.base.errors import ArchitectureError, shown
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.model.layouts.gguf_config import BY_RULES, ROTARY_FACTORS, stock_config
from analyzer.model.layouts.gguf_library import processor_of, rules_of, unknown_split
from analyzer.model.weights import StoredWeights


def gguf_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the config is made of. Raises ArchitectureError where a file's model is not known to be run."""
    factors = None
    if ROTARY_FACTORS in checkpoint.tensors:
        factors = np.frombuffer(checkpoint.read_tensors([ROTARY_FACTORS])[ROTARY_FACTORS], np.float32).tolist()
    return stock_config(checkpoint.source.model, checkpoint.metadata, checkpoint.shapes, factors)


def gguf_notes(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to know of how a file's metadata are read, a line each; nothing of other checkpoints."""
    if metadata:
        yield "its config and its tokenizer are made from the metadata of the GGUF file"
    if split := unknown_split(metadata):
        yield f"its tokenizer splits text as {split}, which is not known here: it is split as GPT-2 does"


def gguf_rules(checkpoint: Checkpoint, config: Any) -> list[Any] | None:
    """Return the rules by which the library loads a file's tensors; null where it has none for its architecture."""
    architecture = checkpoint.metadata.get("general.architecture")
    return rules_of(str(architecture), config) if architecture in BY_RULES else None


def open_weights(checkpoint: Checkpoint, model: Any) -> StoredWeights:
    """Return the tensors of a checkpoint as a stock model's loader takes them. Raises like StoredWeights."""
    if not checkpoint.metadata:
        return StoredWeights(checkpoint)
    if checkpoint.metadata["general.architecture"] in BY_RULES:
        return RuledGgufWeights(checkpoint, model.config.num_hidden_layers)
    return GgufWeights(checkpoint, model)


class RuledGgufWeights(StoredWeights):
    """The tensors of a GGUF file under their own names, for the library's rules."""

    said_by = "the metadata say"

    def __init__(self, checkpoint: Checkpoint, layers: int) -> None:
        """Blocks beyond so many layers predict further tokens, and are left out. Raises like StoredWeights."""
        super().__init__(checkpoint)
        self._layers = layers

    def unclaimed(self, used: Collection[str]) -> list[str]:
        """See StoredWeights.unclaimed: here all tensors of the stack count, and all beside it."""
        beyond = re.compile(r"blk\.(\d+)\.", re.ASCII)
        left = (name for name in self.names if name not in used)
        return [name for name in left if not ((block := beyond.match(name)) and int(block[1]) >= self._layers)]


class GgufWeights(StoredWeights):
    """The tensors of a GGUF file under the names of a stock model's parameters, as these are."""

    said_by = "the metadata say"

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        """Raises ArchitectureError where a tensor is none of this model's."""
        super().__init__(checkpoint)
        architecture = checkpoint.metadata["general.architecture"]
        self._processor = processor_of(architecture, model.config)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
        self._mapping = self._stock_names(architecture, model.config.num_hidden_layers)
        for stored in checkpoint.tensors:
            name = self._mapping.get(stored) or self._mapping.get(stored.removesuffix(".weight"))
            if name is not None:
                self.called[stored] = name
            elif stored != ROTARY_FACTORS:
                raise ArchitectureError(
                    f"{self.model}: {type(model).__name__} has no place for {shown(stored)}: it can be scanned, but "
                    "not yet verified: use the model that it was made from"
                )
        self._stored: dict[str, list[str]] = {}
        for stored, name in self.called.items():
            self._stored.setdefault(name, []).append(stored)
        self.names = tuple(self._stored)

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """See StoredWeights.read."""
        found: dict[str, torch.Tensor] = {}
        for stored, tensor in super().read([each for name in names for each in self._stored[name]]).items():
            turned = self._processor.process(
                weights=tensor.float().numpy(),
                name=stored,
                tensor_key_mapping=self._mapping,
                parsed_parameters={"tensors": found},
            )
            if turned.name is not None:  # else the processor has put it there itself
                name = self.called[stored]
                values = torch.from_numpy(np.ascontiguousarray(turned.weights))
                found[name] = _with_ones(values, self._shapes[name])
        return found

    def are_plain(self, names: Sequence[str]) -> bool:
        """See StoredWeights.are_plain: what `read` returns was turned back."""
        return False

    def stored_bytes(self, names: Sequence[str]) -> int:
        """See StoredWeights.stored_bytes."""
        return super().stored_bytes([each for name in names for each in self._stored[name]])

    def stored_as(self, name: str) -> str:
        """See StoredWeights.stored_as."""
        return self._stored.get(name, [name])[0]

    def _stock_names(self, architecture: str, layers: int) -> dict[str, str]:
        """Return the model's parameter of each tensor's name, as the library has it: with or without `.weight`."""
        known = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
        names = get_tensor_name_map(known, layers)
        found: dict[str, str] = {}
        for parameter in self._shapes:
            module, dot, last = self._processor.preprocess_name(parameter).rpartition(".")
            suffix = dot + last if last in ("weight", "bias") else ""
            name = names.get_name(module if suffix else parameter)
            if name is None:
                self._processor.perform_fallback_tensor_mapping(found, suffix, "", parameter)
            else:
                found[name + suffix] = parameter
        return found


def _with_ones(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return values in this shape, where theirs differs from it by dimensions of 1 alone."""
    same = [size for size in values.shape if size > 1] == [size for size in shape if size > 1]
    return values.reshape(shape) if same else values
