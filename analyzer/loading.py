"""Brings a transformers model to life a block at a time: each block's weights come just before it runs and go after.

The stock model is built without weights. Tensors are read through the checkpoint (a local file, or ranges of the Hub at
the pinned commit) and put in place by transformers' own loader, which renames, fuses and splits what it must. While a
block runs, the next one's bytes are read. Of the embedding only the rows of the tokens in use are read, and the output
head is multiplied in slices. A model that is small enough keeps its blocks once they are loaded.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from analyzer.checkpoint import Checkpoint
from analyzer.errors import CheckpointError, shown

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
HEAD_NUMBERS = 1 << 24  # of the output head's weights, per slice: 64 MiB in float32
OUTSIDE = ""  # stands for what belongs to no block
SHARED_BIAS = "position_bias"  # of MPT's attention, [heads, 1, T]: one for all rows of a batch
FLAT_BIAS = "alibi"  # of BLOOM's attention, [rows * heads, 1, T]


class BlockwiseModel:
    """A stock model on one device whose blocks' weights come and go; call `body` and `head`, not the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model_class: Any,
        config: Any,
        find_blocks: Callable[[torch.nn.Module], Sequence[str]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        keep_bytes: int,
        row_bytes: int,
    ) -> None:
        """Build the model and load what is outside of its blocks.

        `find_blocks` names the modules that load on demand, in the order in which they run. A model whose weights take
        at most `keep_bytes` keeps them. A block runs as many rows of a batch at once as take `row_bytes` of memory.
        Raises CheckpointError where the checkpoint lacks weights.
        """
        # Only the eager attention caps its scores as Gemma 2 wants it; but it counts Falcon's ALiBi twice.
        attention = "sdpa" if config.model_type == "falcon" and config.alibi else "eager"
        with init_empty_weights(include_buffers=False):
            self.model = model_class.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
        self.model.eval().requires_grad_(False)
        self.checkpoint = checkpoint
        self.rows = [0]
        """The rows of the batch that the running block has in hand."""
        self.kind: Callable[[str, int], Hashable] = lambda _, row: row
        """Tells, by block and row, rows that are alike after that block: they run but once."""
        self._device, self._dtype, self._row_bytes = device, dtype, row_bytes
        self._mapping = get_model_conversion_mapping(self.model)
        self._blocks = {name: self.model.get_submodule(name) for name in find_blocks(self.model)}
        parameters = sum(p.numel() for block in self._blocks.values() for p in block.parameters())
        self._keep = parameters * dtype.itemsize <= keep_bytes
        self._plan = self._assign()
        self._ahead: dict[str, Future[dict[str, torch.Tensor]]] = {}
        self._loaded: set[str] = set()
        for buffer_name, buffer in self.model.named_buffers():
            module, _, name = buffer_name.rpartition(".")
            self.model.get_submodule(module)._buffers[name] = buffer.to(device)
        self._embed()
        self._slice_head()
        self._put(self._read(self._plan[OUTSIDE]))
        self._tie()
        order = list(self._blocks)
        for name, following in zip(order, [*order[1:], None], strict=True):
            self._on_demand(name, following)

    def body(self, ids: torch.Tensor) -> torch.Tensor:
        """Run everything but the output head on [rows, T] token ids; returns [rows, T, hidden_size]."""
        hidden: torch.Tensor = self.model.get_submodule(self.body_name)(input_ids=ids, use_cache=False)[0]
        return hidden

    def _assign(self) -> dict[str, list[str]]:
        """Return the names of the checkpoint's tensors that make up each block, and what is outside of them."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        state = self.model.state_dict()
        prefix = self.model.base_model_prefix
        plan: dict[str, list[str]] = {OUTSIDE: [], **{name: [] for name in self._blocks}}
        self._sources: dict[str, str] = {}
        for name in sorted(self.checkpoint.tensors):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target not in state:
                continue
            if pattern is None:
                self._sources[target] = name
            plan[self._block_of(target)].append(name)
        return plan

    def _block_of(self, target: str) -> str:
        parts = target.split(".")
        names = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((name for name in names if name in self._blocks), OUTSIDE)

    def _on_demand(self, name: str, following: str | None) -> None:
        """Have a block loaded before it runs and, unless it is kept, dropped after, and run on few rows at a time."""
        block = self._blocks[name]
        forward = block.forward

        def load(*_: object) -> None:
            if name not in self._loaded:
                self._put((self._ahead.pop(name, None) or self._start(name)).result())
                self._check(name)
                self._loaded.add(name)
            if following is not None and following not in self._loaded and following not in self._ahead:
                self._ahead[following] = self._start(following)

        def drop(*_: object) -> None:
            if not self._keep:
                _empty(block)
                self._loaded.discard(name)

        block.register_forward_pre_hook(load)
        block.forward = lambda *args, **kwargs: self._by_rows(name, forward, args, kwargs)
        block.register_forward_hook(drop)

    def _by_rows(self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block on a few rows of its batch at a time: attention's memory grows with rows, weights' does not."""
        hidden = args[0] if args else kwargs["hidden_states"]
        batch = hidden.shape[0]
        at_once = max(1, self._row_bytes // self._bytes_of_a_row(hidden))
        kinds = [self.kind(name, row) for row in range(batch)]
        first = {kind: row for row, kind in reversed(list(enumerate(kinds)))}  # of each kind
        distinct = sorted(first.values())
        outputs = []
        for start in range(0, len(distinct), at_once):
            self.rows = distinct[start : start + at_once]
            if len(self.rows) == batch:
                return forward(*args, **kwargs)
            few = {key: _picked(value, batch, self.rows, key) for key, value in kwargs.items()}
            outputs.append(forward(*_picked(args, batch, self.rows), **few))
        place = {row: index for index, row in enumerate(distinct)}
        back = torch.tensor([place[first[kind]] for kind in kinds], device=hidden.device)
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs)[back]
        return (torch.cat([output[0] for output in outputs])[back], *outputs[0][1:])

    def _bytes_of_a_row(self, hidden: torch.Tensor) -> int:
        """Return about what a block needs for one row: its inner activations, and eager attention's weights twice."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 16)
        tokens, width = hidden.shape[-2:]
        return int(tokens * (16 * width + 2 * heads * tokens) * 4)

    def _start(self, name: str) -> Future[dict[str, torch.Tensor]]:
        """Have a block's weights read on a thread that nobody waits for at the end: they may not be needed any more."""
        future: Future[dict[str, torch.Tensor]] = Future()

        def read() -> None:
            try:
                future.set_result(self._read(self._plan[name]))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=read, name="weights", daemon=True).start()
        return future

    def _read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        dtypes = {name: _dtype(self.checkpoint, name) for name in names}
        return {
            name: torch.frombuffer(data, dtype=dtypes[name]).reshape(self.checkpoint.tensors[name].record.shape)
            for name, data in self.checkpoint.read_tensors(names).items()
        }

    def _put(self, tensors: dict[str, torch.Tensor]) -> None:
        """Let transformers' loader convert the tensors and set the model's parameters."""
        plan = self.model._get_dtype_plan(self._dtype)
        load_config = LoadStateDictConfig(
            weight_mapping=self._mapping,
            dtype=self._dtype,
            dtype_plan=plan,
            device_map={"": self._device},
        )
        report, _ = convert_and_load_state_dict_in_model(self.model, tensors, load_config)
        for name, stored, wanted in sorted(report.mismatched_keys):
            raise _wrong_shape(self.checkpoint, name, stored, wanted)
        for name in sorted(report.conversion_errors):
            raise CheckpointError(
                f"{self.checkpoint.source.model}: the checkpoint's tensors do not make up {shown(name)} as config.json "
                "describes it"
            )

    def _check(self, name: str) -> None:
        missing = [f"{name}.{p}" for p, value in self._blocks[name].named_parameters() if value.is_meta]
        if missing:
            raise CheckpointError(
                f"{self.checkpoint.source.model}: the checkpoint lacks {missing[0]} ({len(missing)} missing in all)"
            )

    def _embed(self) -> None:
        """Have the embedding read only the rows of the tokens it is asked for, where it is stored as it is used."""
        self.embedding = self.model.get_input_embeddings()
        target = f"{self._name_of(self.embedding)}.weight"
        self.body_name = target.partition(".")[0]  # `base_model_prefix` does not always name it
        self.vocabulary, width = self.embedding.weight.shape
        tied = [name for name, other in self.model.all_tied_weights_keys.items() if other == target]
        source = next((self._sources[name] for name in (target, *tied) if name in self._sources), None)
        if source is None:
            return
        if source in self._plan[OUTSIDE]:
            self._plan[OUTSIDE].remove(source)
        dtype = _dtype(self.checkpoint, source)
        shape = self.checkpoint.tensors[source].record.shape
        if shape != (self.vocabulary, width):
            raise _wrong_shape(self.checkpoint, source, shape, (self.vocabulary, width))
        self.embedding.padding_idx = None  # it is one of a whole embedding's rows
        none = torch.empty(0, width, dtype=self._dtype, device=self._device)
        self.embedding.weight = torch.nn.Parameter(none, requires_grad=False)
        known: dict[int, torch.Tensor] = {}

        def load_rows(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            ids, places = torch.unique(args[0], return_inverse=True)
            wanted = ids.tolist()
            missing = [i for i in wanted if i not in known]
            for i, data in self.checkpoint.read_rows(source, missing).items():
                known[i] = torch.frombuffer(data, dtype=dtype)
            rows = torch.stack([known[i] for i in wanted]).to(self._device, self._dtype)
            module.weight = torch.nn.Parameter(rows, requires_grad=False)
            return (places, *args[1:])

        self.embedding.register_forward_pre_hook(load_rows)

    def _slice_head(self) -> None:
        """Put slices in the place of the output head."""
        head = self.model.get_output_embeddings()
        if head is None:
            return
        target = f"{self._name_of(head)}.weight"
        tied = self.model.all_tied_weights_keys.get(target)
        source = self._sources.get(target) or self._sources.get(tied)
        if source is not None:
            if source in self._plan[OUTSIDE]:
                self._plan[OUTSIDE].remove(source)
            bias = getattr(head, "bias", None)
            sliced = SlicedHead(self.checkpoint, source, head.weight.shape, bias, self._device, self._dtype)
            self.model.set_output_embeddings(sliced)

    def _tie(self) -> None:
        """Give tied parameters outside of the blocks their weights."""
        tied = self.model.all_tied_weights_keys
        for name, parameter in list(self.model.named_parameters()):
            if not parameter.is_meta or self._block_of(name) != OUTSIDE:
                continue
            source = tied.get(name)
            with suppress(AttributeError):
                if source is not None and not self.model.get_parameter(source).is_meta:
                    module, _, last = name.rpartition(".")
                    setattr(self.model.get_submodule(module), last, self.model.get_parameter(source))
                    continue
            raise CheckpointError(f"{self.checkpoint.source.model}: the checkpoint lacks {name}")

    def _name_of(self, wanted: torch.nn.Module) -> str:
        return str(next(name for name, module in self.model.named_modules() if module is wanted))


class SlicedHead(torch.nn.Module):
    """A linear map to the vocabulary whose weights are kept as they are stored, and multiplied a slice at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: str,
        shape: torch.Size,
        bias: torch.nn.Parameter | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.weight = torch.empty(0, dtype=dtype, device=device)  # some models ask for its dtype
        self.bias = bias
        self._checkpoint, self._source, self._shape = checkpoint, source, shape
        self._device, self._dtype = device, dtype
        self._stored: torch.Tensor | None = None
        self._stored_dtype = _dtype(checkpoint, source)
        if checkpoint.tensors[source].record.shape != tuple(shape):
            raise _wrong_shape(checkpoint, source, checkpoint.tensors[source].record.shape, shape)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [..., vocabulary] for [..., hidden_size]; the weights are read when they are first needed."""
        if self._stored is None:
            data = self._checkpoint.read_tensors([self._source])[self._source]
            self._stored = torch.frombuffer(data, dtype=self._stored_dtype).reshape(self._shape)
            if self._device.type != "cpu":
                self._stored = self._stored.to(self._device)
        rows = max(1, HEAD_NUMBERS // self._shape[1])
        slices = [
            torch.nn.functional.linear(hidden, self._stored[start : start + rows].to(self._dtype))
            for start in range(0, self._shape[0], rows)
        ]
        logits = slices[0] if len(slices) == 1 else torch.cat(slices, dim=-1)
        return logits if self.bias is None else logits + self.bias


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    stored = checkpoint.tensors[name].record.dtype
    if stored not in DTYPES:
        raise CheckpointError(
            f"{checkpoint.source.model}: {shown(name)} is stored as {stored}, which can be scanned, but not yet "
            "verified: use the model that it was made from"
        )
    return DTYPES[stored]


def _wrong_shape(checkpoint: Checkpoint, name: str, stored: Sequence[int], wanted: Sequence[int]) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.source.model}: {shown(name)} has the shape {list(stored)}, config.json says {list(wanted)}"
    )


def _picked(value: Any, batch: int, rows: list[int], name: str = "") -> Any:
    """Return the rows of every tensor in a value that has one for each row of the batch."""
    if isinstance(value, torch.Tensor):
        if name == FLAT_BIAS and value.ndim == 3:
            return value.reshape(batch, -1, *value.shape[1:])[rows].flatten(0, 1)
        return value[rows] if value.ndim > 0 and value.shape[0] == batch and name != SHARED_BIAS else value
    if isinstance(value, tuple):
        return tuple(_picked(member, batch, rows) for member in value)
    if isinstance(value, dict):
        return {key: _picked(member, batch, rows, key) for key, member in value.items()}
    return value


def _empty(block: torch.nn.Module) -> None:
    """Let go of a block's weights, also for the system: glibc keeps what is freed, measured at twice the need."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
    with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)
