"""Sees, and changes, what a model's down projections do while it runs: hooks, and a look into fused experts.

An edit never touches a weight. Multiplying W[row, col] by a factor is the same as subtracting
(1 - factor) * W[row, col] * input[..., col] from output[..., row] of that down projection, so each row of a batch can
carry its own edits and one pass over the model answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

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
