"""Where each block of a model has its MLPs, and what goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import Place
from analyzer.projections.projection import DownProjection


@dataclass(frozen=True)
class Writer:
    """What multiplies by one down projection, or by those of experts that are handed their tokens together."""

    module: torch.nn.Module
    """The linear map, or the module whose forward hands tokens to the experts."""
    places: tuple[Place, ...]
    """Where the down projections are, those of experts in their parameters' order."""
    downs: tuple[str, ...] = ()
    """The names of the experts' parameters in the module, one for all or one for each; none for a linear map."""
    gate: torch.nn.Module | None = None
    """Its sigmoid weighs what a shared expert adds to the others (Qwen's mixtures)."""


@dataclass(frozen=True)
class Mlp:
    """One MLP of a block: a down projection, or a mixture of experts with those that are shared."""

    whole: torch.nn.Module
    """The module whose output is all that it adds."""
    writers: tuple[Writer, ...]

    @property
    def is_mixture(self) -> bool:
        """Whether it is more than one linear map."""
        return any(writer.downs or writer.module is not self.whole for writer in self.writers)


@dataclass(frozen=True)
class Block:
    """A block of the stack, whose output is the residual stream after it, and its MLPs, if it has any."""

    name: str
    module: torch.nn.Module
    layers: tuple[int, ...]
    """The layers that it is: more than one where it runs several times (ALBERT)."""
    mlps: tuple[Mlp, ...] = ()
    is_latent: bool = False
    """Whether what its MLPs write is turned before the stream, so that nothing in it is the doing of one weight."""


@dataclass(frozen=True)
class Passage:
    """What went through one down projection: of n tokens, their flat places in the batch, and of experts the weight
    that the router gave them, where it `is_weighed`: else that is in what entered already, and 1 here."""

    place: Place
    tokens: torch.Tensor  # [n]
    entered: torch.Tensor  # [n, intermediate_size]
    left: torch.Tensor  # [n, hidden_size]
    routed: torch.Tensor  # [n]
    is_weighed: bool = True


Record = Callable[[Passage], None]


