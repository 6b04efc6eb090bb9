"""Runs a block on a few rows of its batch at a time, and rows that are still alike but once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

SHARED_BIAS = "position_bias"  # of MPT's attention, [heads, 1, T]: one for all rows of a batch
FLAT_BIAS = "alibi"  # of BLOOM's attention, [rows * heads, 1, T]


class Rows:
    """The rows of a batch on their way through a block: attention's memory grows with rows, weights' does not."""

    def __init__(self, row_bytes: int, heads: int) -> None:
        """A block runs as many rows at once as take `row_bytes` of memory; `heads` is its attention's number."""
        self.row_bytes = row_bytes
        self.in_hand = [0]
        """The rows of the batch that the running block has in hand."""
        self.kind: Callable[[str, int], Hashable] = lambda _, row: row
        """Tells, by block and row, rows that are alike after that block: they run but once."""
        self._heads = heads

    def run(self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what `forward`, that of the block of this name, makes of the whole batch."""
        hidden = args[0] if args else kwargs["hidden_states"]
        batch = hidden.shape[0]
        at_once = max(1, self.row_bytes // self.bytes_of_one(hidden))
        kinds = [self.kind(name, row) for row in range(batch)]
        first = {kind: row for row, kind in reversed(list(enumerate(kinds)))}  # of each kind
        distinct = sorted(first.values())
        outputs = []
        for start in range(0, len(distinct), at_once):
            self.in_hand = distinct[start : start + at_once]
            if len(self.in_hand) == batch:
                return forward(*args, **kwargs)
            few = {key: _picked(value, batch, self.in_hand, key) for key, value in kwargs.items()}
            outputs.append(forward(*_picked(args, batch, self.in_hand), **few))
        place = {row: index for index, row in enumerate(distinct)}
        back = torch.tensor([place[first[kind]] for kind in kinds], device=hidden.device)
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs)[back]
        return (torch.cat([output[0] for output in outputs])[back], *outputs[0][1:])

    def bytes_of_one(self, hidden: torch.Tensor) -> int:
        """Return about what a block needs for one row: its inner activations, and eager attention's weights twice."""
        tokens, width = hidden.shape[-2:]
        return int(tokens * (16 * width + 2 * self._heads * tokens) * 4)


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
