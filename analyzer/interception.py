"""Sees, and changes, what a model's down projections do while it runs: hooks, and a look into fused experts.

Zeroing a weight never edits it. Setting W[row, col] to 0 is the same as subtracting W[row, col] * input[..., col] from
output[..., row] of that down projection, so each row of a batch can carry its own set of zeroed weights and one pass
over the model answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from analyzer.architectures import parse_down_projection
from analyzer.errors import ForwardError
from analyzer.records import Coordinate

Zeroed = Mapping[Coordinate, float]
"""The weights that one row of a batch runs without, and their values."""

PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm", "bmm"})


@dataclass(frozen=True)
class Mlp:
    """Where one block has its MLP: a down projection of its own, fused experts, or both (shared experts)."""

    block: str
    dense: torch.nn.Module | None
    experts: torch.nn.Module | None
    whole: torch.nn.Module
    """The module whose output is all that the MLP adds: the down projection, or the mixture of experts."""
    gate: torch.nn.Module | None = None
    """Its sigmoid weighs what the shared expert, the dense one, adds to the others (Qwen's mixtures)."""


@dataclass(frozen=True)
class Passage:
    """What went through one down projection: of n tokens, their flat places in the batch, and of experts the weight
    that the router gave them."""

    layer: int
    expert: int | None
    tokens: torch.Tensor  # [n]
    entered: torch.Tensor  # [n, intermediate_size]
    left: torch.Tensor  # [n, hidden_size]
    routed: torch.Tensor  # [n]


Record = Callable[[Passage], None]


def find_mlps(name: str, model: torch.nn.Module) -> dict[int, Mlp]:
    """Return each block's MLP by layer. Raises ForwardError where there is none, or not one stack of blocks."""
    modules = dict(model.named_modules())
    dense: dict[int, torch.nn.Module] = {}
    experts: dict[int, tuple[str, torch.nn.Module]] = {}
    blocks: dict[int, str] = {}
    for parameter_name, parameter in model.named_parameters():
        parsed = parse_down_projection(parameter_name.removesuffix(".weight"))
        if parsed is None:
            continue
        if parsed.expert is not None:
            raise ForwardError(f"{name}: its experts are modules of their own: it can be scanned, but not yet verified")
        module_name = parameter_name.rpartition(".")[0]
        place = experts if parameter.ndim == 3 else dense
        if parsed.layer in place or blocks.setdefault(parsed.layer, parsed.block) != parsed.block:
            raise ForwardError(f"{name} has more than one stack of blocks: it can be scanned, but not yet verified")
        if parameter.ndim == 3:
            experts[parsed.layer] = (module_name, modules[module_name])
        else:
            dense[parsed.layer] = modules[module_name]
    if not blocks:
        raise ForwardError(f"{name}: {type(model).__name__} has no down projection that this version knows")
    mlps = {}
    for layer, block in sorted(blocks.items()):
        if layer in experts:
            experts_name, module = experts[layer]
            whole = modules[experts_name.rpartition(".")[0]]
            mlps[layer] = Mlp(block, dense.get(layer), module, whole, getattr(whole, "shared_expert_gate", None))
        else:
            mlps[layer] = Mlp(block, dense[layer], None, dense[layer])
    return mlps


@contextmanager
def intercepted(
    mlps: Mapping[int, Mlp],
    interventions: Sequence[Zeroed],
    rows: Callable[[], list[int]],
    tokens: int,
    record: Record | None = None,
) -> Iterator[None]:
    """While the context lasts, run row i of a batch without the weights of interventions[i], and record passages.

    `rows` tells which rows of the batch the running block has in hand, each of so many tokens; what is recorded is
    what the model goes on with.
    """
    zeroed: dict[tuple[int, int | None], list[tuple[int, int, int, float]]] = {}
    for batch_row, weights in enumerate(interventions):
        for c, value in weights.items():
            zeroed.setdefault((c.layer, c.expert), []).append((batch_row, c.row, c.col, value))

    def change(layer: int, expert: int | None, which: torch.Tensor, entered: torch.Tensor, left: torch.Tensor) -> Any:
        """Return the output [n, hidden_size] of the tokens at the places `which` [n] without the zeroed weights."""
        here = zeroed.get((layer, expert))
        if not here:
            return left
        left = left.clone()
        batch_rows = torch.tensor(rows(), device=which.device)[which // tokens]
        for batch_row, row, col, value in here:
            mine = batch_rows == batch_row
            exact = left[mine, row].float() - value * entered[mine, col].float()
            left[mine, row] = exact.to(left.dtype)
        return left

    with ExitStack() as stack:
        for layer, mlp in mlps.items():
            if mlp.dense is not None and (record is not None or (layer, None) in zeroed):
                keep = record
                if mlp.gate is not None and record is not None:
                    waiting: list[Passage] = []
                    keep = waiting.append
                    stack.callback(mlp.gate.register_forward_hook(_gate_hook(waiting, record)).remove)
                hook = _dense_hook(layer, change, keep)
                stack.callback(mlp.dense.register_forward_hook(hook).remove)
            if mlp.experts is not None and (record is not None or any(place[0] == layer for place in zeroed)):
                stack.enter_context(_watched(mlp.experts, layer, change, record))
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


@contextmanager
def _watched(
    experts: torch.nn.Module, layer: int, change: Callable[..., torch.Tensor], record: Record | None
) -> Iterator[None]:
    """Run fused experts under a mode that sees each product with their down projections."""
    forward = experts.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _ExpertsMode(experts, layer, change, record, (*args, *kwargs.values())):
            return forward(*args, **kwargs)

    experts.forward = watched
    try:
        yield
    finally:
        experts.forward = forward


class _ExpertsMode(TorchFunctionMode):
    """Finds, among what fused experts compute, the products with `down_proj`, and which tokens they are for.

    Experts gather their tokens by torch.where on a mask, as (place among the chosen experts, token); the product that
    follows is in that order. Where all tokens go through all experts at once, in one batched product, the order is
    that of the tokens, and the router's weights are in the input already.
    """

    def __init__(
        self,
        experts: torch.nn.Module,
        layer: int,
        change: Callable[..., torch.Tensor],
        record: Record | None,
        arguments: tuple[Any, ...],
    ) -> None:
        super().__init__()
        weight = next(
            parameter for name, parameter in experts.named_parameters() if parameter.ndim == 3 and "down" in name
        )
        self._storage, self._start = weight.untyped_storage().data_ptr(), weight.data_ptr()
        self._stride = weight.stride(0) * weight.element_size()
        self._layer, self._change, self._record = layer, change, record
        self._routing = next((a for a in arguments[2:] if isinstance(a, torch.Tensor) and a.ndim == 2), None)
        self._gathered: tuple[torch.Tensor, torch.Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "where" and len(args) == 1:
            self._gathered = result
        if name not in PRODUCTS or len(args) < 2 or not isinstance(args[1], torch.Tensor):
            return result
        weight = args[1]
        if weight.untyped_storage().data_ptr() != self._storage:
            return result
        with torch._C.DisableTorchFunction():
            if weight.ndim == 3:  # [experts, tokens, channels]
                which = torch.arange(result.shape[1], device=result.device)
                return torch.stack([self._pass(e, which, None, args[0][e], result[e]) for e in range(result.shape[0])])
            assert self._gathered is not None
            place, which = self._gathered
            if which.shape[0] != result.shape[0]:
                raise RuntimeError("the experts gather their tokens in a way that this version does not know")
            return self._pass((weight.data_ptr() - self._start) // self._stride, which, place, args[0], result)

    def _pass(
        self, expert: int, which: torch.Tensor, place: torch.Tensor | None, entered: torch.Tensor, left: torch.Tensor
    ) -> torch.Tensor:
        left = self._change(self._layer, expert, which, entered, left)
        if self._record is not None:
            routed = torch.ones(left.shape[0], device=left.device)
            if place is not None and self._routing is not None:
                routed = self._routing[which, place].float()
            self._record(Passage(self._layer, expert, which, entered, left, routed))
        return left
