"""What the shapes of a stack's tensors say: how wide its residual stream is, and which way round a matrix lies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from analyzer.checkpoint.names import NUMBER, ModuleName, starred
from analyzer.encodings.floats import FORMATS
from analyzer.encodings.matrices import Shapes

PLAIN = frozenset({*FORMATS, "F8_E4M3", "F8_E5M2"})
SCALES = re.compile(r"scale|zero|absmax|bias(es)?$|g_idx")


def residual_widths(stacks: Collection[str], tensors: Shapes, sizes: Collection[int]) -> dict[str, int | None]:
    """Return how many channels each stack's residual stream has; null where its tensors do not tell.

    Nearly everything in a block reads or writes the stream, or scales it: its width is the size that most kinds of
    tensors have. Of sizes that are as frequent it is the one that config.json names among `sizes`.
    """
    kinds: dict[str, dict[str, tuple[int, ...]]] = {stack: {} for stack in stacks}
    star = lru_cache(1 << 14)(starred)  # blocks have the same tails
    for name, (dtype, shape) in tensors.items():
        if not shape or dtype not in PLAIN or (stack := _stack_of(name, kinds)) is None:
            continue
        number, _, tail = name[len(stack) + 1 :].partition(".")
        kind = star(tail) if NUMBER.fullmatch(number) else name
        if kind not in kinds[stack] and not SCALES.search(name):
            kinds[stack][kind] = shape
    return {stack: _most_frequent(found.values(), sizes) for stack, found in kinds.items()}


def _stack_of(name: str, stacks: Mapping[str, object]) -> str | None:
    """Return the innermost of the stacks that a tensor lies in."""
    end = name.rfind(".")
    while end > 0:
        if name[:end] in stacks:
            return name[:end]
        end = name.rfind(".", 0, end)
    return None


def _most_frequent(shapes: Iterable[tuple[int, ...]], sizes: Collection[int]) -> int | None:
    counts = Counter(size for shape in shapes for size in set(shape) if size > 1)
    most = max(counts.values(), default=0)
    found = [size for size, count in counts.items() if count == most]
    named = [size for size in found if size in sizes] or found
    return named[0] if len(named) == 1 else None


def shapes_beside(modules: Mapping[str, ModuleName], tensors: Shapes) -> dict[str, set[tuple[int, ...]]]:
    """Return the shapes of each block's matrices that are neither down projections nor read by one.

    Where the rows of a down projection are not as many as the residual stream has channels, one of these turns them.
    """
    shapes: dict[str, set[tuple[int, ...]]] = {each.block: set() for each in modules.values()}
    taken = {*modules, *(name for each in modules.values() for name in each.inputs)}
    for name, (_, shape) in tensors.items():
        if len(shape) == 2 and name.removesuffix(".weight") not in taken:
            block = _stack_of(name, shapes)
            if block is not None:
                shapes[block].add(shape)
    return shapes
