"""The completeness check: what looks like a down projection, or is promised by config.json, and was not taken.

It looks at shapes and at what stands beside a matrix, not at the names by which down projections are found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
from analyzer.checkpoint.names import NUMBER, ModuleName, is_mlp, is_other, mixes, starred
from analyzer.checkpoint.projection import MAIN_TOWERS, DownProjection
from analyzer.checkpoint.stacks import residual_widths
from analyzer.encodings.finding import STORED_AS
from analyzer.encodings.floats import FORMATS
from analyzer.encodings.matrices import Shapes

MAX_SHOWN_CANDIDATES = 4
ROUTER = re.compile(r"[._](router|gate)(\.\w+)?\.weight$")
FIRST_NUMBER = re.compile(r"\.\d{1,5}(?=\.|$)", re.ASCII)
EXPERT_IN_A_LIST = re.compile(r"(.+)\.\w*experts\.\d{1,5}\.", re.ASCII)
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
    return (*unread, *_lacking(tensors, known), *_promised(model, tensors, config, found, unreadable))


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
    convolution = next((name for name, (_, shape) in tensors.items() if shape[2:] == (1,) and _in_block(name)), None)
    if convolution is not None:
        return ArchitectureError(
            f"{what} has convolutions in place of the linear maps of its MLPs, such as {shown(convolution, 80)} of "
            f"shape {shown(list(tensors[convolution][1]), 40)}: only matrices are scanned"
        )
    numbered = any(NUMBER.search(part) for name in tensors for part in name.split("."))
    return ArchitectureError(
        f"{what} has no MLP down projection"
        + (" that this version knows" if numbered else ", and no matrix in numbered layers at all")
    )


def _in_block(name: str) -> bool:
    """Tell whether a tensor lies in a numbered block, outside of what mixes tokens."""
    parts = name.split(".")
    return any(NUMBER.fullmatch(part) for part in parts[1:]) and not mixes(parts)


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
    numbered = {
        module: stack for module in modules if module not in taken and (stack := _outermost_stack(module)) is not None
    }
    if not numbered:
        return []
    widths = residual_widths(set(numbered.values()), tensors, hidden_sizes(config))
    plain = {dtype for dtype, _ in tensors.values()} <= set(FORMATS)
    left = [
        _Left(module, stack, modules[module])
        for module, stack in numbered.items()
        if _may_write(modules[module], widths[stack], plain=plain) and _could_be(module)
    ]
    parents = {each.module.rpartition(".")[0] for each in left}
    children: dict[str, list[tuple[int, ...]]] = {parent: [] for parent in parents}
    for module, shape in modules.items():
        if (parent := module.rpartition(".")[0]) in parents:
            children[parent].append(shape)
    with_one = {module.rpartition(".")[0] for module in taken}

    def beside(each: _Left) -> Sequence[tuple[int, ...]]:
        parent = each.module.rpartition(".")[0]
        return () if len(each.shape) > 2 and parent in with_one else children[parent]

    return [
        each
        for each in sorted(left, key=lambda each: each.module)
        if _looks_like_one(each.module, each.shape, widths[each.stack], beside(each), plain=plain)
    ]


def _outermost_stack(module: str) -> str | None:
    """Return what stands before the first number in a name that is not its last part."""
    number = FIRST_NUMBER.search(module)
    return module[: number.start()] if number is not None and number.end() < len(module) else None


def _may_write(shape: tuple[int, ...], width: int | None, *, plain: bool) -> bool:
    """Tell whether a matrix, or one of fused ones, can have the residual stream on its output side, as far as known."""
    rows, cols = shape[-2:]
    return not plain or width in (None, rows) or rows == cols or (len(shape) == 3 and width == cols)


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
    children: Sequence[tuple[int, ...]],
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
    if not plain or rows == cols:
        return says
    beside = [each[-2:] for each in children if len(each) == len(shape)]
    if width is None:  # what an MLP works in is wider than what it writes
        return says or (rows < cols and (cols, rows) in beside)
    makes = any(each in ((cols, width), (2 * cols, width)) for each in beside)
    if fused:  # gate and up are two of one shape, or one twice as wide
        alone = beside.count((rows, cols)) == 1
        turned = alone and cols == width and (beside.count((width, rows)) > 1 or (width, 2 * rows) in beside)
        return (rows == width and (says or (makes and alone))) or turned
    return rows == width and (says or makes)


def _lacking(tensors: Shapes, known: Mapping[str, ModuleName]) -> Iterator[Unread]:
    """Yield the down projections of blocks that have all that other blocks of their stack have, but for an MLP's own.

    Such a block was saved, or downloaded, in part; one of another kind lacks the MLP's norm or router too, or has
    something else in its place.
    """
    mlps: dict[tuple[str, int], dict[str, int]] = {}  # of each block, the kinds of down projections, with how many
    own: dict[str, set[str]] = {}  # of each stack, the kinds of modules that are part of an MLP
    for module, parsed in known.items():
        kinds = mlps.setdefault((parsed.stack, parsed.layer), {})
        kind = starred(module[len(parsed.block) + 1 :])
        kinds[kind] = kinds.get(kind, 0) + 1
        inputs = (starred(name[len(parsed.block) + 1 :]) for name in parsed.inputs)
        own.setdefault(parsed.stack, set()).update((kind, *inputs))
    blocks: dict[str, dict[int, set[str]]] = {stack: {} for stack in own}
    star = lru_cache(1 << 14)(starred)  # blocks have the same tails
    for name in tensors:
        for stack, layer, tail in _places(name, own):
            blocks[stack].setdefault(layer, set()).add(star(tail))
    for stack, layers in blocks.items():
        of_kind: dict[frozenset[str], list[int]] = {}
        for layer, tails in sorted(layers.items()):
            of_kind.setdefault(frozenset(tails), []).append(layer)
        for few, lacking in of_kind.items():
            more = [tails for tails in of_kind if tails > few and all(_is_part(t, own[stack]) for t in tails - few)]
            if not more:
                continue
            whole = of_kind[max(more, key=len)][0]
            there = mlps.get((stack, lacking[0]), {})
            for kind, count in mlps.get((stack, whole), {}).items():
                if kind not in there:
                    yield Unread(
                        f"{stack}.{lacking[0] if len(lacking) == 1 else '*'}.{kind}",
                        count * len(lacking),
                        None,
                        f"layer {whole} has it, and all else that is stored of these blocks",
                    )


def _places(name: str, stacks: Collection[str]) -> Iterator[tuple[str, int, str]]:
    """Yield each of these stacks that a tensor lies in, with the number of the block and what follows it."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if NUMBER.fullmatch(part) and (stack := ".".join(parts[:index])) in stacks:
            yield stack, int(part), ".".join(parts[index + 1 :])


