"""Which matrices of a model are down projections, told by a run of it: nothing here looks at a name.

While a model runs, the output of every linear map is cut from what made it and made a leaf of the autograd graph. What
a linear map reads then depends, in that graph, on the outputs of the linear maps just before it alone. A down
projection is a linear map

- that reads other linear maps' outputs, none of them a part of the residual stream,
- token by token: one row of its input depends on one row of each of them; so attention, convolutions and state-space
  mixers are told apart,
- through a nonlinearity or a product: what one row depends on is not a multiple of what another does, where the scale
  that a norm divides by counts as a constant,
- whose output is added to what those linear maps, or the ones before them, were made from: the residual stream; or is
  first turned by another linear map alone, as where experts live in a latent space,
- that is no narrower inside than outside: a bottleneck is an adapter. The tiny models are built so that no MLP is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PROBED_ROWS = 4
SAME_DIRECTION = 0.9999
# Nodes of the autograd graph that bend what passes them, that multiply matrices, and that add two things.
BENDING = ("Sigmoid", "Tanh", "Silu", "Gelu", "Relu", "Softmax", "Exp", "Softplus", "Elu", "Hardtanh", "Mish", "Erf")
SCALES = ("rsqrt", "sqrt", "norm", "vector_norm", "std", "var")
NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "normalize")
PRODUCTS = ("Bmm", "Mm", "Attention", "Matmul")
ADDING = ("Add", "IndexAdd", "Addcmul", "Lerp", "Addmm", "Baddbmm", "IndexPut", "Sub")


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


@dataclass(frozen=True)
class Use:
    """What a run told of one use of a linear map that writes into the residual stream.

    `local`: it reads token by token. `bent`: through a nonlinearity or a product. `fresh`: nothing of the stream
    itself. `writes`: `residual`, or `latent` where another linear map turns its output first. `number` counts the
    linear maps of the run; `before` has a bit for each of them that this one reads from, through whatever lies between.
    `width` is that of what it reads, which several groups of channels may share.
    """

    number: int
    before: int
    width: int
    places: tuple[Place, ...]
    local: bool
    bent: bool
    fresh: bool
    writes: str

    @property
    def is_mlp(self) -> bool:
        """Whether this is how a down projection is used."""
        return self.local and self.bent and self.fresh and not self.narrow

    @property
    def narrow(self) -> bool:
        """Whether it is narrower inside than outside: a bottleneck."""
        return any(self.width < place.rows for place in self.places)


class Cutting(TorchFunctionMode):
    """Cuts the outputs of linear maps from what made them, and keeps what each read and wrote."""

    def __init__(self, model: nn.Module) -> None:
        """Watch the linear maps whose weights are the model's parameters."""
        super().__init__()
        self.calls: list[Call] = []
        self.touched: set[str] = set()  # the names of the parameters that were used at all
        self.mixing: set[str] = set()  # those of convolutions over positions, and of whole attentions
        self._parameters = {p.untyped_storage().data_ptr(): (name, p) for name, p in model.named_parameters()}
        self._made: dict[int, tuple[str, Tensor, Tensor]] = {}  # by the storage of what is made from a parameter alone

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run any function of torch; where it is a linear map, cut its output."""
        kwargs = kwargs or {}
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
        if name == "einsum":
            return self._einsum(args)
        return None

    def _einsum(self, args: Any) -> tuple[tuple[Place, ...], Tensor | None, int] | None:
        equation, operands = args[0], args[1] if isinstance(args[1], list | tuple) else args[1:]
        if len(operands) != 2 or self._named(operands[0]) == self._named(operands[1]):
            return None
        inputs, _, output = equation.replace(" ", "").partition("->")
        terms = inputs.split(",")
        weight = 0 if self._named(operands[0]) else 1
        of_weight, of_read = terms[weight], terms[1 - weight]
        summed = [letter for letter in of_weight if letter in of_read and letter not in output]
        made = [letter for letter in of_weight if letter not in of_read]
        if len(summed) != 1 or len(made) != 1 or of_read[-1] != summed[0] or output[-1] != made[0]:
            return None
        order = [i for i, letter in enumerate(of_weight) if letter not in (*summed, *made)]
        matrix = operands[weight].permute(*order, of_weight.index(made[0]), of_weight.index(summed[0]))
        return self._places(matrix), operands[1 - weight], -1

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
        """Remember what is made, element by element, from one parameter."""
        sources = [self._source(each) for each in args if isinstance(each, Tensor) and each.ndim > 1]
        if len(sources) == 1 and sources[0] is not None and self._source(out) is None and not out.requires_grad:
            name, parameter, _ = sources[0]
            self._made[out.untyped_storage().data_ptr()] = (name, parameter, out)

    def _places(self, weight: Tensor) -> tuple[Place, ...]:
        """Return where the matrices [..., rows, cols] lie within their parameter, none where that is not known."""
        source = self._source(weight)
        if source is None or weight.ndim < 2:
            return ()
        name, parameter, base = source
        if base.numel() != parameter.numel():
            return ()
        first = weight.storage_offset() - base.storage_offset()
        matrices = weight.as_strided(weight.shape, weight.stride())
        offsets = [first]
        for size, step in zip(matrices.shape[:-2], matrices.stride()[:-2], strict=True):
            offsets = [offset + number * step for offset in offsets for number in range(size if step else 1)]
        rows, cols = weight.shape[-2:]
        row_step, col_step = weight.stride()[-2:]
        return tuple(Place(name, offset, rows, cols, row_step, col_step) for offset in offsets)


def _argument(args: Any, kwargs: Mapping[str, Any], number: int, name: str) -> Any:
    return args[number] if len(args) > number else kwargs[name]


@dataclass(frozen=True)
class Reach:
    """The leaves that a node of the graph depends on, as bits.

    All of them, those that nothing bends on the way, and those that a product of two activations' matrices mixes.
    """

    all: int
    straight: int
    mixed: int


class Graph:
    """The autograd graph of a run whose linear maps were cut."""

    def __init__(self, calls: list[Call], outputs: Iterable[Tensor]) -> None:
        """Follow every edge from what linear maps read, and from what came out at the end."""
        self.calls = calls
        self._bit = {id(call.written): 1 << number for number, call in enumerate(calls)}
        self._reach: dict[Any, Reach] = {}
        self.sums: list[tuple[Reach, ...]] = []
        for tensor in [*(call.read for call in calls), *outputs]:
            if tensor is not None and tensor.grad_fn is not None:
                self._visit(tensor.grad_fn)
        self.reads = [self.reach(call.read) for call in calls]

    def reach(self, tensor: Tensor | None) -> Reach:
        """Return the leaves that a tensor depends on."""
        return Reach(0, 0, 0) if tensor is None or tensor.grad_fn is None else self._reach[tensor.grad_fn]

    def _visit(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            node = waiting[-1]
            if node in self._reach:
                waiting.pop()
                continue
            parents = [parent for parent, _ in node.next_functions if parent is not None]
            unknown = [parent for parent in parents if parent not in self._reach]
            if unknown:
                waiting.extend(unknown)
                continue
            waiting.pop()
            self._reach[node] = self._joined(node, [self._reach[parent] for parent in parents])

    def _joined(self, node: Any, parents: list[Reach]) -> Reach:
        if hasattr(node, "variable"):
            bit = self._bit.get(id(node.variable), 0)
            return Reach(bit, bit, 0)
        name = node.name().removesuffix("0").removesuffix("1").removesuffix("Backward")
        if len(parents) > 1 and name in ADDING:
            self.sums.append(tuple(parents))
        everything = straight = mixed = 0
        for parent in parents:
            everything |= parent.all
            straight |= parent.straight
            mixed |= parent.mixed
        if len([parent for parent in parents if parent.all]) > 1 and any(product in name for product in PRODUCTS):
            mixed = everything
        return Reach(everything, 0 if any(bend in name for bend in BENDING) else straight, mixed)


def find_uses(calls: list[Call], outputs: Iterable[Tensor]) -> list[Use]:
    """Return how each linear map that writes into a residual stream is used, in the order of the run."""
    graph = Graph(calls, outputs)
    before = _upstream(graph)
    writers, stream = 0, 0
    for parts in graph.sums:
        for number, part in enumerate(parts):
            others = parts[:number] + parts[number + 1 :]
            beside = 0
            for other in others:
                beside |= other.all
            for leaf in _bits(part.straight & ~beside):
                if beside & before[leaf]:
                    writers |= 1 << leaf
                    for other in others:
                        stream |= other.straight
    begins = sum(1 << number for number, call in enumerate(calls) if call.read is None)
    stream |= writers | begins
    uses = {}
    for leaf in _bits(writers):
        uses[leaf] = _use(graph, before, leaf, stream, "residual")
    turned = 0
    for leaf, use in uses.items():
        if use is not None and use.local and not use.bent:
            turned |= graph.reads[leaf].straight & ~stream
    for leaf in _bits(turned & ~writers):
        uses[leaf] = _use(graph, before, leaf, stream, "latent")
    return [use for _, use in sorted(uses.items()) if use is not None]


def _upstream(graph: Graph) -> list[int]:
    """Return for each use all the leaves, as bits, that what it wrote was made from, through other linear maps too."""
    before: list[int] = []
    for read in graph.reads:
        all_before = read.all
        for leaf in _bits(read.all):
            if leaf < len(before):
                all_before |= before[leaf]
        before.append(all_before)
    return before


def _use(graph: Graph, before: list[int], number: int, stream: int, writes: str) -> Use | None:
    call, read = graph.calls[number], graph.reads[number]
    if call.read is None or not read.all:
        return None
    local, bent = _probe(
        call.read,
        {graph.calls[leaf].written: bool(read.straight >> leaf & 1) for leaf in _bits(read.all)},
    )
    return Use(
        number,
        before[number],
        call.read.shape[-1],
        call.places,
        local and not read.mixed,
        bent,
        not read.all & stream,
        writes,
    )


def _probe(read: Tensor, leaves: Mapping[Tensor, bool]) -> tuple[bool, bool]:
    """Return whether rows of `read` depend on one row of each leaf, and whether they do so in different ways.

    `leaves` says which of them nothing bends on the way: where there are such, the others only scale.
    """
    rows = read.reshape(-1, read.shape[-1])
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(rows.shape[-1], generator=generator)
    directions: dict[Tensor, list[Tensor]] = {leaf: [] for leaf in leaves}
    local = True
    for row in _chosen(rows.detach()):
        score = (rows[row] * probe).sum()
        try:
            gradients = torch.autograd.grad(score, list(leaves), retain_graph=True, allow_unused=True)
        except RuntimeError:  # the graph of a recurrence that writes over its own state
            return False, True
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is None:
                continue
            by_row = gradient.reshape(-1, gradient.shape[-1])
            touched = by_row[by_row.abs().amax(1) > 0]
            local = local and len(touched) <= 1
            if len(touched) == 1:
                directions[leaf].append(touched[0] / touched[0].norm())
    straight = [each for leaf, each in directions.items() if leaves[leaf]]
    bent = any(
        abs(float(first @ second)) < SAME_DIRECTION
        for each in straight or directions.values()
        for first, second in combinations(each, 2)
    )
    return local, bent


def _chosen(rows: Tensor) -> list[int]:
    """Return which rows are probed: the largest, and some at equal distances, none twice in content."""
    largest = torch.linalg.vector_norm(rows, dim=1).argsort(descending=True).tolist()
    spaced = range(len(rows) - 1, -1, -max(1, len(rows) // PROBED_ROWS))
    chosen: list[int] = []
    for row in [*spaced, *largest[: 16 * PROBED_ROWS]]:
        if all(not torch.allclose(rows[row], rows[other]) for other in chosen):
            chosen.append(row)
        if len(chosen) == 2 * PROBED_ROWS:
            break
    return chosen


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