def find_blocks(
    name: str, model: torch.nn.Module, targets: Mapping[str, str], projections: Sequence[DownProjection]
) -> tuple[Block, ...]:
    """Return every block of the stack that these projections are in, in the order in which they run.

    `targets` tells the parameter that each stored tensor goes into. Raises ForwardError where one has none, where they
    are in several stacks, and for what the forward pass cannot follow yet.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    stored: dict[str, list[DownProjection]] = {}
    for projection in projections:
        target = targets.get(projection.name)
        if target is None:
            raise ForwardError(f"{name}: {type(model).__name__} has no place for {shown(projection.name)}")
        stored.setdefault(target, []).append(projection)
    writers: dict[str, dict[str, Writer]] = {}  # by block, and by the module's name
    apart: dict[tuple[str, int | None], dict[Place, str]] = {}  # by block and MLP, each expert's parameter
    layers: dict[str, tuple[int, ...]] = {}
    latent: set[str] = set()
    for target, here in stored.items():
        first = min(here, key=lambda each: each.place)
        block = _block_of(target, first.block.rpartition(".")[2])
        layers[block] = first.layers or (first.layer,)
        latent |= {block} if any(each.writes is not None for each in here) else set()
        holder, _, last = target.rpartition(".")
        places = tuple(sorted(each.place for each in here))
        if first.expert is None:
            writers.setdefault(block, {})[holder] = Writer(modules[holder], places)
            continue
        if isinstance(modules[holder], torch.nn.Linear):  # of an expert that is a module of its own
            apart.setdefault((block, first.mlp), {})[first.place] = target
            continue
        if last == "weight" or parameters[target].ndim == 2:  # of a module that is handed the experts' tokens
            holder, _, inner = holder.rpartition(".")
            last = f"{inner}.{last}"
        writers.setdefault(block, {})[holder] = Writer(modules[holder], places, (last,))
    for (block, _), experts in apart.items():
        holder = _handing(list(experts.values()), modules)
        downs = tuple(experts[place].removeprefix(f"{holder}.") for place in sorted(experts))
        writers.setdefault(block, {})[holder] = Writer(modules[holder], tuple(sorted(experts)), downs)
    stacks = {block.rpartition(".")[0] for block in writers}
    if len(stacks) != 1 or "" in stacks:
        raise ForwardError(f"{name} has more than one stack of blocks: it can be scanned, but not yet verified")
    (stack,) = stacks
    blocks = []
    for number, module in modules[stack].named_children():
        block = f"{stack}.{number}"
        mlps = tuple(_mlps(block, writers.get(block, {}), modules))
        blocks.append(Block(block, module, layers.get(block, (int(number),)), mlps, block in latent))
    blocks.sort(key=lambda each: each.layers)
    numbers = [layer for each in blocks for layer in each.layers]
    if numbers != sorted(set(numbers)):
        raise ForwardError(f"{name} shares an MLP among blocks that differ: it can be scanned, but not yet verified")
    return tuple(blocks)


def _handing(parameters: Sequence[str], modules: Mapping[str, torch.nn.Module]) -> str:
    """Return the name of the smallest module that has all of these parameters in it, and a forward."""
    parts = parameters[0].split(".")
    names = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next(
        name
        for name in names
        if type(modules[name]).forward is not torch.nn.Module.forward  # as a list, say, which is never called
        and all(parameter.startswith(f"{name}.") for parameter in parameters)
    )


def _mlps(block: str, writers: Mapping[str, Writer], modules: Mapping[str, torch.nn.Module]) -> Iterator[Mlp]:
    """Yield the MLPs of a block: each mixture with what is shared among its experts, and each linear map by itself.

    A mixture is the smallest module that has all the writers of that part of the block where its experts are.
    """
    left = dict(writers)
    for name, writer in writers.items():
        if not writer.downs or name not in left:
            continue
        parts = name[len(block) + 1 :].split(".")
        above = [".".join((block, *parts[:count])) for count in range(1, len(parts))]
        above = [each for each in above if not isinstance(modules[each], torch.nn.ModuleList)] or [name]
        together = [each for each in left if f"{each}.".startswith(f"{above[0]}.")]
        whole = next(each for each in reversed(above) if all(f"{one}.".startswith(f"{each}.") for one in together))
        gate = getattr(modules[whole], "shared_expert_gate", None)
        found = (left.pop(each) for each in together)
        yield Mlp(modules[whole], tuple(each if each.downs else replace(each, gate=gate) for each in found))
    for writer in left.values():
        yield Mlp(writer.module, (writer,))


def blocks_of(model: torch.nn.Module, targets: Mapping[str, str], projections: Sequence[DownProjection]) -> list[str]:
    """Return the names of all blocks of the stacks that these projections are in, stack by stack."""
    known = (each for each in projections if each.name in targets)
    stacks = (_block_of(targets[p.name], p.block.rpartition(".")[2]).rpartition(".")[0] for p in known)

    def within(stack: str) -> Iterator[str]:
        for name, module in model.get_submodule(stack).named_children():
            block = f"{stack}.{name}"
            yield from within(block) if isinstance(module, torch.nn.ModuleList) else (block,)

    return [block for stack in dict.fromkeys(stacks) if stack for block in within(stack)]


def beside_stack(stack: str, parameters: Iterable[str]) -> tuple[str, ...]:
    """Return the parts of a model, by their names' beginnings, that these parameters are in and this stack is not."""
    parts = stack.split(".")
    found = set()
    for parameter in parameters:
        others = parameter.split(".")
        shared = next(place for place, (one, other) in enumerate(zip(parts, others, strict=False)) if one != other)
        found.add(".".join(others[: shared + 1]) + ".")
    return tuple(sorted(found))


def _block_of(parameter: str, number: str) -> str:
    """Return the name of the block of this number that a parameter is in, empty where it is in none."""
    parts = parameter.split(".")
    return next((".".join(parts[: place + 1]) for place, part in enumerate(parts) if part == number), "")


def latent_note(stack: Sequence[Block]) -> Iterator[str]:
    """Yield what there is to know of blocks whose MLPs write a latent, if there are such."""
    if layers := [layer for block in stack if block.is_latent for layer in block.layers]:
        named = ", ".join(map(str, layers[:8])) + (f" and {len(layers) - 8} more" if layers[8:] else "")
        yield (
            f"the MLPs of layers {named} write a latent that is turned before the residual stream: what they write "
            "there is attributed to no weight, and theirs are judged by the loss alone"
        )
