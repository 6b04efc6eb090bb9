"""A look into experts that share a parameter: their products with it, and which tokens these are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from analyzer.forward.mlps import Passage, Record, Writer

PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm", "bmm"})


@contextmanager
def watched_experts(writer: Writer, change: Callable[..., torch.Tensor], record: Record | None) -> Iterator[None]:
    """Run experts that share a parameter under a mode that sees each product with their down projections."""
    experts, forward = writer.module, writer.module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _ExpertsMode(writer, change, record, (*args, *kwargs.values())):
            return forward(*args, **kwargs)

    experts.forward = watched
    try:
        yield
    finally:
        del experts.forward  # the class has it


class _ExpertsMode(TorchFunctionMode):
    """Finds, among what fused experts compute, the products with `down_proj`, and which tokens they are for.

    Experts gather their tokens by torch.where on a mask, as (place among the chosen experts, token); the product that
    follows is in that order. Where all tokens go through all experts at once, in one batched product, the order is
    that of the tokens, and the router's weights are in the input already.
    """

    def __init__(
        self, writer: Writer, change: Callable[..., torch.Tensor], record: Record | None, arguments: tuple[Any, ...]
    ) -> None:
        super().__init__()
        weight = writer.module.get_parameter(writer.down)
        self._storage, self._start = weight.untyped_storage().data_ptr(), weight.data_ptr()
        self._places, self._change, self._record = writer.places, change, record
        experts = weight.shape[0] if weight.ndim == 3 else len(writer.places)
        self._bytes = weight.numel() // experts * weight.element_size()  # of one of them
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
            if self._gathered is None or self._gathered[1].shape[0] != result.shape[0]:
                raise RuntimeError("the experts gather their tokens in a way that this version does not know")
            place, which = self._gathered
            return self._pass((weight.data_ptr() - self._start) // self._bytes, which, place, args[0], result)

    def _pass(
        self, expert: int, which: torch.Tensor, place: torch.Tensor | None, entered: torch.Tensor, left: torch.Tensor
    ) -> torch.Tensor:
        left = self._change(self._places[expert], which, entered, left)
        if self._record is not None:
            routed = torch.ones(left.shape[0], device=left.device)
            if place is not None and self._routing is not None:
                routed = self._routing[which, place].float()
            self._record(Passage(self._places[expert], which, entered, routed))
        return left