def _is_part(tail: str, modules: Collection[str]) -> bool:
    return any(tail == module or tail.startswith(f"{module}.") for module in modules)


def _promised(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    found: Sequence[DownProjection],
    unreadable: Mapping[str, UnreadableError],
) -> Iterator[Unread]:
    """Yield the layers and experts that config.json promises for the stack that makes text, and that are not there.

    Raises ArchitectureError where there is a router and none of what it chooses from.
    """
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
        if name.startswith(prefix) and NUMBER.fullmatch(number := name[len(prefix) :].split(".")[0])
    }
    absent = layers - sum(layer < layers for layer in stored) if layers is not None else 0
    if absent:
        yield Unread(f"{stack}.*", absent, None, f"config.json says it has {layers} blocks; nothing of these is stored")
    of_layer: dict[int, set[int]] = {}
    for each in main:
        if each.expert is not None:
            of_layer.setdefault(each.layer, set()).add(each.expert)
    if experts is not None and not of_layer and not unreadable:
        router = next((name for name in tensors if name.startswith(prefix) and ROUTER.search(name)), None)
        if router is not None and experts in tensors[router][1]:
            raise ArchitectureError(
                f"{model} has no experts, but {shown(router)} chooses from {experts} of them: download it again"
            )
    if not of_layer or any(EXPERT_WORDS.search(module) for module in unreadable):
        return
    one_of = {each.layer: each for each in main if each.expert is not None}
    fewer = sum(
        max((experts or _experts_told(one_of[layer], numbers, tensors)) - len(numbers), 0)
        for layer, numbers in of_layer.items()
    )
    if fewer:
        told = f"config.json says it has {experts}" if experts else "routers, or the numbers of others, tell of more"
        name = starred(next(iter(one_of.values())).module)
        yield Unread(name, fewer, None, f"{told} experts a layer; these are not stored")


def _experts_told(expert: DownProjection, numbers: Collection[int], tensors: Shapes) -> int:
    """Return how many experts a layer has by the numbers of those that are there, and by the router beside one."""
    beside = EXPERT_IN_A_LIST.match(expert.module)
    routers = (f"{beside[1]}.{name}.weight" for name in ("gate", "router")) if beside else ()
    shapes = (tensors[name][1] for name in routers if name in tensors)
    outputs = (shape[0] for shape in shapes if len(shape) == 2 and shape[0] != expert.shape[0])
    return max([1 + max(numbers), *outputs])
