"""A look into experts: their products with their down projections, and which tokens these are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from analyzer.forward.blocks.mlps import Passage, Record, Writer
from analyzer.forward.blocks.units import Product

PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm", "bmm"})


@contextmanager
def watched_experts(writer: Writer, change: Callable[..., torch.Tensor], record: Record | None) -> Iterator[None]:
    """Run experts under a mode that sees each product with their down projections."""
    experts, forward = writer.module, writer.module.forward
    before = vars(experts).get("forward")  # of another that watches them

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _ExpertsMode(writer, change, record, (*args, *kwargs.values())):
            return forward(*args, **kwargs)

    experts.forward = watched
    try:
        yield
    finally:
        del experts.forward  # the class has it
        if before is not None:
            experts.forward = before


class _ExpertsMode(TorchFunctionMode):
    """Finds, among what experts compute, the products with their down projections, and which tokens they are for.

    Most gather the tokens of each expert by torch.where on a mask, as (place among the chosen experts, token); the
    product that follows is in that order. Others gather all tokens at once, sorted by expert, by an index; each
    expert's product is of a slice of these, and the router's weights multiply all of them after the last one (JetMoE).
    Where all tokens go through all experts in one batched product, the order is that of the tokens, and the router's
    weights are in the input already.
    """

    def __init__(
        self, writer: Writer, change: Callable[..., torch.Tensor], record: Record | None, arguments: tuple[Any, ...]
    ) -> None:
        super().__init__()
        weights = [writer.module.get_parameter(down) for down in writer.downs]
        self._storages = {weight.untyped_storage().data_ptr() for weight in weights}
        starts = [start for weight in weights for start in _starts(weight, len(writer.places) // len(weights))]
        self._places = dict(zip(starts, writer.places, strict=False))  # others are of vision's experts (ERNIE 4.5 VL)
        self._added = dict(zip(writer.places, _added_after(writer), strict=False))
        self._change, self._record = change, record
        self._routing = next((a for a in arguments[2:] if isinstance(a, torch.Tensor) and a.ndim == 2), None)
        self._gathered: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sorted: torch.Tensor | None = None
        self._waiting: list[tuple[int, Passage]] = []  # for the router's weights, each from a place among the sorted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "where" and len(args) == 1:
            self._gathered = result
        if name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[0].ndim == 2 and args[1].ndim == 1:
            self._sorted = args[1]
        if len(args) < 2 or not isinstance(args[1], torch.Tensor):
            return result
        with torch._C.DisableTorchFunction():
            if name == "mul" and self._waiting and self._sorted is not None and args[1].shape == (len(self._sorted), 1):
                self._weigh(args[1][:, 0])
            if name not in PRODUCTS or args[1].untyped_storage().data_ptr() not in self._storages:
                return result
            again = partial(_multiplied, func, args[2:], kwargs or {})
            return self._product(args[0], args[1], result, again)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._waiting and error[0] is None:
            raise _unknown()

    def _product(
        self, entered: torch.Tensor, weight: torch.Tensor, left: torch.Tensor, again: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        if weight.ndim == 3:  # [experts, tokens, channels]
            which = torch.arange(left.shape[1], device=left.device)
            parts = zip(weight, entered, left, strict=True)
            return torch.stack([self._pass(each, which, taken, given, torch.matmul) for each, taken, given in parts])
        if self._gathered is not None and self._gathered[1].shape[0] == left.shape[0]:
            place, which = self._gathered
            routed = None if self._routing is None else self._routing[which, place]
            return self._pass(weight, which, entered, left, again, routed)
        if self._sorted is None or self._gathered is not None or not entered.is_contiguous():
            raise _unknown()
        start = entered.storage_offset() // entered.shape[1]
        which = self._sorted[start : start + left.shape[0]]
        if which.shape[0] != left.shape[0]:
            raise _unknown()
        return self._pass(weight, which, entered, left, again, start=start)

    def _pass(
        self,
        weight: torch.Tensor,
        which: torch.Tensor,
        entered: torch.Tensor,
        left: torch.Tensor,
        again: Callable[..., torch.Tensor],
        routed: torch.Tensor | None = None,
        *,
        start: int | None = None,
    ) -> torch.Tensor:
        place = self._places.get(weight.data_ptr())
        if place is None:
            raise _unknown()
        product = Product(lambda taken: again(taken, weight), self._added.get(place))
        left = self._change(place, which, entered, left, product)
        if self._record is not None and left.shape[0]:
            is_weighed = routed is not None or start is not None
            routed = torch.ones(left.shape[0], device=left.device) if routed is None else routed.float()
            passage = Passage(place, which, entered, left, routed, is_weighed)
            if start is None:
                self._record(passage)
            else:
                self._waiting.append((start, passage))
        return left

    def _weigh(self, weights: torch.Tensor) -> None:
        """Record what waits for these weights of the router, one for each of the sorted tokens."""
        assert self._record is not None  # else nothing waits
        for start, passage in self._waiting:
            self._record(replace(passage, routed=weights[start : start + passage.tokens.shape[0]].float()))
        self._waiting.clear()


def _starts(weight: torch.Tensor, experts: int) -> list[int]:
    """Return where each expert's part of a parameter lies in memory: of `experts`, where its shape does not tell."""
    count = weight.shape[0] if weight.ndim == 3 else experts
    return [weight.data_ptr() + expert * (weight.nbytes // count) for expert in range(count)]


def _added_after(writer: Writer) -> Iterator[torch.Tensor]:
    """Yield what each expert adds to the product with its part of a parameter: its bias, a parameter beside it."""
    for down in writer.downs:
        bias = getattr(writer.module, f"{down}_bias", None)
        yield from () if bias is None else bias


def _multiplied(
    func: Any, more: tuple[Any, ...], named: dict[str, Any], entered: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return the product of something else that goes in, [n, intermediate_size], made as one was."""
    found: torch.Tensor = func(entered, weight, *more, **named)
    return found


def _unknown() -> RuntimeError:
    return RuntimeError("the experts gather their tokens in a way that this version does not know")
