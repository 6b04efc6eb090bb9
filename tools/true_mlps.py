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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from cutting import Call, Place
from torch import Tensor

PROBED_ROWS = 4
SAME_DIRECTION = 0.9999
# Nodes of the autograd graph that bend what passes them, that multiply matrices, and that add two things.
BENDING = ("Sigmoid", "Tanh", "Silu", "Gelu", "Relu", "Softmax", "Exp", "Softplus", "Elu", "Hardtanh", "Mish", "Erf")
PRODUCTS = ("Bmm", "Mm", "Attention", "Matmul")
ADDING = ("Add", "IndexAdd", "Addcmul", "Lerp", "Addmm", "Baddbmm", "IndexPut", "Sub")


@dataclass(frozen=True)
class Use:
    """What a run told of one use of a linear map that writes into the residual stream.

    `number` counts the linear maps of the run; `before` has a bit for each of them that this one reads from, through
    whatever lies between. `width` is that of what it reads, which several groups of channels may share. `local`: it
    reads token by token. `bent`: through a nonlinearity or a product. `fresh`: nothing of the stream itself. `writes`:
    `residual`, or `latent` where another linear map turns its output first.
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
            all_before |= before[leaf]
        before.append(all_before)
    return before


def _use(graph: Graph, before: list[int], number: int, stream: int, writes: str) -> Use | None:
    call, read = graph.calls[number], graph.reads[number]
    if call.read is None or not read.all:
        return None
    local, bent = _probe(graph, number)
    makers = _bits(read.all & ~stream)
    local = local and not read.mixed and all(_is_fed_locally(graph, leaf, stream) for leaf in makers)
    width = call.read.shape[-1]
    return Use(number, before[number], width, call.places, local, bent, not read.all & stream, writes)


def _is_fed_locally(graph: Graph, number: int, stream: int) -> bool:
    """Whether the input of an MLP is the stream, or what other linear maps made, token by token."""
    read = graph.reads[number]
    return not read.all or bool(read.all & stream) or _probe(graph, number)[0]


def _probe(graph: Graph, number: int) -> tuple[bool, bool]:
    """Return whether each row that a linear map reads depends on one row of each leaf, and whether in different ways.

    Where there are leaves that nothing bends on the way, the others only scale.
    """
    read = graph.calls[number].read
    assert read is not None
    reach = graph.reads[number]
    leaves = {graph.calls[leaf].written: bool(reach.straight >> leaf & 1) for leaf in _bits(reach.all)}
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


def _bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
