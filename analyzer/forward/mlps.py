"""Where each block of a model has its MLP, and what goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from analyzer.base.errors import ForwardError, shown
from analyzer.projections.projection import DownProjection


@dataclass(frozen=True)
class Mlp:
    """Where one block has its MLP: a down projection of its own, fused experts, both (shared experts), or nowhere."""

    block: str
    module: torch.nn.Module
    """The block itself; what it gives is the residual stream after it."""
    dense: torch.nn.Module | None
    experts: torch.nn.Module | None
    whole: torch.nn.Module | None
    """The module whose output is all that the MLP adds: the down projection, or the mixture of experts."""
    down: str = ""
    """The name of the fused experts' down projections among their parameters."""
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


def find_mlps(
    name: str, model: torch.nn.Module, targets: Mapping[str, str], projections: Sequence[DownProjection]
) -> dict[int, Mlp]:
    """Return every block of the stack that these projections are in, by its number, with its MLP where it has one.

    `targets` tells the parameter that each stored tensor goes into. Raises ForwardError where one has none, where they
    are in several stacks, and for what the forward pass cannot follow yet.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    dense: dict[int, torch.nn.Module] = {}
    experts: dict[int, tuple[str, str]] = {}
    stacks = set()
    for projection in projections:
        target = targets.get(projection.name)
        if target is None:
            raise ForwardError(f"{name}: {type(model).__name__} has no place for {shown(projection.name)}")
        holder = target.rpartition(".")[0]
        stacks.add(_stack_of(target, projection.layer))
        if parameters[target].ndim == 3:
            experts[projection.layer] = holder, target.rpartition(".")[2]
        elif projection.expert is not None:
            raise ForwardError(f"{name}: its experts are modules of their own: it can be scanned, but not yet verified")
        elif dense.setdefault(projection.layer, modules[holder]) is not modules[holder]:
            raise ForwardError(f"{name} has several MLPs in a block: it can be scanned, but not yet verified")
    if len(stacks) != 1 or None in stacks:
        raise ForwardError(f"{name} has more than one stack of blocks: it can be scanned, but not yet verified")
    (stack,) = stacks
    mlps = {}
    for number, block in modules[str(stack)].named_children():
        layer, fused = int(number), experts.get(int(number))
        module = f"{stack}.{number}"
        if fused is None:
            mlps[layer] = Mlp(module, block, dense.get(layer), None, dense.get(layer))
        else:
            holder, down = fused
            around = holder.rpartition(".")[0]
            if around == module and layer not in dense:
                around = holder  # the experts stand in the block by themselves
            names = [each for each, found in modules.items() if found is dense.get(layer)]
            if around == module or not all(each.startswith(f"{around}.") for each in names):
                raise ForwardError(
                    f"{name} has an MLP apart from its experts in a block: it can be scanned, but not yet verified"
                )
            whole = modules[around]
            gate = getattr(whole, "shared_expert_gate", None)
            mlps[layer] = Mlp(module, block, dense.get(layer), modules[holder], whole, down, gate)
    return dict(sorted(mlps.items()))


def beside_stack(stack: str, parameters: Iterable[str]) -> tuple[str, ...]:
    """Return the parts of a model, by their names' beginnings, that these parameters are in and this stack is not."""
    parts = stack.split(".")
    found = set()
    for parameter in parameters:
        others = parameter.split(".")
        shared = next(place for place, (one, other) in enumerate(zip(parts, others, strict=False)) if one != other)
        found.add(".".join(others[: shared + 1]) + ".")
    return tuple(sorted(found))


def _stack_of(parameter: str, layer: int) -> str | None:
    """Return the name of the list of blocks that a parameter of this layer is in."""
    parts = parameter.split(".")
    return next((".".join(parts[:place]) for place, part in enumerate(parts) if part == str(layer)), None)
