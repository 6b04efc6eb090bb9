"""Sees, and changes, what blocks and their down projections do while a model runs: hooks, a look into fused experts.

An edit never touches a weight. Multiplying W[row, col] by a factor is the same as subtracting
(1 - factor) * W[row, col] * input[..., col] from output[..., row] of that down projection, so each row of a batch can
carry its own edits and one pass over the model answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.edits import Intervention, WeightEdit
from analyzer.forward.experts import watched_experts
from analyzer.forward.mlps import Mlp, Passage, Record


@contextmanager
def intercepted(
    mlps: Mapping[int, Mlp],
    interventions: Sequence[Intervention],
    values: Mapping[Coordinate, float],
    rows: Callable[[], list[int]],
    tokens: int,
    record: Record | None = None,
) -> Iterator[None]:
    """While the context lasts, run row i of a batch with the edits of interventions[i], and record passages.

    `values` are those of the weights that edits need. `rows` tells which rows of the batch the running block has in
    hand, each of so many tokens; what is recorded is what the model goes on with. Raises ForwardError where an edit is
    of a kind that is not done here.
    """
    edited: dict[tuple[int, int | None], list[tuple[int, int, int, float]]] = {}
    for batch_row, intervention in enumerate(interventions):
        for edit in intervention.edits:
            if not isinstance(edit, WeightEdit):
                raise ForwardError(f"{type(edit).__name__} is a kind of edit that this version cannot do")
            c = edit.coordinate
            removed = values[c] * (1.0 - float(edit.factor))
            edited.setdefault((c.layer, c.expert), []).append((batch_row, c.row, c.col, removed))

    def change(layer: int, expert: int | None, which: torch.Tensor, entered: torch.Tensor, left: torch.Tensor) -> Any:
        """Return the output [n, hidden_size] of the tokens at the places `which` [n] with the edits in place."""
        here = edited.get((layer, expert))
        if not here:
            return left
        left = left.clone()
        batch_rows = torch.tensor(rows(), device=which.device)[which // tokens]
        for batch_row, row, col, removed in here:
            mine = batch_rows == batch_row
            exact = left[mine, row].float() - removed * entered[mine, col].float()
            left[mine, row] = exact.to(left.dtype)
        return left

    with ExitStack() as stack:
        for layer, mlp in mlps.items():
            if mlp.dense is not None and (record is not None or (layer, None) in edited):
                keep = record
                if mlp.gate is not None and record is not None:
                    waiting: list[Passage] = []
                    keep = waiting.append
                    stack.callback(mlp.gate.register_forward_hook(_gate_hook(waiting, record)).remove)
                hook = _dense_hook(layer, change, keep)
                stack.callback(mlp.dense.register_forward_hook(hook).remove)
            if mlp.experts is not None and (record is not None or any(place[0] == layer for place in edited)):
                stack.enter_context(watched_experts(mlp.experts, mlp.down, layer, change, record))
        yield


def _dense_hook(layer: int, change: Callable[..., torch.Tensor], record: Record | None) -> Callable[..., Any]:
    def hook(_module: object, args: Any, output: torch.Tensor) -> torch.Tensor:
        # [rows, T, channels]; some models flatten the first two.
        entered, left = args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1])
        which = torch.arange(left.shape[0], device=left.device)
        left = change(layer, None, which, entered, left)
        if record is not None:
            record(Passage(layer, None, which, entered, left, torch.ones(left.shape[0], device=left.device)))
        return left.reshape(output.shape)

    return hook


def _gate_hook(waiting: list[Passage], record: Record) -> Callable[..., None]:
    def hook(_module: object, _args: object, output: torch.Tensor) -> None:
        while waiting:  # the gate runs after the shared expert
            record(replace(waiting.pop(), routed=torch.sigmoid(output.float()).reshape(-1)))

    return hook


class EnoughError(Exception):
    """Ends a pass over the model before its last block."""


class Watched:
    """What the hooks of one pass have seen, of so many rows of so many tokens."""

    def __init__(self, rows: int, tokens: int) -> None:
        self.streams: dict[int, NDArray[np.float32]] = {}
        self.outputs: dict[int, NDArray[np.float32]] = {}
        self.entering: list[NDArray[np.float32]] = []
        self._rows, self._tokens = rows, tokens

    def on_first(self, _module: object, args: Any, kwargs: Any) -> None:
        """Keep the stream before the first block, whose hook before it runs this is."""
        self.entering.append(self._by_rows(args[0] if args else kwargs["hidden_states"], "takes"))

    def on_block(self, layer: int, ends: Callable[[int], bool]) -> Callable[..., None]:
        """Return the hook of a block, which keeps the stream after it and ends the pass where `ends` says so."""

        def hook(_module: object, _args: object, output: Any) -> None:
            self.streams[layer] = self._by_rows(_first(output), "gives")
            if ends(layer):
                raise EnoughError

        return hook

    def on_mlp(self, layer: int) -> Callable[..., None]:
        """Return the hook of an MLP, which keeps what it adds. Raises ForwardError where that is not of each token."""

        def hook(_module: object, _args: object, output: Any) -> None:
            left = _first(output)
            left = left.reshape(-1, left.shape[-1])
            if left.shape[0] != self._rows * self._tokens and self._rows == 1:
                left = left[: self._tokens]  # what is padded to a window
            if left.shape[0] != self._rows * self._tokens:
                raise ForwardError(f"an MLP gives {list(left.shape)}, which is not followed yet: verify another model")
            self.outputs[layer] = numpy_of(left)

        return hook

    def _by_rows(self, hidden: torch.Tensor, what: str) -> NDArray[np.float32]:
        if hidden.ndim == 2 and self._rows == 1:
            hidden = hidden[None]
        if hidden.ndim != 3 or hidden.shape[0] != self._rows or hidden.shape[1] < self._tokens:
            raise ForwardError(
                f"a block {what} a residual stream of {list(hidden.shape)} for {self._rows} x {self._tokens} tokens, "
                "which is not followed yet: it can be scanned, but not verified"
            )
        return numpy_of(hidden[:, : self._tokens])  # some pad their inputs to a window


def _first(output: Any) -> torch.Tensor:
    """Return the hidden states that a module gives, alone or before other things."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def numpy_of(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a copy: models go on to change their activations in place (Falcon adds attention to what its MLP adds)."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()
