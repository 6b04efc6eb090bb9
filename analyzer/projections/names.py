"""What the names of tensors say: which module is an MLP's down projection, of which stack, block, MLP and expert."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from analyzer.projections.architectures import (
    AMBIGUOUS,
    INPUTS,
    MIXERS,
    MIXING_WORDS,
    MLP_WORDS,
    OTHER_WORDS,
    ROUTERS,
    TOLD_BY_INPUTS,
    WRAPPERS,
    known_tails,
    last_words,
)

NUMBER = re.compile(r"\d{1,5}", re.ASCII)
PLAIN = re.compile(r"[\w.-]+", re.ASCII)
EXPERT_WORDS = re.compile(r"expert|moe|switch", re.IGNORECASE)
EXPERT = re.compile(r"experts?_?(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModuleName:
    """What a module's name says: its stack of blocks, the block's number there, its MLP in the block, and the expert.

    `mlp` is where the module is in its block, without the number of the expert; `inputs` are the names beside it that
    project into the MLP, empty where none of the known ones is there. `known` tells that `mlp` is a known name, not one
    that was told from what is around it.
    """

    stack: str
    layer: int
    mlp: str
    expert: int | None
    inputs: tuple[str, ...] = ()
    known: bool = True

    @property
    def block(self) -> str:
        """The block's own name."""
        return f"{self.stack}.{self.layer}"


def find_modules(modules: Collection[str]) -> dict[str, ModuleName]:
    """Return what the names of down projections say, among all modules of a checkpoint that hold a tensor.

    A module is taken by its name: because what follows the block's number is known, or because it is called what a
    down projection is called and stands in what is called an MLP, or beside what projects into one.
    """
    there = set(modules)
    blocks = _with_other_parts(there)
    found = {}
    for module in modules:
        if (parsed := _parse(module, there, blocks)) is not None:
            found[module] = parsed
    return found


def _with_other_parts(modules: Iterable[str]) -> set[str]:
    """Return every numbered place that holds more than an MLP: its number is a block's, not that of a sublayer."""
    places = set()
    for module in modules:
        parts = module.split(".")
        if not mixes(parts[:-1]) and not _is_mixer(parts[-1]):
            continue
        numbers = _numbers(parts)
        if len(numbers) < 2:
            continue
        for index in numbers:
            tail = parts[index + 1 :]
            if mixes(tail[:-1]) or (tail and _is_mixer(tail[-1]) and not is_mlp(tail)):
                places.add(".".join(parts[: index + 1]))
    return places


def _parse(module: str, there: Collection[str], blocks: Collection[str]) -> ModuleName | None:
    if not PLAIN.fullmatch(module):
        return None
    parts = module.split(".")
    bare = parts[:-1] if parts[-1] in WRAPPERS and len(parts) > 1 else parts
    if bare[-1] not in last_words() and not bare[-1][-1:].isdigit():
        return None  # of hundreds of thousands of names, few come further
    numbers = [index for index in _numbers(bare) if index < len(bare) - 1]
    if not numbers:
        return None
    at = _block_number(bare, numbers, blocks)
    tail: list[str] = []
    expert = None
    for part in bare[at + 1 :]:
        if (named := EXPERT.fullmatch(part)) is not None:
            expert = int(named[1])
            part = "*"
        elif NUMBER.fullmatch(part) and tail and _numbers_experts(tail[-1]):
            expert = int(part)
            part = "*"
        tail.append(part)
    inputs = inputs_of(module, there)
    words = [part for part in tail if not NUMBER.fullmatch(part) and part != "*"]
    in_mlp = is_mlp(tail[:-1])
    own, _ = own_name(bare)
    told = (
        (bool(inputs) or (in_mlp and own not in TOLD_BY_INPUTS)) and (own not in AMBIGUOUS or in_mlp) and own in INPUTS
    )
    known = ".".join(words) in known_tails()
    if not known and (not told or is_other(tail[:-1])):
        return None
    return ModuleName(".".join(bare[:at]), int(bare[at]), ".".join(tail), expert, inputs, known)


