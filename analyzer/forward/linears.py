"""The inputs of a block's linear maps: seen, and changed, before these multiply, each row of a batch by itself.

Experts are none of these, whether they share a parameter or not: what they are handed are no rows of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from analyzer.base.errors import ForwardError
from analyzer.forward.blocks.mlps import Block, Writer
from analyzer.forward.edits import InputEdit, Intervention
from analyzer.model.rows import tokens_come_first
from analyzer.model.stock import LINEARS

OnInput = Callable[[str, int, torch.Tensor], torch.Tensor]
"""Returns what a linear map, by its name in the model, is to see of a row of the batch in place of its input there.

Both are [tokens, in_features]; one that only looks returns what it was given.
"""


def linears_of(block: Block) -> dict[str, torch.nn.Module]:
    """Return the linear maps of a block by their names in the model, those of experts left out."""
    experts = {module for mlp in block.mlps for writer in mlp.writers for module in experts_of(writer)}
    inside = block.module.named_modules()
    return {
        f"{block.name}.{name}": module
        for name, module in inside
        if isinstance(module, LINEARS) and module not in experts
    }


def experts_of(writer: Writer) -> list[torch.nn.Module]:
    """Return the modules that are experts, or have a parameter of theirs, and all that is within them."""
    tops = {down.partition(".")[0] for down in writer.downs if "." in down}
    return [module for top in sorted(tops) for module in writer.module.get_submodule(top).modules()]


@contextmanager
def changed_inputs(
    linears: Mapping[str, torch.nn.Module], on_input: OnInput, rows: Callable[[], list[int]], tokens: int
) -> Iterator[None]:
    """While the context lasts, have these linear maps see what `on_input` makes of each row's input.

    `rows` tells which rows of the batch the running block has in hand, each of so many tokens; what a row is padded
    with is left as it is.
    """
    with ExitStack() as stack:
        for name, module in linears.items():
            stack.callback(module.register_forward_pre_hook(_hook(name, on_input, rows, tokens)).remove)
        yield


def changing(block: Block, interventions: Sequence[Intervention]) -> OnInput | None:
    """Return what the interventions, one for each row, do to the inputs of a block; null where none does anything.

    Raises ForwardError where a block that runs for several layers is to do something else in some of them.
    """
    changes: dict[int, Callable[[str, torch.Tensor], torch.Tensor]] = {}
    for row, intervention in enumerate(interventions):
        here = [each for each in intervention.edits if isinstance(each, InputEdit) and each.layer in block.layers]
        if here and (len(here) < len(block.layers) or len({each.change for each in here}) > 1):
            raise ForwardError(f"{block.name} runs for several layers: change its inputs in all of them, alike")
        if here:
            changes[row] = here[0].change

    def on_input(name: str, row: int, entered: torch.Tensor) -> torch.Tensor:
        change = changes.get(row)
        return entered if change is None else change(name, entered)

    return on_input if changes else None


class InputStatistics:
    """What linear maps saw, by their names: an InputEdit's change that changes nothing.

    `largest` are the largest magnitudes and `squares` the squared norms of their input channels, [in_features] each in
    float64; `tokens` is how many tokens they saw.
    """

    def __init__(self) -> None:
        self.largest: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        self.tokens: dict[str, int] = {}

    def __call__(self, name: str, entered: torch.Tensor) -> torch.Tensor:
        """Add what a linear map sees of one row, [tokens, in_features], and return it."""
        values = entered.detach().float()
        largest, squares = values.abs().amax(dim=0).double().cpu(), values.square().sum(dim=0).double().cpu()
        if name in self.tokens:
            largest, squares = torch.maximum(self.largest[name], largest), self.squares[name] + squares
        self.largest[name], self.squares[name] = largest, squares
        self.tokens[name] = self.tokens.get(name, 0) + len(entered)
        return entered


def _hook(
    name: str, on_input: OnInput, rows: Callable[[], list[int]], tokens: int
) -> Callable[..., tuple[Any, ...] | None]:
    def hook(_module: object, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        in_hand = rows()
        count = len(in_hand)
        first = tokens_come_first(args[0], count)
        entered = args[0].transpose(0, 1) if first else args[0]
        shape = list(entered.shape)
        # Some flatten rows and tokens; a mixture may gather only some of the tokens.
        flat = len(shape) == 2 and shape[0] % count == 0 and shape[0] // count >= tokens
        if not flat and (len(shape) < 3 or shape[0] != count):
            raise ForwardError(f"{name} takes {shape} for {count} x {tokens} tokens, which is not followed yet")
        by_row = entered.reshape(count, -1, shape[-1])
        own = [each[:tokens] for each in by_row]
        seen = [on_input(name, row, each) for row, each in zip(in_hand, own, strict=True)]
        if all(new is old for new, old in zip(seen, own, strict=True)):
            return None
        whole = [torch.cat([new, each[tokens:]]) for new, each in zip(seen, by_row, strict=True)]
        changed = torch.stack(whole).reshape(shape).to(entered.dtype)
        return changed.transpose(0, 1) if first else changed, *args[1:]

    return hook
