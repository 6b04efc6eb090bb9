"""A model's two ends: an embedding of which only the rows in use are read, and an output head run by slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from analyzer.model.stock import BodyOutput
from analyzer.model.weights import StoredWeights

ASKED = [getattr(torch.Tensor, name).__get__ for name in ("dtype", "device")]  # of a weight that is not read for that
# Of the output head, per slice: weights, 64 MiB in float32, and tokens, so that what is made of them stays in a cache.
HEAD_NUMBERS, HEAD_TOKENS = 1 << 24, 1 << 12


def embed_by_rows(
    embedding: Any, weights: StoredWeights, source: str, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Have an embedding read only the rows of the tokens it is asked for, of the tensor `source`.

    Raises CheckpointError where that is stored in another shape than the embedding has.
    """
    vocabulary, width = embedding.weight.shape
    weights.check_shape(source, (vocabulary, width))
    weights.dtype(source)  # a wrong one is told now
    embedding.padding_idx = None  # it is one of a whole embedding's rows
    none = torch.empty(0, width, dtype=dtype, device=device)
    embedding.weight = torch.nn.Parameter(none, requires_grad=False)
    known: dict[int, torch.Tensor] = {}

    def load_rows(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, places = torch.unique(args[0], return_inverse=True)
        wanted = ids.tolist()
        known.update(weights.read_rows(source, [i for i in wanted if i not in known]))
        rows = torch.stack([known[i] for i in wanted]).to(device, dtype)
        module.weight = torch.nn.Parameter(rows, requires_grad=False)
        return (places, *args[1:])

    embedding.register_forward_pre_hook(load_rows)


class _Weight(torch.Tensor):
    """Stands for the whole weight of a head, which is read where a model computes with it (MobileBERT)."""

    head: SlicedHead

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ASKED:
            args = [each.head.whole() if isinstance(each, _Weight) else each for each in args]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class SlicedHead(torch.nn.Module):
    """A linear map to the vocabulary whose weights are kept as they are stored, and multiplied a slice at a time."""

    def __init__(
        self, weights: StoredWeights, source: str, head: Any, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Take the place of `head`, with the weights of the tensor `source`.

        Raises CheckpointError where that is stored in another shape than the head has.
        """
        super().__init__()
        self.weight = torch.empty(0, dtype=dtype, device=device).as_subclass(_Weight)
        self.weight.head = self
        self.bias = getattr(head, "bias", None)
        self._weights, self._source, self._shape = weights, source, tuple(head.weight.shape)
        self._device, self._dtype = device, dtype
        self._stored: torch.Tensor | None = None
        self._only: tuple[slice | torch.Tensor, torch.Tensor] | None = None
        rows = min(HEAD_TOKENS, max(1, HEAD_NUMBERS // self._shape[1]))
        self.slices = [range(n, min(n + rows, self._shape[0])) for n in range(0, self._shape[0], rows)]
        """The vocabulary in slices that are multiplied at once."""
        weights.check_shape(source, self._shape)
        weights.dtype(source)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [..., vocabulary] for [..., hidden_size]; the weights are read when they are first needed."""
        if self._only is not None:
            tokens, weight = self._only
            return torch.nn.functional.linear(hidden, weight, None if self.bias is None else self.bias[tokens])
        logits = torch.cat([torch.nn.functional.linear(hidden, self._slice(rows)) for rows in self.slices], dim=-1)
        return logits if self.bias is None else logits + self.bias

    @contextmanager
    def only(self, tokens: range | torch.Tensor) -> Iterator[None]:
        """While the context lasts, return the logits of a slice of the vocabulary alone, or of tokens, ascending."""
        if isinstance(tokens, range):
            self._only = slice(tokens.start, tokens.stop), self._slice(tokens)
        else:
            self._only = tokens, self._rows(tokens)
        try:
            yield
        finally:
            self._only = None

    def whole(self) -> torch.Tensor:
        """Return the whole weight, [vocabulary, hidden_size]."""
        return torch.cat([self._slice(rows) for rows in self.slices])

    def _slice(self, rows: range, which: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Return the weights of a slice of the vocabulary, or of `which` of them."""
        if self._stored is None and self._shape[0] * self._shape[1] > HEAD_NUMBERS:
            decoded = self._weights.read_slice(self._source, rows)
            if decoded is not None:  # what is quantized and large is not kept as the floats that it stands for
                return decoded.to(self._device, self._dtype)[which]
        if self._stored is None:
            self._stored = self._weights.read([self._source])[self._source]
            if self._device.type != "cpu":
                self._stored = self._stored.to(self._device)
        return self._stored[rows.start : rows.stop][which].to(self._dtype)

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        parts = ((rows, tokens[(tokens >= rows.start) & (tokens < rows.stop)] - rows.start) for rows in self.slices)
        return torch.cat([self._slice(rows, which) for rows, which in parts if len(which)])


class Answer(torch.nn.Module):
    """Stands in for a model's body while its head runs: whatever part of it the head calls, this is the answer.

    What else the head reads of the body, such as multipliers, it has. The answer is what `states_of` has taken of one.
    """

    def __init__(self, hidden: torch.Tensor, body: torch.nn.Module) -> None:
        super().__init__()
        self.__dict__.update(hidden=hidden, body=body)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["body"], name)
        return Answer(self.hidden, found) if isinstance(found, torch.nn.Module) else found

    def forward(self, *_: Any, **__: Any) -> BodyOutput:
        """Return the hidden states, whatever was asked."""
        if self.hidden.ndim == 3:
            return BodyOutput(last_hidden_state=self.hidden)
        beside = self.hidden[:, :, 1:].transpose(1, 2).flatten(1, 2)
        return BodyOutput(last_hidden_state=self.hidden[:, :, 0], hidden_states=beside)  # the second of all it has


def states_of(output: Any, rows: int, tokens: int) -> torch.Tensor | None:
    """Return the hidden states of what a body gives, [rows, T, hidden_size]; null where it has none.

    Where streams that predict come beside the main one, each with as many tokens (ProphetNet), [rows, T, streams,
    hidden_size], the main one first.
    """
    hidden, *others = (None,) if output is None else output[:2]
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3 or hidden.shape[:2] != (rows, tokens):
        return None
    beside, read = others[0] if others else None, getattr(output, "encoder_last_hidden_state", None)
    if not isinstance(beside, torch.Tensor) or beside is read or beside.ndim != 3:
        return hidden
    if beside.shape[::2] != hidden.shape[::2] or beside.shape[1] % tokens:
        return hidden
    streams = torch.cat([hidden, beside], dim=1)
    return streams.reshape(rows, -1, tokens, hidden.shape[2]).transpose(1, 2)