@lru_cache(1 << 12)  # hundreds of thousands of names are made of some dozens of parts and their numbers
def _mixes(part: str) -> bool:
    return MIXING_WORDS.search(part) is not None and MLP_WORDS.search(part) is None


@lru_cache(1 << 12)
def _is_mlp(part: str) -> bool:
    return MLP_WORDS.search(part) is not None


@lru_cache(1 << 12)
def _is_mixer(part: str) -> bool:
    return MIXERS.match(part) is not None


@lru_cache(1 << 12)
def _is_router(part: str) -> bool:
    return ROUTERS.search(part) is not None


@lru_cache(1 << 12)
def _is_other(part: str) -> bool:
    return OTHER_WORDS.search(part) is not None


def mixes(parts: Iterable[str]) -> bool:
    """Tell whether parts of a name call what mixes tokens, such as attention."""
    return any(map(_mixes, parts))


def is_other(parts: Iterable[str]) -> bool:
    """Tell whether parts of a name call something else than an MLP: attention, a norm, an adapter.

    A router's MLP is a router; the MLP within an adapter or a block of convolutions is an MLP.
    """
    parts = list(parts)
    last = max((index for index, part in enumerate(parts) if _is_mlp(part)), default=-1)
    return mixes(parts) or any(map(_is_router, parts)) or any(map(_is_other, parts[last + 1 :]))


def is_mlp(parts: Iterable[str]) -> bool:
    """Tell whether parts of a name call an MLP."""
    return any(map(_is_mlp, parts))


def _numbers(parts: list[str]) -> list[int]:
    """Return where a name has numbers that are not those of experts."""
    return [
        index
        for index, part in enumerate(parts)
        if index and NUMBER.fullmatch(part) and not _numbers_experts(parts[index - 1])
    ]


def _numbers_experts(part: str) -> bool:
    """Tell whether a number after this part of a name is an expert's: also in early GGUF files of mixtures."""
    return "expert" in part or part in ("ffn_down", "ffn_up", "ffn_gate")


def _block_number(parts: list[str], numbers: list[int], blocks: Collection[str]) -> int:
    """Return where in a name the block's number is: the innermost that counts more than MLPs, else the outermost.

    Where blocks share weights in groups, a group is what is stored of them.
    """
    if parts[numbers[0] - 1].endswith("groups"):
        return numbers[0]
    for index in reversed(numbers):
        if ".".join(parts[: index + 1]) in blocks:
            return index
    return numbers[0]


def inputs_of(module: str, there: Collection[str]) -> tuple[str, ...]:
    """Return the modules beside a down projection that project into its MLP: the first known names that are there."""
    parts = module.split(".")
    bare = parts[:-1] if parts[-1] in WRAPPERS and len(parts) > 1 else parts
    own, parent = own_name(bare)
    guesses = (
        tuple(".".join([*parent, name, *parts[len(bare) :]]) for name in beside) for beside in INPUTS.get(own, ())
    )
    return next((guess for guess in guesses if all(name in there for name in guess)), ())


def own_name(parts: list[str]) -> tuple[str, list[str]]:
    """Return the part of a module's name that is its own in its MLP, of one word or two, and what holds that MLP."""
    words = 2 if ".".join(parts[-2:]) in INPUTS else 1
    return ".".join(parts[-words:]), parts[:-words]


def towers_of(stacks: Iterable[str], towers: Mapping[str, tuple[str, ...]]) -> dict[str, str | None]:
    """Return the name of each stack of blocks; a model's only one has none."""
    unique = sorted(set(stacks))
    if len(unique) == 1:
        return {unique[0]: None}
    named = {stack: _tower(stack, towers) for stack in unique}
    unnamed = [stack for stack, tower in named.items() if tower is None]
    if {"vision", "audio"} & set(named.values()) and len(unnamed) == 1:
        named[unnamed[0]] = "language"
    counts = list(named.values())
    return {stack: tower if counts.count(tower) == 1 else stack for stack, tower in named.items()}


def _tower(stack: str, towers: Mapping[str, tuple[str, ...]]) -> str | None:
    for part in stack.split("."):
        words = re.split(r"[_\d]+", part)
        for tower, names in towers.items():
            if any(name in words for name in names):
                return tower
    return None
