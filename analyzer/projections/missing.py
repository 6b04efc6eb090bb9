"""What is not stored: a down projection beside the rest of its MLP, blocks and experts that there should be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Any

from analyzer.base.config import NUM_EXPERTS_KEYS, NUM_LAYERS_KEYS, language_part, size_in
from analyzer.base.errors import ArchitectureError, UnreadableError, shown
from analyzer.base.records import Unread
from analyzer.encodings.finding import STORED_AS
from analyzer.numbers.matrices import Shapes
from analyzer.numbers.module import starred
from analyzer.projections.names import EXPERT_WORDS, NUMBER, ModuleName
from analyzer.projections.projection import MAIN_TOWERS, DownProjection

ROUTER = re.compile(r"[._](router|gate)(\.\w+)?\.weight$")
EXPERT_IN_A_LIST = re.compile(r"(.+)\.\w*experts\.\d{1,5}\.", re.ASCII)
LAST_NUMBER = re.compile(r"(?<!\d)\d{1,5}$", re.ASCII)
DEPTH_KEYS = (*NUM_LAYERS_KEYS, "depth")  # of a tower that has a part of config.json for itself

Blocks = Mapping[str, Mapping[int, Collection[str]]]
"""Of each stack of blocks, by number, the kinds of what is stored of a block."""


def find_missing(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    known: Mapping[str, ModuleName],
    found: Sequence[DownProjection],
    unreadable: Mapping[str, UnreadableError],
    layers: Sequence[range] | None = None,
) -> Iterator[Unread]:
    """Yield what is not stored; the arguments are those of find_unread.

    Raises ArchitectureError where there is a router and none of what it chooses from.
    """
    experts = size_in(language_part(config), NUM_EXPERTS_KEYS)
    lost = {  # past the last of the experts are those that do nothing, of which LongCat stores the inputs
        module: parsed
        for module, parsed in _lost(tensors, known).items()
        if parsed.expert is None or experts is None or parsed.expert < experts
    }
    kinds: dict[str, list[str]] = {}
    for module in sorted(module for module, parsed in lost.items() if is_asked(parsed.layer, layers)):
        kinds.setdefault(starred(module), []).append(module)
    for kind, of_kind in kinds.items():
        names = of_kind[0] if len(of_kind) == 1 else kind
        yield Unread(names, len(of_kind), None, "what projects into it is stored, and it is not")
    modules = {**known, **lost}
    blocks = _blocks(tensors, {each.stack for each in known.values()})
    yield from _lacking(blocks, modules, layers)
    if layers is None:
        yield from _absent(blocks, config, found)
    yield from _fewer_experts(model, tensors, config, found, lost, unreadable, layers)


def is_asked(layer: int, layers: Sequence[range] | None) -> bool:
    """Tell whether a layer is among these ranges, as any is where there are none."""
    return layers is None or any(layer in each for each in layers)


def _lost(tensors: Shapes, known: Mapping[str, ModuleName]) -> dict[str, ModuleName]:
    """Return the down projections that are not stored, though what projects into them is, by name."""
    kinds: dict[str, str] = {}  # of names, with one of them
    taken = set(known)
    ends: dict[str, set[str]] = {}  # what names of inputs end in, with what the name of the down projection then does
    for module, parsed in known.items():
        taken.update(parsed.inputs)
        if (kind := starred(module)) in kinds:
            continue
        kinds[kind] = module
        for name in parsed.inputs:
            pairs = zip(module.split("."), name.split("."), strict=False)
            start = sum(len(part) + 1 for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) - 1
            ends.setdefault(name[start:], set()).add(module[start:])
    every = tuple(ends)
    lost = {}
    for name in tensors:
        module = _module_of(name)
        if not module.endswith(every) or module in taken:
            continue
        for end in filter(module.endswith, every):
            for down in ends[end]:
                beside = module.removesuffix(end) + down
                if beside not in known and (like := kinds.get(starred(beside))) is not None:
                    lost[beside] = _named_like(beside, like, known[like])
    return lost


def _module_of(tensor: str) -> str:
    return next((tensor.removesuffix(end) for end in STORED_AS if end and tensor.endswith(end)), tensor)


def _named_like(module: str, like: str, parsed: ModuleName) -> ModuleName:
    """Return what a name says that differs from another one by its numbers."""
    parts, others = module.split("."), like.split(".")
    at = parsed.block.count(".")
    expert = None
    for part, other in zip(parts[at + 1 :], others[at + 1 :], strict=True):
        number = LAST_NUMBER.search(other) if parsed.expert is not None else None
        if number is not None and int(number[0]) == parsed.expert:
            expert = int(part[number.start() :])
    return replace(parsed, stack=".".join(parts[:at]), layer=int(parts[at]), expert=expert, inputs=())


def _blocks(tensors: Shapes, stacks: Collection[str]) -> dict[str, dict[int, set[str]]]:
    blocks: dict[str, dict[int, set[str]]] = {stack: {} for stack in stacks}
    star = lru_cache(1 << 14)(starred)  # blocks have the same tails
    for name in tensors:
        parts = name.split(".")
        for index, part in enumerate(parts[:-1]):
            if NUMBER.fullmatch(part) and (stack := ".".join(parts[:index])) in blocks:
                blocks[stack].setdefault(int(part), set()).add(star(".".join(parts[index + 1 :])))
    return blocks


def _lacking(blocks: Blocks, known: Mapping[str, ModuleName], asked: Sequence[range] | None) -> Iterator[Unread]:
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
    for stack, layers in blocks.items():
        of_kind: dict[frozenset[str], list[int]] = {}
        for layer, tails in sorted(layers.items()):
            of_kind.setdefault(frozenset(tails), []).append(layer)
        for few, of_few in of_kind.items():
            lacking = [layer for layer in of_few if is_asked(layer, asked)]
            more = [tails for tails in of_kind if tails > few and all(_is_part(t, own[stack]) for t in tails - few)]
            if not more or not lacking:
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


def _is_part(tail: str, modules: Collection[str]) -> bool:
    return any(tail == module or tail.startswith(f"{module}.") for module in modules)


def _absent(blocks: Blocks, config: Mapping[str, Any], found: Sequence[DownProjection]) -> Iterator[Unread]:
    """Yield the blocks of which nothing is stored: those that config.json promises, or else those between others."""
    shared = {each.stack for each in found if each.layers}
    towers = {each.stack: each.tower for each in found if each.tower != "mtp"}
    mains = [stack for stack, tower in towers.items() if tower in MAIN_TOWERS]
    for stack, tower in towers.items():
        numbers = blocks[stack]
        if stack in shared or not numbers:
            continue
        part = config.get(f"{tower}_config")
        if [stack] == mains and tower != "decoder":  # config.json counts those of encoders and decoders in many ways
            said = _depth_said(language_part(config), numbers)
        else:
            said = size_in(part, DEPTH_KEYS) if isinstance(part, Mapping) else None
        if said is not None:
            why = f"config.json says it has {said} blocks; nothing of these is stored"
            absent = said - sum(number < said for number in numbers)
        else:
            why = "blocks before and after are stored; nothing of these is"
            absent = max(numbers) - min(numbers) + 1 - len(numbers)
        if absent:
            yield Unread(f"{stack}.*", absent, None, why)


def _depth_said(part: Mapping[str, Any], stored: Collection[int]) -> int | None:
    """Return how many blocks config.json says there are, which may count the attention and the MLP of each apart."""
    types = part.get("layer_types")
    if isinstance(types, list) and set(stored) == set(range(types.count("mlp"))):
        return len(stored)
    return size_in(part, NUM_LAYERS_KEYS)


def _fewer_experts(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    found: Sequence[DownProjection],
    lost: Mapping[str, ModuleName],
    unreadable: Mapping[str, UnreadableError],
    layers: Sequence[range] | None,
) -> Iterator[Unread]:
    """Yield the experts that are not stored of the stack that makes text, but for those whose inputs are."""
    main = [each for each in found if each.tower in MAIN_TOWERS]
    stacks = {each.stack for each in main}
    if len(stacks) != 1 or any(each.layers for each in main):
        return
    (stack,) = stacks
    experts = size_in(language_part(config), NUM_EXPERTS_KEYS)
    one_of = {each.layer: each for each in main if each.expert is not None}
    of_layer: dict[int, set[int]] = {layer: set() for layer in one_of}
    gone = [each for each in lost.values() if each.stack == stack]
    there = [*((each.layer, each.expert) for each in main), *((each.layer, each.expert) for each in gone)]
    for layer, expert in there:
        if expert is not None and layer in of_layer:
            of_layer[layer].add(expert)
    if experts is not None and not of_layer and not unreadable and main[0].tower != "decoder":
        router = next((name for name in tensors if name.startswith(f"{stack}.") and ROUTER.search(name)), None)
        if router is not None and experts in tensors[router][1]:
            raise ArchitectureError(
                f"{model} has no experts, but {shown(router)} chooses from {experts} of them: download it again"
            )
    if not of_layer or any(EXPERT_WORDS.search(module) for module in unreadable):
        return
    fewer = sum(
        max((experts or _experts_told(one_of[layer], numbers, tensors)) - len(numbers), 0)
        for layer, numbers in of_layer.items()
        if is_asked(layer, layers)
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
