"""Runs a model with the output of every linear map cut from what made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# A norm's scale counts as a constant, so that a norm bends nothing.
SCALES = ("rsqrt", "sqrt", "norm", "vector_norm", "std", "var")
NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "normalize")


@dataclass(frozen=True)
class Place:
    """A matrix within a parameter: row r, column c is its element `offset + r * row_step + c * col_step`."""

    parameter: str
    offset: int
    rows: int
    cols: int
    row_step: int
    col_step: int


@dataclass(eq=False)
class Call:
    """One use of a linear map: its matrices, several where a batch of them is used at once; what it read and wrote."""

    places: tuple[Place, ...]
    read: Tensor | None  # [..., cols]; null for what begins a stream: an embedding, a convolution of an input
    written: Tensor  # [..., rows], a leaf


class Cutting(TorchFunctionMode):
    """Cuts the outputs of linear maps from what made them, and keeps what each read and wrote."""

    def __init__(self, model: nn.Module) -> None:
        """Watch the linear maps whose weights are the model's parameters."""
        super().__init__()
        self.calls: list[Call] = []
        self.sums: list[Tensor] = []  # kept, since what a reversible layer returns has lost its graph
        self.touched: set[str] = set()  # the names of the parameters that were used at all
        self.mixing: set[str] = set()  # those of convolutions over positions, and of whole attentions
        self._parameters = {p.untyped_storage().data_ptr(): (name, p) for name, p in model.named_parameters()}
        self._made: dict[int, tuple[str, Tensor, Tensor]] = {}  # by the storage of what is made from a parameter alone

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run any function of torch; where it is a linear map, cut its output."""
        with torch.enable_grad():  # reversible layers turn it off
            return self._run(func, args, kwargs or {})

    def _run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        name = getattr(func, "__name__", "")
        used = {source[0] for each in (*args, *kwargs.values()) if (source := self._source(each)) is not None}
        self.touched |= used
        if name in SCALES:
            return out.detach()
        if name in NORMS and out.shape == args[0].shape:
            return out.detach() + (args[0] - args[0].detach())
        use = self._linear_map(name, args, kwargs)
        if use is None:
            if name.startswith("conv") or name == "multi_head_attention_forward":
                self.mixing |= used
            if "add" in name:
                self.sums.append(out)
            self._follow(args, out)
            return out
        places, read, channels = use
        leaf = out.detach().movedim(channels, -1).clone().requires_grad_()
        read = None if read is None or not read.requires_grad else read.movedim(channels, -1).clone()
        self.calls.append(Call(places, read, leaf))
        return leaf.clone().movedim(-1, channels)

    def _linear_map(self, name: str, args: Any, kwargs: Any) -> tuple[tuple[Place, ...], Tensor | None, int] | None:
        """Return a linear map's matrices, what it reads, and which dimension of that has the channels."""
        if name == "linear":
            read, weight = args[0], _argument(args, kwargs, 1, "weight")
            return None if weight.requires_grad else (self._places(weight), read, -1)
        if name in ("matmul", "__matmul__", "mm", "bmm", "__rmatmul__"):
            left, right = (args[1], args[0]) if name == "__rmatmul__" else args[:2]
            if self._named(right) and not self._named(left):
                return self._places(right.mT), left, -1
            if self._named(left) and left.ndim > 1 and not self._named(right):
                return self._places(left), right, -2
        if name in ("addmm", "baddbmm") and len(args) > 2 and self._named(args[2]) and not self._named(args[1]):
            return self._places(args[2].mT), args[1], -1
        if name in ("conv1d", "conv2d", "conv3d"):
            read, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
            if not read.requires_grad:
                return (), None, 1
            if all(size == 1 for size in weight.shape[2:]) and read.ndim == weight.ndim:
                return self._places(weight.flatten(1)), read, 1
        if name == "embedding":
            return (), None, -1
        return None

    def _named(self, tensor: Any) -> bool:
        return self._source(tensor) is not None

    def _source(self, tensor: Any) -> tuple[str, Tensor, Tensor] | None:
        """Return the name of the parameter that a tensor is, or is made from, it, and what was made of it."""
        if not isinstance(tensor, Tensor) or tensor.ndim == 0:
            return None
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in self._parameters:
            name, parameter = self._parameters[pointer]
            return name, parameter, parameter
        return self._made.get(pointer)

    def _follow(self, args: Any, out: Tensor) -> None:
        """Remember what is made, element by element, from one whole parameter."""
        matrices = [each for each in args if isinstance(each, Tensor) and each.ndim > 1]
        source = self._source(matrices[0]) if len(matrices) == 1 else None
        if source is None or out.requires_grad or self._source(out) is not None:
            return
        name, parameter, _ = source
        if (out.shape, out.stride()) == (parameter.shape, parameter.stride()) == (out.shape, matrices[0].stride()):
            self._made[out.untyped_storage().data_ptr()] = (name, parameter, out)

    def _places(self, weight: Tensor) -> tuple[Place, ...]:
        """Return where the matrices [..., rows, cols] lie within their parameter, none where that is not known."""
        source = self._source(weight)
        if source is None or weight.ndim < 2:
            return ()
        name, _, base = source
        offsets = [weight.storage_offset() - base.storage_offset()]
        for size, step in zip(weight.shape[:-2], weight.stride()[:-2], strict=True):
            offsets = [offset + number * step for offset in offsets for number in range(size if step else 1)]
        rows, cols = weight.shape[-2:]
        row_step, col_step = weight.stride()[-2:]
        return tuple(Place(name, int(offset), rows, cols, row_step, col_step) for offset in offsets)


def _argument(args: Any, kwargs: Mapping[str, Any], number: int, name: str) -> Any:
    return args[number] if len(args) > number else kwargs[name]
