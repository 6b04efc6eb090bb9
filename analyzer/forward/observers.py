"""Observers: the residual stream after each block, and the attention's probabilities, of whatever pass is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from analyzer.base.errors import ForwardError
from analyzer.base.records import Place
from analyzer.forward.blocks.mlps import Passage
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.interception import intercepted
from analyzer.forward.losses.plain import token_losses
from analyzer.forward.runner import Runner
from analyzer.model.rows import tokens_come_first
from analyzer.model.stock import attending_by, attention_of
from analyzer.model.tokens import Window

OnStream = Callable[[int, torch.Tensor], None]
"""Called with a layer and the residual stream after it, [rows, T, hidden_size], edits in place."""
OnAttention = Callable[[int, Sequence[Sequence[int]], torch.Tensor], None]
"""Called with a layer, rows of the batch, alike ones together, and what each of these pays to whom:
[groups, heads, T, T], of queries and keys."""


@contextmanager
def observed(runner: Runner, *, stream: OnStream | None = None, attention: OnAttention | None = None) -> Iterator[None]:
    """While the context lasts, let what is run be seen by these.

    Of a block that runs rows in parts `attention` is called for each part. It is not called for a block whose modules
    give no probabilities: those without attention, and kernels that keep them to themselves. Raises ForwardError where
    `stream` is asked for and the model has several of them.
    """
    with ExitStack() as stack:
        if attention is not None:
            model = runner.blocks.model
            stack.enter_context(attending_by(model, attention_of(model.config)))
        for block in runner.stack:
            watched = _Watched(runner, block.layers, stream, attention)
            stack.callback(block.module.register_forward_pre_hook(watched.begins).remove)
            if attention is not None:
                for module in list(block.module.modules())[1:]:
                    stack.callback(module.register_forward_hook(watched.inside).remove)
            if stream is not None:
                stack.callback(block.module.register_forward_hook(watched.ends).remove)
        yield


def expert_outputs(runner: Runner, windows: Sequence[Window]) -> dict[Place, tuple[float, int]]:
    """Return of each expert the largest magnitude that its down projection gives over all tokens, and how many it has.

    Before the router's weight, but for a model that weighs what goes into its experts. Runs the text once. Experts that
    write a latent are left out.
    """
    blocks = [block for block in runner.stack if not block.is_latent]
    writers = [writer for block in blocks for mlp in block.mlps for writer in mlp.writers]
    found = {place: (0.0, 0) for writer in writers for place in writer.places if place[3] >= 0}

    def record(passage: Passage) -> None:
        given = passage.entered.any(dim=1)  # where all experts are handed all tokens, others are zeros
        if passage.place in found and given.any():
            largest, tokens = found[passage.place]
            here = float(passage.left[given].abs().max())
            found[passage.place] = max(largest, here), tokens + int(given.sum())

    def watch(numbers: Sequence[int]) -> AbstractContextManager[object]:
        rows, tokens = [UNTOUCHED] * len(numbers), runner.length(windows[numbers[0]].ids)
        return intercepted(runner.stack, rows, {}, lambda: runner.blocks.rows.in_hand, tokens, record)

    token_losses(runner, [(window, UNTOUCHED) for window in windows], watch=watch)
    return found


class _Watched:
    """One block, which may be several layers in turn."""

    def __init__(
        self, runner: Runner, layers: Sequence[int], stream: OnStream | None, attention: OnAttention | None
    ) -> None:
        self._runner, self._layers = runner, layers
        self._stream, self._attention = stream, attention
        self._runs, self._seen = 0, -1

    @property
    def _layer(self) -> int:
        return self._layers[(self._runs - 1) % len(self._layers)]

    def begins(self, _module: object, _args: object) -> None:
        self._runs, self._seen = self._runs + 1, -1

    def ends(self, _module: object, _args: object, output: Any) -> None:
        assert self._stream is not None
        rows = self._runner.blocks.rows.shape[0]
        given = output if isinstance(output, torch.Tensor) else output[0]
        stream = given.transpose(0, 1) if tokens_come_first(given, rows) else given
        if stream.ndim != 3 or stream.shape[0] != rows or stream.shape[2] != self._runner.hidden_size:
            raise ForwardError(
                f"{self._runner.name} has a residual stream of {list(given.shape)} for {rows} rows, where MLPs write "
                f"{self._runner.hidden_size} channels, which is not observed yet"
            )
        self._stream(self._layer, stream)

    def inside(self, _module: object, _args: object, output: Any) -> None:
        rows = self._runner.blocks.rows
        tokens = rows.shape[1]
        first = rows.in_hand[0]
        # The module around the attention hands its probabilities on; a decoder goes on to attend to its encoder.
        if not isinstance(output, tuple) or self._seen == first:
            return
        for each in output:
            if _are_probabilities(each, len(rows.in_hand), tokens):
                assert self._attention is not None
                self._seen = first
                alike = [[row for row, other in enumerate(rows.first) if other == one] for one in rows.in_hand]
                self._attention(self._layer, alike, each[..., :tokens, :tokens])
                return


def _are_probabilities(value: object, rows: int, tokens: int) -> bool:
    """Tell whether this is [rows, heads, T, T], with T the tokens or what they are padded to, of parts of one."""
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[0] != rows:
        return False
    square = value.shape[2] == value.shape[3] >= tokens
    return square and bool(value.min() >= 0) and bool(value.float().sum(dim=-1).max() <= 1.01)
