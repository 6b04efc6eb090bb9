"""Activations quantized as linear maps see them: all alike, the super activation held out, or smoothed before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from analyzer.experiments.quantization.matrices import StoredMatrix
from analyzer.experiments.quantization.rounding import hold_out, round_activations, smoothing
from analyzer.forward.blocks.mlps import Block
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.linears import InputStatistics, linears_of
from analyzer.forward.runner import Runner
from analyzer.model.weights import StoredWeights

ALPHA = 0.85  # how much of the difficulty goes to the weights: of Llama in SmoothQuant's code, and of Table 3


class ActivationRounding:
    """An InputEdit's change: what a linear map sees is quantized, in steps per token or per tensor.

    `held_out` leaves the largest of each tensor as it is; `factors`, by linear map, divide its channels before and
    multiply them after (SmoothQuant).
    """

    def __init__(
        self, bits: int, per: str, *, held_out: bool = False, factors: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self._bits, self._per = bits, per
        self._round = hold_out if held_out else round_activations
        self._factors = factors or {}

    def __call__(self, name: str, entered: torch.Tensor) -> torch.Tensor:
        """Return a row's input of the linear map of this name, [tokens, in_features], quantized."""
        factors = self._factors.get(name)
        if factors is None:
            return self._round(entered, bits=self._bits, per=self._per)
        factors = factors.to(entered.device, entered.dtype)
        return self._round(entered / factors, bits=self._bits, per=self._per) * factors


def smoothing_factors(
    runner: Runner,
    weights: StoredWeights,
    matrices: Mapping[str, StoredMatrix],
    seen: InputStatistics,
    ids: Sequence[int],
) -> dict[str, torch.Tensor]:
    """Return SmoothQuant's factors of each linear map that it smooths, [in_features]: those that see a norm's output.

    Such a norm's own weights take the factors up; what other maps see is left as it is, as in SmoothQuant's code.
    `seen` is what the maps saw in calibration, and `ids` are run to tell which see what norms give.
    """
    stored = {each.linear: name for name, each in matrices.items()}
    found: dict[str, torch.Tensor] = {}
    for linears in fed_by_norms(runner, ids):
        if not all(linear in stored for linear in linears):
            continue
        columns = [
            matrices[stored[each]].matrices(weights.read([stored[each]])[stored[each]])[0].abs().amax(dim=0)
            for each in linears
        ]
        largest = seen.largest[linears[0]].float()
        factors = smoothing(largest, torch.stack(columns).amax(dim=0), alpha=ALPHA)
        found |= dict.fromkeys(linears, factors)
    return found


def fed_by_norms(runner: Runner, ids: Sequence[int]) -> list[list[str]]:
    """Return the linear maps that see, as it is, what a norm with weights gives: together those of one norm.

    Runs these ids to tell.
    """
    found: dict[str, list[str]] = {}
    with ExitStack() as stack:
        for block in runner.stack:
            stack.enter_context(_watched(block, found))
        runner.states([ids], [UNTOUCHED])
    return list(found.values())


@contextmanager
def _watched(block: Block, found: dict[str, list[str]]) -> Iterator[None]:
    """While the context lasts, put down for each norm of a block which linear maps see what it gives."""
    given: dict[str, torch.Tensor] = {}  # by norm; held, so that their memory is not given to others

    def after_norm(name: str) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                given[name] = output

        return hook

    def before_linear(name: str) -> Any:
        def hook(_module: object, args: tuple[Any, ...]) -> None:
            for norm, output in given.items():
                if args[0].data_ptr() == output.data_ptr() and args[0].numel() == output.numel():
                    linears = found.setdefault(norm, [])
                    linears += [name] if name not in linears else []

        return hook

    with ExitStack() as stack:
        for name, module in block.module.named_modules():
            parameters = list(module.parameters())
            if parameters and not list(module.children()) and all(each.ndim == 1 for each in parameters):
                stack.callback(module.register_forward_hook(after_norm(f"{block.name}.{name}")).remove)
        for name, module in linears_of(block).items():
            stack.callback(module.register_forward_pre_hook(before_linear(name)).remove)
        stack.callback(block.module.register_forward_hook(lambda *_: given.clear()).remove)
        yield
