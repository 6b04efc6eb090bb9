"""The completeness check: what looks like a down projection and was not taken, or cannot be read.

It looks at shapes and at what stands beside a matrix, not at the names by which down projections are found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyzer.base.config import hidden_sizes, model_types, quantization_name
from analyzer.base.errors import ArchitectureError, UnreadableError, shown
from analyzer.base.records import Unread
from analyzer.encodings.finding import STORED_AS
from analyzer.numbers.floats import FORMATS
from analyzer.numbers.matrices import Shapes
from analyzer.numbers.module import starred
from analyzer.projections.architectures import AMBIGUOUS, INPUTS, MIXERS, TURNING, WITHOUT_MLP, WRAPPERS
from analyzer.projections.missing import find_missing, is_asked
from analyzer.projections.names import EXPERT_WORDS, NUMBER, ModuleName, is_mlp, is_other, mixes
from analyzer.projections.projection import DownProjection
from analyzer.projections.stacks import residual_widths

MAX_SHOWN_CANDIDATES = 4
PACKED = tuple(end for end in STORED_AS if end not in ("", ".weight"))
QUERIES = re.compile(r"w?(q|k|v|qkv|query|key|value)(_?(proj|lin|a_proj|b_proj|a|b))?$", re.IGNORECASE)
FIRST_NUMBER = re.compile(r"\.\d{1,5}(?=\.|$)", re.ASCII)


@dataclass(frozen=True)
class _Left:
    """A module that is not taken: the number of its block is the first in its name; `shape` is as it is stored."""

    module: str
    tensor: str
    stack: str
    shape: tuple[int, ...]
    packed: bool = False

    @property
    def layer(self) -> int:
        """The number of its block."""
        number = FIRST_NUMBER.search(self.module)
        assert number is not None
        return int(number[0][1:])


def find_unread(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    known: Mapping[str, ModuleName],
    found: Sequence[DownProjection],
    unreadable: Mapping[str, UnreadableError],
    layers: Sequence[range] | None = None,
) -> tuple[Unread, ...]:
    """Return what is not read, by kind of name, of these layers where they are given.

    `known` are the modules that names tell, `found` the down projections among them, `unreadable` those of them whose
    encoding is not read. Raises ArchitectureError where a whole tower, or all of a tower's experts, would be missing.
    """
    towers = {each.stack for each in found}
    with_experts = {each.stack for each in found if each.expert is not None}
    for module, error in unreadable.items():
        stack = known[module].stack
        if stack not in towers or (EXPERT_WORDS.search(module) and stack not in with_experts):
            raise error
    kinds: Counter[tuple[str, tuple[int, ...] | None, str]] = Counter()
    for module, error in unreadable.items():
        if is_asked(known[module].layer, layers):
            kinds[starred(module), None, f"stored by {error.encoding}"] += 1
    taken = {*known, *(name for each in known.values() for name in each.inputs)}
    turning = {f"{block}.{name}" for block in {each.block for each in known.values()} for name in TURNING}
    left = _left_over(tensors, config, taken | turning)
    for each in left:
        whole = not any(stack == each.stack or stack.startswith(f"{each.stack}.") for stack in towers)
        experts = EXPERT_WORDS.search(each.module) is not None and not any(
            stack == each.stack or stack.startswith(f"{each.stack}.") for stack in with_experts
        )
        if whole or experts:
            raise _missing(model, each, left, "tower" if whole else "experts")
        if not is_asked(each.layer, layers):
            continue
        why = "packed, in an MLP" if each.packed else "looks like a down projection"
        kinds[starred(each.module), None if each.packed else each.shape, f"{why}, by a name that is not known"] += 1
    unread = [Unread(names, count, shape, why) for (names, shape, why), count in sorted(kinds.items(), key=str)]
    return (*unread, *find_missing(model, tensors, config, known, found, unreadable, layers))


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
    counts = Counter((starred(each.tensor), each.shape) for each in left)
    return sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))


def _left_over(tensors: Shapes, config: Mapping[str, Any], taken: Collection[str]) -> list[_Left]:
    """Return the modules in numbered places that look like down projections, beside those that are taken."""
    modules = {name.removesuffix(".weight"): name for name, (_, shape) in tensors.items() if len(shape) in (2, 3)}
    numbered = {
        module: stack for module in modules if module not in taken and (stack := _outermost_stack(module)) is not None
    }
    if not numbered:
        return []
    widths = residual_widths(set(numbered.values()), tensors, hidden_sizes(config))
    plain = {dtype for dtype, _ in tensors.values()} <= set(FORMATS)
    left = []
    for module, stack in numbered.items():
        shape = tensors[modules[module]][1]
        packed = next((end for end in PACKED if module.endswith(end)), None)
        if packed is not None:
            if (name := module.removesuffix(packed)) not in taken and _could_be(name) and is_mlp(name.split(".")[:-1]):
                left.append(_Left(name, modules[module], stack, shape, packed=True))
        elif _may_write(shape, widths[stack], plain=plain) and _could_be(module):
            left.append(_Left(module, modules[module], stack, shape))
    parents = {each.module.rpartition(".")[0] for each in left}
    children: dict[str, list[str]] = {parent: [] for parent in parents}
    for module in modules:
        parent, _, name = module.rpartition(".")
        if parent in parents:
            children[parent].append(name)
    with_one = {module.rpartition(".")[0] for module in taken}

    def is_one(each: _Left) -> bool:
        parent = each.module.rpartition(".")[0]
        if each.packed:
            return True
        beside = () if len(each.shape) > 2 and parent in with_one else children[parent]
        if any(map(QUERIES.match, beside)) and not NUMBER.fullmatch(parent.rpartition(".")[2]):
            return False  # what mixes tokens, by any name
        shapes = [tensors[modules[f"{parent}.{name}"]][1] for name in beside]
        return _looks_like_one(each.module, each.shape, widths[each.stack], shapes, plain=plain)

    return sorted(filter(is_one, left), key=lambda each: each.module)


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
    experts = EXPERT_WORDS.search(module) is not None
    low_rank = not experts and 2 * cols < rows  # an adapter, or an input of each layer
    makes = not low_rank and any(each in ((cols, width), (2 * cols, width)) for each in beside)
    if fused:  # gate and up are two of one shape, or one twice as wide
        alone = beside.count((rows, cols)) == 1
        turned = alone and cols == width and (beside.count((width, rows)) > 1 or (width, 2 * rows) in beside)
        return (rows == width and (says or (makes and alone))) or turned
    return rows == width and (says or makes)
