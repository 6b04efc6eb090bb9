"""Sees how large what MLPs take and give is, and which experts tokens choose, in whatever passes are run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from analyzer.base.records import Place
from analyzer.forward.blocks.experts import watched_experts
from analyzer.forward.blocks.mlps import Block, Mlp, Passage
from analyzer.forward.blocks.units import Product
from analyzer.forward.linears import linears_of
from analyzer.forward.runner import Runner

TAKEN, ENTERED, GIVEN = "mlp_input", "down_input", "mlp_output"
SEEN = (TAKEN, ENTERED, GIVEN)


@dataclass
class Routed:
    """How many tokens chose an expert, and the sum of the router's weights for it, null where these are not seen."""

    chosen: int = 0
    weight: float | None = 0.0


class MlpFigures:
    """The largest magnitudes of what MLPs take and give, and how experts are chosen, over all that was watched.

    `largest` has the magnitudes by layer, of each that has an MLP, and one of SEEN, over all MLPs of the block;
    `unseen` are layers that have an MLP of which not all of these could be seen. `routed` has each expert that was
    watched.
    """

    def __init__(self) -> None:
        self.largest: dict[int, dict[str, float]] = {}
        self.unseen: set[int] = set()
        self.routed: dict[Place, Routed] = {}

    @contextmanager
    def watching(self, runner: Runner, lengths: Mapping[Any, int]) -> Iterator[None]:
        """While the context lasts, see whole passes: of each prompt its first positions, so many as it has `lengths`.

        Prompts are by their ids; those that have no length here are not looked at.
        """
        with ExitStack() as stack:
            for block in runner.stack:
                if block.mlps:
                    self.largest |= {layer: self.largest.get(layer, {}) for layer in block.layers}
                    watched = _Watched(self, runner, block, lengths)
                    stack.enter_context(watched.hung_up())
            yield

    def see(self, layer: int, what: str, magnitude: float) -> None:
        """Take in a magnitude."""
        here = self.largest.setdefault(layer, {})
        here[what] = max(here.get(what, 0.0), magnitude)

    def route(self, place: Place, chosen: int, weight: float | None) -> None:
        """Take in that tokens chose an expert."""
        routed = self.routed[place]
        routed.chosen += chosen
        routed.weight = None if weight is None or routed.weight is None else routed.weight + weight


class _Watched:
    """One block, which may be several layers in turn."""

    def __init__(self, figures: MlpFigures, runner: Runner, block: Block, lengths: Mapping[Any, int]) -> None:
        self._figures, self._rows, self._block, self._lengths = figures, runner.blocks.rows, block, lengths
        self._runs = 0
        self._fed: list[torch.Tensor] = []  # what the linear map that runs before a down projection took

    @property
    def _layer(self) -> int:
        return self._block.layers[(self._runs - 1) % len(self._block.layers)]

    @contextmanager
    def hung_up(self) -> Iterator[None]:
        """While the context lasts, see what the block's MLPs do."""
        with ExitStack() as stack:
            stack.callback(self._block.module.register_forward_pre_hook(self._begins).remove)
            alone = [mlp for mlp in self._block.mlps if not mlp.is_mixture]
            inner = {_inner_width(mlp) for mlp in alone}
            downs = {mlp.whole for mlp in alone}
            for module in linears_of(self._block).values() if alone else ():
                if module not in downs:
                    stack.callback(module.register_forward_hook(partial(self._feeds, inner)).remove)
            for mlp in self._block.mlps:
                hook = self._mixture if mlp.is_mixture else self._alone
                stack.callback(mlp.whole.register_forward_hook(hook, with_kwargs=True).remove)
                for writer in mlp.writers if mlp.is_mixture else ():
                    if not writer.downs:
                        stack.callback(writer.module.register_forward_hook(self._shared).remove)
                    elif self._block.is_latent:
                        self._figures.unseen.update(self._block.layers)
                    else:
                        self._figures.routed |= {at: self._figures.routed.get(at, Routed()) for at in writer.places}
                        stack.enter_context(watched_experts(writer, _as_it_is, self._expert))
            yield

    def _begins(self, _module: object, _args: object) -> None:
        self._runs += 1
        self._fed.clear()

    def _feeds(self, inner: set[int], _module: object, args: Any, output: torch.Tensor) -> None:
        """Keep what a linear map takes whose outputs are as many as an MLP's inner channels, or twice with its gate."""
        if any(output.shape[-1] in (width, 2 * width) for width in inner):
            self._fed[:] = args[:1]

    def _alone(self, _module: object, args: Any, _kwargs: object, output: Any) -> None:
        self._see(TAKEN, self._fed[0] if self._fed else None)
        self._see(ENTERED, args[0])
        self._see(GIVEN, _first(output))
        self._fed.clear()

    def _mixture(self, _module: object, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
        self._see(TAKEN, next(tensors, None))
        self._see(GIVEN, _first(output))

    def _shared(self, _module: object, args: Any, output: Any) -> None:
        self._see(ENTERED, args[0])
        self._see(GIVEN, _first(output))

    def _expert(self, passage: Passage) -> None:
        """See what a down projection took of an expert's tokens, which stand flat, row after row."""
        own = self._own(self._rows.shape[1]).nonzero()[:, 0].to(passage.tokens.device)
        mine = torch.isin(passage.tokens, own)
        if not mine.any():
            return
        entered = passage.entered[mine]
        self._figures.see(self._layer, ENTERED, _largest(entered))
        self._figures.see(self._layer, GIVEN, _largest(passage.left[mine]))
        # Where the router's weights are in what entered already, nothing of a token that chose others is left there.
        tokens = passage.tokens[mine] if passage.is_weighed else passage.tokens[mine][entered.any(dim=1)]
        weight = passage.routed[mine].double().sum().item() if passage.is_weighed else None
        self._figures.route(passage.place, len(set(tokens.tolist())), weight)

    def _see(self, what: str, values: torch.Tensor | None) -> None:
        rows, tokens = len(self._rows.in_hand), self._rows.shape[1]
        count = 0 if values is None else values.numel() // values.shape[-1]
        # By row, each with as many positions as there are tokens, or what these are padded to.
        if values is None or values.ndim > 3 or count % rows or count // rows < tokens:
            self._figures.unseen.add(self._layer)
            return
        own = self._own(count // rows).to(values.device)
        if own.any():
            self._figures.see(self._layer, what, _largest(values.reshape(count, -1)[own]))

    def _own(self, width: int) -> torch.Tensor:
        """Tell which of the flat places of the rows in hand, each of so many, are of a prompt, [rows * width]."""
        prompts = (self._rows.kind(self._block.name, row).prompt for row in self._rows.in_hand)
        lengths = torch.tensor([self._lengths.get(prompt, 0) for prompt in prompts])
        return (torch.arange(width)[None] < lengths[:, None]).flatten()


def _inner_width(mlp: Mlp) -> int:
    """Return how many inputs the down projection of an MLP has that is one linear map."""
    weight = mlp.whole.get_parameter("weight")
    return int(weight.shape[1] if isinstance(mlp.whole, torch.nn.Linear) else weight.shape[0])


def _as_it_is(
    _place: Place, _which: torch.Tensor, _entered: torch.Tensor, left: torch.Tensor, _product: Product
) -> torch.Tensor:
    return left


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())
