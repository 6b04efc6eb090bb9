"""The completeness check: what looks like a down projection, or is promised by config.json, and was not taken.

It looks at shapes and at what stands beside a matrix, not at the names by which down projections are found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyzer.base.config import (
    NUM_EXPERTS_KEYS,
    NUM_LAYERS_KEYS,
    hidden_sizes,
    language_part,
    model_types,
    quantization_name,
    size_in,
)
from analyzer.base.errors import ArchitectureError, UnreadableError, shown
from analyzer.base.records import Unread
from analyzer.checkpoint.architectures import AMBIGUOUS, INPUTS, MIXERS, WITHOUT_MLP, WRAPPERS
from analyzer.checkpoint.names import NUMBER, ModuleName, is_mlp, is_other, starred
from analyzer.checkpoint.projection import MAIN_TOWERS, DownProjection
from analyzer.checkpoint.stacks import residual_widths
from analyzer.encodings.finding import STORED_AS
from analyzer.encodings.floats import FORMATS
from analyzer.encodings.matrices import Shapes

MAX_SHOWN_CANDIDATES = 4
EXPERT_WORDS = re.compile(r"expert|moe|switch", re.IGNORECASE)


@dataclass(frozen=True)
class _Left:
    """A module that is not taken: the number of its block is the first in its name."""

    module: str
    stack: str
    shape: tuple[int, ...]


def find_unread(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    known: Mapping[str, ModuleName],
    found: Sequence[DownProjection],
    unreadable: Mapping[str, UnreadableError],
) -> tuple[Unread, ...]:
    """Return what is not read, by kind of name.

    `known` are the modules that names tell, `found` the down projections among them, `unreadable` those of them whose
    encoding is not read. Raises ArchitectureError where a whole tower, or all of a tower's experts, would be missing.
    """
    towers = {each.block.rpartition(".")[0]: each.tower for each in found}
    with_experts = {each.block.rpartition(".")[0] for each in found if each.expert is not None}
    for module, error in unreadable.items():
        stack = known[module].stack
        if stack not in towers or (EXPERT_WORDS.search(module) and stack not in with_experts):
            raise error
    kinds: Counter[tuple[str, tuple[int, ...] | None, str]] = Counter()
    for module, error in unreadable.items():
        kinds[starred(module), None, f"stored by {error.encoding}"] += 1
    left = _left_over(tensors, config, {*known, *(name for each in known.values() for name in each.inputs)})
    for each in left:
        whole = not any(stack == each.stack or stack.startswith(f"{each.stack}.") for stack in towers)
        experts = EXPERT_WORDS.search(each.module) is not None and not any(
            stack == each.stack or stack.startswith(f"{each.stack}.") for stack in with_experts
        )
        if whole or experts:
            raise _missing(model, each, left, "tower" if whole else "experts")
        kinds[starred(each.module), each.shape, "looks like a down projection, by a name that is not known"] += 1
    unread = [Unread(names, count, shape, why) for (names, shape, why), count in sorted(kinds.items(), key=str)]
    return (*unread, *_promised(tensors, config, found, unreadable))


def none_found(model: str, tensors: Shapes, config: Mapping[str, Any], pattern: str | None) -> ArchitectureError:
    """Return the error that a checkpoint has no down projection that is known, with the likeliest candidates."""
    if pattern is not None:
        return ArchitectureError(
            f"{model} has no tensor of two or more dimensions that matches --tensors {shown(pattern, 80)}"
        )
    what = f"{model} (model_type {shown(config.get('model_type'), 40)})"
    method = quantization_name(config)
    if method is not None:
        return ArchitectureError(
            f"{what} is quantized by {method}, and its down projections are stored in a way that cannot be scanned: "
            "use the model that it was made from"
        )
    if any(WITHOUT_MLP.fullmatch(each) for each in model_types(config)):
        return ArchitectureError(f"{what} is a state-space model, whose blocks have no MLP: there is nothing to scan")
    left = _left_over(tensors, config, ())
    if left:
        return ArchitectureError(
            f"{what} has no MLP down projection that this version knows; tensors that could be: {_listed(left)}; scan "
            f"the right ones with --tensors '{shown(_kinds(left)[0][0][0], 80)}'"
        )
    numbered = any(NUMBER.search(part) for name in tensors for part in name.split("."))
    return ArchitectureError(
        f"{what} has no MLP down projection"
        + (" that this version knows" if numbered else ", and no matrix in numbered layers at all")
    )


def _missing(model: str, first: _Left, left: Sequence[_Left], what: str) -> ArchitectureError:
    alike = [each for each in left if each.stack == first.stack]
    whose = f"in {shown(first.stack, 60)}" if what == "tower" else "of experts"
    return ArchitectureError(
        f"{model} has down projections {whose} by names that this version does not know: {_listed(alike)}; scan them "
        f"with --tensors '{shown(_kinds(alike)[0][0][0], 80)}'"
    )


def _listed(left: Sequence[_Left]) -> str:
    kinds = _kinds(left)[:MAX_SHOWN_CANDIDATES]
    return ", ".join(f"{shown(name, 80)} {list(shape)} x {count}" for (name, shape), count in kinds)


def _kinds(left: Iterable[_Left]) -> list[tuple[tuple[str, tuple[int, ...]], int]]:
    """Return (pattern of tensors, shape) with how many there are, the most first."""
    counts = Counter((f"{starred(each.module)}.weight", each.shape) for each in left)
    return sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))


def _left_over(tensors: Shapes, config: Mapping[str, Any], taken: Iterable[str]) -> list[_Left]:
    """Return the modules in numbered places that look like down projections, beside those that are taken."""
    taken = set(taken)
    modules = {name.removesuffix(".weight"): shape for name, (dtype, shape) in tensors.items() if len(shape) in (2, 3)}
    stored = {dtype for dtype, _ in tensors.values()}
    numbered: dict[str, str] = {}
    for module in modules:
        stack = _outermost_stack(module)
        if stack is not None and module not in taken and _could_be(module):
            numbered[module] = stack
    if not numbered:
        return []
    widths = residual_widths(set(numbered.values()), tensors, hidden_sizes(config))
    plain = stored <= set(FORMATS)
    children: dict[str, list[tuple[int, ...]]] = {}
    for module, shape in modules.items():
        children.setdefault(module.rpartition(".")[0], []).append(shape)
    return [
        _Left(module, stack, modules[module])
        for module, stack in sorted(numbered.items())
        if _looks_like_one(module, modules[module], widths[stack], children, plain=plain)
    ]


def _outermost_stack(module: str) -> str | None:
    parts = module.split(".")
    at = next((index for index, part in enumerate(parts) if index and NUMBER.fullmatch(part)), None)
    return None if at is None or at == len(parts) - 1 else ".".join(parts[:at])


def _could_be(module: str) -> bool:
    """Tell whether a name is not that of something else: attention, a router, an adapter, a norm, a mixer of tokens."""
    parts = [part for part in module.split(".") if part not in WRAPPERS]
    if any(module.endswith(end) for end in STORED_AS if end and end != ".weight"):
        return False
    return not is_other(parts) and not MIXERS.match(parts[-1])


def _looks_like_one(
    module: str,
    shape: tuple[int, ...],
    width: int | None,
    children: Mapping[str, Sequence[tuple[int, ...]]],
    *,
    plain: bool,
) -> bool:
    """Tell whether a matrix writes the residual stream from what a matrix beside it makes, or is called so."""
    parts = [part for part in module.split(".") if part not in WRAPPERS]
    fused = len(shape) == 3
    if fused and not EXPERT_WORDS.search(module):
        return False
    rows, cols = shape[-2:]
    says = parts[-1] in INPUTS and (parts[-1] not in AMBIGUOUS or is_mlp(parts[:-1]))
    if width is None or not plain:
        return says
    if rows == cols:
        return says
    beside = [each[-2:] for each in children[module.rpartition(".")[0]] if len(each) == len(shape)]
    makes = any(each in ((cols, width), (2 * cols, width)) for each in beside)
    turned = fused and any(each in ((width, rows), (width, 2 * rows)) for each in beside) and cols == width
    return (rows == width and (says or makes)) or turned


def _promised(
    tensors: Shapes,
    config: Mapping[str, Any],
    found: Sequence[DownProjection],
    unreadable: Mapping[str, UnreadableError],
) -> Iterator[Unread]:
    """Yield the layers and experts that config.json promises for the stack that makes text, and that are not there."""
    main = [each for each in found if each.tower in MAIN_TOWERS]
    stacks = {each.block.rpartition(".")[0] for each in main}
    if len(stacks) != 1 or any(each.layers for each in main):
        return
    (stack,) = stacks
    part = language_part(config)
    if main[0].tower == "decoder":
        return  # config.json counts the layers of encoders and decoders in too many ways
    layers, experts = size_in(part, NUM_LAYERS_KEYS), size_in(part, NUM_EXPERTS_KEYS)
    prefix = f"{stack}."
    stored = {
        int(number)
        for name in tensors
        if name.startswith(prefix) and (number := name[len(prefix) :].split(".")[0]).isdigit()
    }
    absent = [layer for layer in range(layers or 0) if layer not in stored]
    if absent:
        yield Unread(
            f"{stack}.*", len(absent), None, f"config.json says it has {layers} blocks; nothing of these is stored"
        )
    of_layer: dict[int, set[int]] = {}
    for each in main:
        if each.expert is not None:
            of_layer.setdefault(each.layer, set()).add(each.expert)
    if experts is None or not of_layer or any(EXPERT_WORDS.search(module) for module in unreadable):
        return
    fewer = {layer: experts - len(numbers) for layer, numbers in of_layer.items() if len(numbers) < experts}
    if fewer:
        name = starred(next(each.module for each in main if each.expert is not None))
        yield Unread(
            name, sum(fewer.values()), None, f"config.json says it has {experts} experts a layer; these are not stored"
        )
