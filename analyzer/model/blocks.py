"""Brings a stock model to life a block at a time: each block's weights come just before it runs and go after.

The model is built without weights. Tensors are read through the checkpoint (a local file, or ranges of the Hub at the
pinned commit) and put in place by transformers' own loader (stock.py). While a block runs, the next one's bytes are
read. A model that is small enough keeps its blocks once they are loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch

from analyzer.base.errors import CheckpointError, ForwardError, shown
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.model.cost import Cost
from analyzer.model.ends.head import OutputHead
from analyzer.model.ends.stored import Answer, SlicedHead, embed_by_rows, states_of
from analyzer.model.layouts.gguf import gguf_rules, open_weights
from analyzer.model.loading.ahead import ReadAhead
from analyzer.model.loading.staging import staging_to
from analyzer.model.rows import Rows
from analyzer.model.stock import (
    Loader,
    build_empty,
    check_text_alone,
    initial_value,
    input_embedding,
    output_head,
    start_token,
    tied_parameters,
)
from analyzer.model.tokens import half
from analyzer.model.weights import ChangeTensor

OUTSIDE = ""  # stands for what belongs to no block


class BlockwiseModel:
    """A stock model on one device whose blocks' weights come and go; call `body` and `head`, not the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Any,
        find_blocks: Callable[[torch.nn.Module, Mapping[str, str]], tuple[Sequence[str], tuple[str, ...]]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        keep_bytes: int,
        row_bytes: int,
        change: ChangeTensor | None = None,
        encoder_alone: bool = False,
    ) -> None:
        """Build the model and load what is outside of its blocks.

        `find_blocks`, of the model and the parameter that each stored tensor goes into, names the modules that load on
        demand, in the order in which they run, and how the names of parameters begin that text alone never reaches, as
        those of a vision tower: they stay without weights. A model whose weights take
        at most `keep_bytes` keeps them. A block runs as many rows of a batch at once as take `row_bytes` of memory.
        `change` is asked, on a thread that reads ahead, for what to load in place of each tensor of a block; what is
        outside of the blocks, embedding and head, is loaded as it is. Of an encoder-decoder the encoder reads the
        first half of the ids and the decoder, from the token `start` on, says the second; with `encoder_alone` the
        encoder reads them all, and nothing follows. Raises CheckpointError where the checkpoint lacks weights,
        ForwardError where the encoder does not read text, or is to run by itself and cannot.
        """
        self.model = build_empty(config, dtype, checkpoint.tensors)
        self._weights = open_weights(checkpoint, self.model)
        check_text_alone(self._weights.model, self.model)
        self.start, self.encoder_alone = start_token(self.model), encoder_alone
        if encoder_alone and self.start is None:
            raise ForwardError(f"{type(self.model).__name__} does not run its encoder by itself: leave --tower out")
        self.device, self.dtype = device, dtype
        self.rows = Rows(row_bytes, getattr(config.get_text_config(), "num_attention_heads", 16))
        self.change, self.cost = change, Cost()
        self._loader = Loader(self.model, dtype, device, gguf_rules(checkpoint, config))
        targets = self._loader.targets(self._weights.names)
        places = {name: target for name, (target, _) in targets.items()}
        places |= {stored: places[name] for stored, name in self._weights.called.items() if name in places}
        self.targets: Mapping[str, str] = places
        """The parameter that each stored tensor goes into."""
        names, self._aside = find_blocks(self.model, places)
        self._blocks = {name: self.model.get_submodule(name) for name in names}
        self._around = {name: self._parts_around(name) for name in names}
        if unclaimed := self._weights.unclaimed(targets):
            raise CheckpointError(
                f"{self._weights.model} is quantized, and nothing here has a use for {shown(unclaimed[0])} "
                f"({len(unclaimed)} such tensors): it can be scanned, but not yet verified"
            )
        parameters = sum(p.numel() for block in self._blocks.values() for p in block.parameters())
        self._keep = parameters * dtype.itemsize <= keep_bytes
        self._loaded: set[str] = set()
        self._plan: dict[str, list[str]] = {OUTSIDE: [], **{name: [] for name in self._blocks}}
        for name, (target, _) in targets.items():
            if not target.startswith(self._aside):
                self._plan[self._block_of(target)].append(name)
        for buffer_name, buffer in self.model.named_buffers():
            if not buffer.is_meta:  # I-BERT makes some of its weights, for when it computes with integers
                module, _, name = buffer_name.rpartition(".")
                self.model.get_submodule(module)._buffers[name] = buffer.to(device)
        self.vocabulary = len(input_embedding(self._weights.model, self.model).weight)
        self._leave_aside()
        self._replace_ends({target: name for name, (target, as_it_is) in targets.items() if as_it_is})
        self.output = OutputHead(self.head, output_head(self.model), self.vocabulary)
        self._put(self._weights.read(self._plan[OUTSIDE]))
        self._tie()
        order = list(self._blocks)
        staging = None if change else staging_to(device, self._weights, {name: self._plan[name] for name in order})
        self._ahead = ReadAhead(lambda name: self.read(self._plan[name]), staging)
        for place, name in enumerate(order, start=1):
            self._on_demand(name, order[place : place + self._ahead.far])

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return tensors of blocks as the model gets them, with the change in place. Raises like StoredWeights."""
        tensors = self._weights.read(names)
        return {key: self.change(key, tensor) for key, tensor in tensors.items()} if self.change else tensors

    def notes(self) -> Iterator[str]:
        """Yield a line for each thing that runs otherwise here than a user may think."""
        if self.encoder_alone:
            yield "the encoder of an encoder-decoder ran by itself: it has no logits, so that no loss is measured"
        elif self.start is not None:
            yield (
                "it is an encoder-decoder: of each text the encoder reads the first half, and the decoder, from token "
                f"{self.start} on, is judged on the second; tokens and positions are the decoder's"
            )
        if self.encodings:
            yield (
                f"its weights are stored as {' and '.join(self.encodings)} and run as the floats that they stand for; "
                "what its own runtime quantizes besides, such as activations, is not"
            )

    @property
    def encodings(self) -> tuple[str, ...]:
        """How what is quantized is stored, empty where nothing is."""
        return self._weights.encodings

    def read_first(self, length: int) -> int:
        """Return how many of so many ids the encoder reads before; the others go through the blocks that are judged."""
        return 0 if self.start is None or self.encoder_alone else half(length)

    def body(self, ids: torch.Tensor) -> torch.Tensor:
        """Run everything but the output head on [rows, T] token ids; returns what the head is given (states_of).

        Of an encoder-decoder T is the decoder's.
        """
        entered: list[torch.nn.Module] = []
        left: list[Any] = []

        def enter(module: torch.nn.Module, _args: object) -> None:
            entered.append(module)

        def leave(module: torch.nn.Module, _args: object, output: Any) -> None:
            if module is entered[0]:
                left.append(output)
                raise _LeftBodyError

        with ExitStack() as stack:
            modules = map(self.model.get_submodule, list(self._around.values())[-1])
            for module in [self.model.get_encoder()] if self.encoder_alone else modules:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            self.cost.passes += 1
            with suppress(_LeftBodyError):
                self.model(**self._inputs(ids), use_cache=False)
        hidden = states_of(left[0] if left else None, *self.rows.shape)
        if hidden is None:
            raise ForwardError(f"{self._weights.model}: {type(self.model).__name__} cannot be run with text alone")
        return hidden

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the whole stock model, as it is, on [1, T] token ids; returns [T, vocabulary]."""
        self.cost.passes += 1
        return self._logits(self._inputs(ids))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, vocabulary] of the stock model's own head for [1, n, hidden_size]."""
        bodies = {outer: self.model.get_submodule(outer) for outer, *_ in self._around.values()}
        nothing = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        try:
            for name, body in bodies.items():
                self._replace(name, Answer(hidden, body))
            return self._logits(dict.fromkeys(self._inputs(nothing), nothing))
        finally:
            for name, body in bodies.items():
                self._replace(name, body)

    def _parts_around(self, block: str) -> list[str]:
        """Return the modules around a block, the outermost first, without those that hold the output head.

        The outermost that is called is the body.
        """
        head, parts = output_head(self.model), block.split(".")
        names = (".".join(parts[:end]) for end in range(1, len(parts)))
        within = "" if head is None or _is_embedding(head) else self._name_of(head)
        return [name for name in names if not within.startswith(f"{name}.")]

    def _replace(self, name: str, module: torch.nn.Module) -> None:
        holder, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(holder), last, module)

    def _inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the stock model is called with for [rows, T] token ids."""
        first = self.read_first(ids.shape[1])
        self.rows.shape = ids.shape[0], ids.shape[1] - first
        if self.start is None:
            return {"input_ids": ids}
        if self.encoder_alone:
            return {"input_ids": ids, "decoder_input_ids": torch.full_like(ids[:, :1], self.start)}
        said = torch.cat([torch.full_like(ids[:, :1], self.start), ids[:, first:-1]], dim=1)
        return {"input_ids": ids[:, :first], "decoder_input_ids": said}

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits = getattr(self.model(**inputs, use_cache=False), "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise ForwardError(f"{self._weights.model}: {type(self.model).__name__} has no logits of text alone")
        return logits[0]

    def _leave_aside(self) -> None:
        """Make what text does not reach empty, on the device: some models ask their first parameter where they are."""
        for name, parameter in list(self.model.named_parameters()):
            if name.startswith(self._aside):
                module, _, last = name.rpartition(".")
                empty = torch.empty(0, dtype=parameter.dtype, device=self.device)
                setattr(self.model.get_submodule(module), last, torch.nn.Parameter(empty, requires_grad=False))

    def _block_of(self, target: str) -> str:
        parts = target.split(".")
        names = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((name for name in names if name in self._blocks), OUTSIDE)

    def _on_demand(self, name: str, following: Sequence[str]) -> None:
        """Have a block loaded before it runs and, unless it is kept, dropped after, and run on few rows at a time."""
        block = self._blocks[name]
        forward = block.forward

        def load(*_: object) -> None:
            if name not in self._loaded:
                with self.cost.waiting():
                    arrive = self._ahead.take(name)
                self._put(arrive())
                self._check(name)
                self.cost.block_loads += 1
                self.cost.bytes_loaded += self._weights.stored_bytes(self._plan[name])
                self._loaded.add(name)
            for each in following:
                if each not in self._loaded:
                    self._ahead.begin(each)

        def drop(*_: object) -> None:
            if not self._keep:
                _empty(block)
                self._loaded.discard(name)

        block.register_forward_pre_hook(load)
        block.forward = lambda *args, **kwargs: self.rows.run(name, forward, args, kwargs)
        block.register_forward_hook(drop)

    def _put(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the model's parameters from these tensors."""
        mismatched, failed = self._loader.put(tensors)
        for name, stored, wanted in mismatched:
            raise self._weights.wrong_shape(name, stored, wanted)
        for name in failed:
            raise CheckpointError(
                f"{self._weights.model}: the checkpoint's tensors do not make up {shown(name)} as config.json "
                "describes it"
            )

    def _check(self, name: str) -> None:
        missing = [f"{name}.{p}" for p, value in self._blocks[name].named_parameters() if value.is_meta]
        if missing:
            raise self._lacks(missing[0], f" ({len(missing)} missing in all)")

    def _lacks(self, parameter: str, more: str = "") -> CheckpointError:
        """Return the error that nothing is stored for a parameter, with what is stored under another prefix."""
        last = parameter.split(".", 1)[-1]
        other = next((name for name in sorted(self._weights.checkpoint.tensors) if name.endswith(f".{last}")), None)
        hint = f"; it has {shown(other)}, a prefix that this model type does not have" if other else ""
        return CheckpointError(f"{self._weights.model}: the checkpoint lacks {parameter}{more}{hint}")

    def _replace_ends(self, sources: Mapping[str, str]) -> None:
        """Read the embedding by rows and the head in slices, where they are stored as they are used.

        `sources` tells the tensor that is stored as each parameter is used.
        """
        embedding, head = self.model.get_input_embeddings(), output_head(self.model)
        where: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        tied = tied_parameters(self.model)

        def same(module: torch.nn.Module) -> list[str]:
            """Return the parameters that are a module's weight: its own, and those that are tied to it."""
            name = f"{self._name_of(module)}.weight"
            first = tied.get(name, name)
            return [name, first, *(each for each, other in tied.items() if other == first)]

        of_head = [] if head is None else same(head)
        # FSMT's head is an embedding, which is then needed whole.
        whole = of_head if _is_embedding(head) else []
        of_ends = {*same(embedding), *of_head} - {*whole}
        ends: set[str] = set()
        for name, module in list(self.model.named_modules()):
            # Both stacks of an encoder-decoder may have an embedding of their own.
            token = (module is embedding or _is_embedding(module)) and f"{name}.weight" in of_ends
            token = token and not name.startswith(self._aside)
            source = next((sources[each] for each in same(module) if each in sources), None) if token else None
            if source is not None:
                embed_by_rows(module, self._weights, source, **where)
                ends.add(source)
        source = next((sources[each] for each in of_head if each in sources), None)
        if source is not None and not whole:
            self._replace(self._name_of(head), SlicedHead(self._weights, source, head, **where))
            ends.add(source)
        self._plan[OUTSIDE] = [name for name in self._plan[OUTSIDE] if name not in ends]

    def _tie(self) -> None:
        """Give parameters outside of the blocks their weights that are tied, or computed and not stored."""
        tied = tied_parameters(self.model)
        for name, parameter in list(self.model.named_parameters()):
            if not parameter.is_meta or self._block_of(name) != OUTSIDE:
                continue
            source = tied.get(name)
            with suppress(AttributeError):
                if source is not None and not self.model.get_parameter(source).is_meta:
                    module, _, last = name.rpartition(".")
                    setattr(self.model.get_submodule(module), last, self.model.get_parameter(source))
                    continue
            value = initial_value(self.model, name)
            if value is None and source is not None and self._block_of(source) != OUTSIDE:
                raise ForwardError(
                    f"{self._weights.model}: {shown(name)} is one with {shown(source)}, whose block loads on demand, "
                    "which is not followed yet: it can be scanned, but not verified"
                )
            if value is None:
                raise self._lacks(name)
            module, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(module), last, value.to(self.device))

    def _name_of(self, wanted: torch.nn.Module) -> str:
        return str(next(name for name, module in self.model.named_modules() if module is wanted))


def _is_embedding(module: object) -> bool:
    return isinstance(module, torch.nn.Embedding)


class _LeftBodyError(Exception):
    """Ends a run where the output head would begin."""


def _empty(block: torch.nn.Module) -> None:
    """Let go of a block's weights, also for the system: glibc keeps what is freed, measured at twice the need."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
    with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)
