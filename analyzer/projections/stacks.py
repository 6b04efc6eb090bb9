"""What the shapes of a stack's tensors say: how wide its residual stream is, and which way round a matrix lies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from analyzer.base.config import is_gguf, model_types
from analyzer.base.errors import ArchitectureError, shown
from analyzer.numbers.floats import FORMATS
from analyzer.numbers.matrices import Matrix, Shapes, turned
from analyzer.numbers.module import starred
from analyzer.projections.architectures import CONV1D_MODEL_TYPES, INPUTS_FIRST_EXPERTS, TURNING
from analyzer.projections.names import NUMBER, ModuleName

PLAIN = frozenset({*FORMATS, "F8_E4M3", "F8_E5M2"})
SHARED_EXPERT = re.compile(r"shared?_experts?")
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


def plain_shape(module: str, tensors: Shapes) -> tuple[int, ...] | None:
    """Return a module's shape where it is stored as plain floats."""
    for name in (f"{module}.weight", module):
        dtype, shape = tensors.get(name, ("", ()))
        if dtype in FORMATS and len(shape) in (2, 3):
            return shape
    return None


@dataclass(frozen=True)
class Lying:
    """What tells which way round one module's matrices lie."""

    model: str
    module: str
    parsed: ModuleName
    tensors: Shapes
    config: Mapping[str, Any]
    width: int | None
    """How many channels the residual stream of its stack has."""
    others: Callable[[], Mapping[str, Collection[tuple[int, ...]]]]
    """The shapes of each block's matrices that belong to no MLP."""

    def right_way_round(self, matrix: Matrix, *, fused: bool, known: bool) -> Matrix:
        """Return the matrix with its output channels as rows.

        What projects into the MLP tells, then names, then the width of the residual stream: a `.weight` is as a linear
        module has it, of a parameter its model's code decides. Raises ArchitectureError where nothing tells.
        """
        if matrix.transposed or matrix.encoding.expand != (1, 1) or is_gguf(self.config):
            return self._checked(matrix)  # such formats say which way round they are
        types = model_types(self.config)
        named = self.module.endswith("mlp.c_proj") and bool(types & CONV1D_MODEL_TYPES)
        parameter = fused and matrix.data.tensor == self.module
        named = named or (parameter and bool(types & INPUTS_FIRST_EXPERTS))
        told = self._told_by_inputs(matrix)
        if told is not None:
            return turned(matrix) if told else matrix
        matrix = turned(matrix) if named else matrix
        rows, cols = matrix.shape
        either = parameter or (not fused and self.module.endswith("c_proj"))
        if known and rows == cols and either and self.parsed.inputs and not named:
            raise ArchitectureError(
                f"{self.model}: {shown(matrix.data.tensor)} is square, and neither its name nor what is beside it "
                "tells which side is its output: scan the weights as its library stores them today"
            )
        if known and not fused:
            return self._checked(matrix)
        if self.width is not None and rows != self.width and cols == self.width:
            return turned(matrix)
        return matrix

    def is_latent(self, matrix: Matrix) -> bool:
        """Tell whether its rows are no channels of the residual stream."""
        rows, width, block = matrix.shape[0], self.width, self.parsed.block
        if width is None:
            return False
        if rows != width:
            return (width, rows) in self.others().get(block, ())
        mlp = SHARED_EXPERT.sub("", self.parsed.mlp)
        turning = (self.tensors.get(f"{block}.{name}.weight", ("", ()))[1] for name in TURNING)
        return ("expert" in mlp or "shared" in mlp) and (width, width) in turning

    def _told_by_inputs(self, matrix: Matrix) -> bool | None:
        """Tell whether what projects into the MLP says that the matrix must be turned; null where it does not say."""
        rows, cols = matrix.shape
        for name in self.parsed.inputs:
            shape = plain_shape(name, self.tensors)
            if shape is None or self.width is None:
                return None
            first, second = shape[-2:]
            if rows == cols:  # only what is fused of gate and up tells then
                return None if first == second else first == self.width
            if first == self.width != second:  # [in, out]: so is this, if it is as its inputs are
                return True if (cols == self.width and second in (rows, 2 * rows)) else None
            if second == self.width != first:
                return False if (rows == self.width and first in (cols, 2 * cols)) else None
        return None

    def _checked(self, matrix: Matrix) -> Matrix:
        """Raise ArchitectureError where the input side, not the output side, is as wide as the residual stream."""
        rows, cols = matrix.shape
        if self.width is None or rows == self.width or cols != self.width or self.is_latent(matrix):
            return matrix
        raise ArchitectureError(
            f"{self.model}: {shown(matrix.data.tensor)} has {rows} output and {cols} input channels, but the hidden "
            f"size is {self.width}: it lies the other way round than this architecture's tensors do"
        )
