"""Where each block of a model has its MLP, and what goes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from analyzer.base.errors import ForwardError
from analyzer.projections.names import find_modules


@dataclass(frozen=True)
class Mlp:
    """Where one block has its MLP: a down projection of its own, fused experts, or both (shared experts)."""

    block: str
    module: torch.nn.Module
    """The block itself; what it gives is the residual stream after it."""
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
    parameters = {name.removesuffix(".weight"): (name, value) for name, value in model.named_parameters()}
    for name_of_module, parsed in find_modules(parameters).items():
        parameter_name, parameter = parameters[name_of_module]
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
    for layer, name_of_block in sorted(blocks.items()):
        block = modules[name_of_block]
        if layer in experts:
            experts_name, module = experts[layer]
            whole = modules[experts_name.rpartition(".")[0]]
            gate = getattr(whole, "shared_expert_gate", None)
            mlps[layer] = Mlp(name_of_block, block, dense.get(layer), module, whole, gate)
        else:
            mlps[layer] = Mlp(name_of_block, block, dense[layer], None, dense[layer])
    return mlps
