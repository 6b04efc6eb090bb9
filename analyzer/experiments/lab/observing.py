"""Where in a window a weight writes: its channel of the down projection's output, and of the stream after it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.records import Coordinate, Place
from analyzer.forward.blocks.mlps import Passage
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.interception import EnoughError, intercepted
from analyzer.forward.runner import Runner
from analyzer.verify.settings import DEFAULT_THRESHOLDS


@dataclass(frozen=True)
class Written:
    """What a weight does in a window: `output` is its row of what its down projection gives, `entered` its input.

    Both are [T], 0 where no token went through it. `large` tells at which positions its channel of the stream is a
    super activation, from its layer through the two that follow; null where the stream is not one.
    """

    output: NDArray[np.float32]
    entered: NDArray[np.float32]
    large: NDArray[np.bool_] | None

    @property
    def super_positions(self) -> frozenset[int]:
        """The positions of the super activation, none where that is not known."""
        return frozenset() if self.large is None else frozenset(map(int, np.flatnonzero(self.large)))

    def largest(self, count: int) -> frozenset[int]:
        """Return the positions of so many of the largest outputs, those that come first where they are equal."""
        order = np.argsort(-np.abs(self.output), kind="stable")
        return frozenset(map(int, order[:count]))


def observe(runner: Runner, ids: Sequence[int], weights: Sequence[Coordinate]) -> dict[Coordinate, Written]:
    """Run one window, as far as is needed, and return what each weight does in it."""
    tokens = runner.length(ids)
    thresholds = DEFAULT_THRESHOLDS
    at: dict[Place, list[Coordinate]] = {}
    for c in weights:
        at.setdefault(c.place, []).append(c)
    output = {c: np.zeros(tokens, np.float32) for c in weights}
    entered = {c: np.zeros(tokens, np.float32) for c in weights}
    large: dict[Coordinate, NDArray[np.bool_] | None] = {c: np.ones(tokens, np.bool_) for c in weights}
    last = max(c.layer for c in weights) + thresholds.persists

    def passing(passage: Passage) -> None:
        here = passage.tokens.cpu() < tokens  # what is padded to a window
        which = passage.tokens.cpu()[here].numpy()
        for c in at.get(passage.place, ()):
            output[c][which] = passage.left[:, c.row].float().cpu()[here].numpy()
            entered[c][which] = passage.entered[:, c.col].float().cpu()[here].numpy()

    def after(layer: int, stream: torch.Tensor) -> None:
        watched = [c for c in weights if c.layer <= layer <= c.layer + thresholds.persists]
        if watched and (stream.ndim != 3 or stream.shape[2] != runner.hidden_size):
            large.update(dict.fromkeys(watched))
        elif watched:
            magnitudes = stream[0, :tokens].detach().float().abs().cpu().numpy()
            middle = np.median(magnitudes)
            for c in watched:
                if (so_far := large[c]) is not None:
                    large[c] = so_far & (magnitudes[:, c.row] >= thresholds.activation_ratio * middle) & (middle > 0)
        if layer >= last:
            raise EnoughError

    with (
        intercepted(runner.stack, [UNTOUCHED], {}, lambda: runner.blocks.rows.in_hand, tokens, passing),
        ExitStack() as stack,
    ):
        for block in runner.stack:
            stack.callback(block.module.register_forward_hook(_hook(iter(block.layers), after)).remove)
        with suppress(EnoughError), runner.running():
            runner.blocks.body(torch.tensor([list(ids)], device=runner.blocks.device))
    return {c: Written(output[c], entered[c], large[c]) for c in weights}


def _hook(layers: Any, after: Any) -> Any:
    def hook(_module: object, _args: object, output: Any) -> None:
        after(next(layers), output if isinstance(output, torch.Tensor) else output[0])

    return hook
