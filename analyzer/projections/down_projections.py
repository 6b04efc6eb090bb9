"""Which tensor is a down projection, of which tower, layer, MLP and expert, and which way round it lies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any

from analyzer.base.config import (
    DECODER_LAYERS_KEYS,
    NUM_LAYERS_KEYS,
    PREDICTION_LAYERS_KEYS,
    hidden_sizes,
    language_part,
    size_in,
    sizes_in,
)
from analyzer.base.errors import ArchitectureError, UnreadableError, shown
from analyzer.base.records import Place, Unread
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.encodings.finding import STORED_AS, find_matrices, unreadable_as
from analyzer.encodings.notes import notes
from analyzer.numbers.matrices import Matrix, Shapes
from analyzer.numbers.module import IN_A_NAME, ReadTensors, StoredTensors, read_nothing
from analyzer.projections.architectures import TOWERS
from analyzer.projections.completeness import find_unread, none_found
from analyzer.projections.names import ModuleName, find_modules, inputs_of, towers_of
from analyzer.projections.projection import MAIN_TOWERS, DownProjection
from analyzer.projections.sharing import layers_sharing
from analyzer.projections.stacks import SHARED_EXPERT, Lying, plain_shape, residual_widths, shapes_beside


@dataclass(frozen=True)
class FoundProjections:
    """The down projections of a model in order, and what of it looks like one and is not among them.

    `notes` tell, a line each, where their values are not what the model multiplies with.
    """

    projections: list[DownProjection]
    unread: tuple[Unread, ...]
    notes: tuple[str, ...] = ()


def find_projections(
    checkpoint: Checkpoint, *, pattern: str | None = None, layers: Sequence[range] | None = None
) -> FoundProjections:
    """Return a checkpoint's down projections; see find_down_projections."""
    return find_down_projections(
        checkpoint.source.model,
        checkpoint.shapes,
        checkpoint.config,
        pattern=pattern,
        layers=layers,
        read=checkpoint.read_tensors,
    )


def down_projections(checkpoint: Checkpoint, *, pattern: str | None = None) -> list[DownProjection]:
    """Return a checkpoint's down projections without what is not read of it; see find_down_projections."""
    return find_projections(checkpoint, pattern=pattern).projections


def find_down_projections(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    *,
    pattern: str | None = None,
    layers: Sequence[range] | None = None,
    read: ReadTensors = read_nothing,
) -> FoundProjections:
    """Return the down projections among `tensors` (name -> dtype, shape), by tower, layer, MLP and expert.

    `pattern`, in the shell's way, names the tensors that are taken for down projections, in place of the names known
    here. `layers` are those of which it matters what is not read. `read` brings small tensors that describe others.
    Raises ArchitectureError where there are none, where two claim one place, where a shape or the way it is stored
    cannot be a down projection's, and where a whole tower or all experts cannot be read.
    """
    known, modules, held = _chosen(model, tensors, config, pattern)
    widths = residual_widths({each.stack for each in modules.values()}, tensors, hidden_sizes(config))
    of_stack = towers_of((each.stack for each in modules.values()), TOWERS)
    main = next((stack for stack, tower in of_stack.items() if tower in MAIN_TOWERS), None)
    depth = _depth(model, main, modules.values(), config, decoder=of_stack.get(main or "") == "decoder")
    stored = StoredTensors(model, tensors, config, read)
    matrices_of, unreadable = _matrices_of(stored, modules, held, told=pattern is None)
    mlps = _mlps_of_blocks(modules, tensors)
    others = cache(partial(shapes_beside, modules, tensors))  # few models need it
    found: dict[Place, DownProjection] = {}
    for module, matrices in matrices_of.items():
        parsed, fused = modules[module], _is_fused(tensors, matrices)
        ahead = parsed.stack == main and depth is not None and parsed.layer >= depth
        sharing = layers_sharing(config, parsed)
        lying = Lying(model, module, parsed, tensors, config, widths[parsed.stack], others)
        for number, matrix in enumerate(matrices):
            matrix = lying.right_way_round(matrix, fused=fused, known=pattern is None)
            projection = DownProjection(
                tower="mtp" if ahead else of_stack[parsed.stack],
                layer=sharing[0] if sharing else parsed.layer,
                mlp=mlps.get((parsed.block, parsed.mlp.rpartition(".")[0])),
                expert=number if fused else parsed.expert,
                block=parsed.block,
                module=module,
                matrix=matrix,
                inputs=parsed.inputs,
                layers=sharing,
                writes="latent" if lying.is_latent(matrix) else None,
            )
            other = found.setdefault(projection.place, projection)
            if other is not projection:
                raise ArchitectureError(
                    f"{model}: {shown(projection.name)} and {shown(other.name)} both claim layer {projection.layer}"
                    + ("" if pattern is None else f": narrow --tensors {shown(pattern, 80)}")
                )
    in_order = [found[place] for place in sorted(found)]
    unread: tuple[Unread, ...] = ()
    if pattern is None:
        unread = find_unread(model, tensors, config, known, in_order, unreadable, layers)
    elif unreadable:  # what is asked for by name is all that is asked for
        raise next(iter(unreadable.values()))
    return FoundProjections(in_order, unread, tuple(notes((each.matrix for each in in_order), config)))


def _chosen(
    model: str, tensors: Shapes, config: Mapping[str, Any], pattern: str | None
) -> tuple[Mapping[str, ModuleName], Mapping[str, ModuleName], Mapping[str, str]]:
    """Return the modules whose names are known, those of them that are taken, and those whose matrix has no known name.

    Of the last, each has the name of a tensor that it holds. Raises ArchitectureError where none is taken.
    """
    held: Mapping[str, str] = {}
    if pattern is None:
        known, held = _known_modules(tensors)
        modules = {
            module: parsed
            for module, parsed in known.items()
            if parsed.known or (_returns(module, parsed, tensors) and not _projects_into(module, known, tensors))
        }
    else:
        known = modules = _matching_modules(model, tensors, pattern)
    if not modules:
        raise none_found(model, tensors, config, pattern)
    return known, modules, held


def _matrices_of(
    stored: StoredTensors, modules: Mapping[str, ModuleName], held: Mapping[str, str], *, told: bool
) -> tuple[dict[str, list[Matrix]], dict[str, UnreadableError]]:
    """Return the matrices of each module, and what is wrong with those that are stored in a way that is not read.

    `held` has a tensor of each module that has no matrix by a known name; `told` are modules by their names.
    """
    found: dict[str, list[Matrix]] = {}
    unreadable: dict[str, UnreadableError] = {}
    for module, parsed in modules.items():
        if module in held:
            unreadable[module] = unreadable_as(stored, module, held[module])
            continue
        try:
            matrices = find_matrices(stored, module)
        except UnreadableError as error:
            unreadable[module] = error
            continue
        assert matrices is not None  # the module's name comes from a tensor's
        if len(matrices) > 1 and parsed.expert is not None:
            raise ArchitectureError(f"{stored.model}: {shown(module)} names an expert, but holds {len(matrices)}")
        if told and _is_fused(stored.tensors, matrices) and not _holds_experts(module, parsed, stored.tensors):
            name = matrices[0].data.tensor
            raise ArchitectureError(f"{stored.model}: {shown(name)} has three dimensions, so is no matrix")
        found[module] = matrices
    return found, unreadable


def _known_modules(tensors: Shapes) -> tuple[dict[str, ModuleName], dict[str, str]]:
    """Return the modules that names tell to be down projections, and those whose matrix has no name that is known.

    Of the latter, each has the name of a tensor that it holds.
    """
    modules = dict.fromkeys(module for name in tensors for module in _modules_of(name))
    held: dict[str, str] = {}
    for name, (_, shape) in tensors.items():
        if len(shape) > 1 and not name.endswith(".weight"):
            outer, _, inner = name.partition(".parametrizations.")
            holder = outer if inner else outer.rpartition(".")[0].removesuffix(".weight")
            if holder not in modules:
                held.setdefault(holder, name)
    known = find_modules({**modules, **held})
    return known, {module: held[module] for module in known if module in held}


def _modules_of(tensor: str) -> list[str]:
    """Return the names that the module could have whose matrix a tensor of this name stores."""
    return [tensor.removesuffix(suffix) for suffix in STORED_AS if tensor.endswith(suffix)]


def _returns(module: str, parsed: ModuleName, tensors: Shapes) -> bool:
    """Tell whether a module's output is as wide as what goes into its MLP: that of a projector or an adapter is not.

    True too where shapes do not tell.
    """
    down = plain_shape(module, tensors)
    inputs = [plain_shape(name, tensors) for name in parsed.inputs]
    if down is None or not inputs or any(shape is None or len(shape) != len(down) for shape in inputs):
        return True
    return all(shape is not None and down[-2:] in _outputs_of(shape[-2:]) for shape in inputs)


def _projects_into(module: str, known: Mapping[str, ModuleName], tensors: Shapes) -> bool:
    """Tell whether a module is what projects into one beside it that names take for its input in turn (w2 and w3).

    What projects into an MLP is stored in one shape, however it is encoded.
    """
    return not _stored_alike(known[module].inputs, tensors) and any(
        other in known and module in known[other].inputs and _stored_alike(known[other].inputs, tensors)
        for other in known[module].inputs
    )


def _stored_alike(modules: Sequence[str], tensors: Shapes) -> bool:
    return len({tensors[module + end][1] for module in modules for end in STORED_AS if module + end in tensors}) == 1


def _outputs_of(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return the shapes that a down projection can have behind an input projection of this shape, alone or fused."""
    first, second = shape
    return {(second, first), (second, first // 2), (second // 2, first)}


def _matching_modules(model: str, tensors: Shapes, pattern: str) -> dict[str, ModuleName]:
    """Return the modules of the matrices whose tensors a pattern names; their first number is the layer."""
    there = {module for name in tensors for module in _modules_of(name)}
    modules = {}
    for name, (_, shape) in tensors.items():
        if len(shape) < 2 or not fnmatchcase(name, pattern):
            continue
        module = _modules_of(name)[0]
        numbers = list(IN_A_NAME.finditer(module))
        if not numbers:
            raise ArchitectureError(
                f"{model}: {shown(name)} has no layer's number in its name: narrow --tensors {shown(pattern, 80)}"
            )
        expert = int(numbers[1][0]) if len(numbers) > 1 else None
        stack, tail = module[: numbers[0].start()].rstrip("."), module[numbers[0].end() :].lstrip(".")
        if expert is not None:
            tail = IN_A_NAME.sub("*", tail, count=1)
        modules[module] = ModuleName(stack, int(numbers[0][0]), tail, expert, inputs_of(module, there))
    return modules


def _mlps_of_blocks(modules: Mapping[str, ModuleName], tensors: Shapes) -> dict[tuple[str, str], int]:
    """Return the number of each MLP, by (block, what holds it there), in the order of their names.

    Only those of blocks with several of a kind are there: a mixture of experts is of another kind than one MLP.
    """
    of_block: dict[tuple[str, bool], set[str]] = {}
    for module, parsed in modules.items():
        experts = parsed.expert is not None or "expert" in SHARED_EXPERT.sub("", parsed.mlp)
        kind = (parsed.block, experts or _is_stacked(module, tensors))
        of_block.setdefault(kind, set()).add(parsed.mlp.rpartition(".")[0])
    return {
        (block, mlp): number
        for (block, _), mlps in of_block.items()
        if len(mlps) > 1
        for number, mlp in enumerate(sorted(mlps, key=_natural))
    }


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names as people do, 2 before 10; a number may have any length."""
    parts = enumerate(re.split(r"([0-9]+)", name))
    return [(len(number := part.lstrip("0")), number) if index % 2 else (-1, part) for index, part in parts]


def _is_stacked(module: str, tensors: Shapes) -> bool:
    """Tell whether a module's tensor has a matrix for each expert, however it is stored."""
    return any(len(tensors[name][1]) > 2 for end in STORED_AS if (name := module + end) in tensors)


def _holds_experts(module: str, parsed: ModuleName, tensors: Shapes) -> bool:
    """Tell whether a stacked matrix is one for each expert: its name says so, or what is beside it is stacked too."""
    beside = [len(shape) for name in parsed.inputs if (shape := plain_shape(name, tensors)) is not None]
    return bool(re.search("exp|moe|switch|mlp2_weight", module) or (beside and min(beside) > 2))


def _is_fused(tensors: Shapes, matrices: Sequence[Matrix]) -> bool:
    return len(matrices) > 1 or len(tensors[matrices[0].data.tensor][1]) > 2


def _depth(
    model: str, main: str | None, modules: Iterable[ModuleName], config: Mapping[str, Any], *, decoder: bool
) -> int | None:
    """Return how many blocks the main stack has, where blocks that predict further tokens follow in it; else null.

    Raises ArchitectureError where there are more blocks than config.json says, and it does not say what they are.
    """
    part = language_part(config)
    said = size_in(part, (*(DECODER_LAYERS_KEYS if decoder else ()), *NUM_LAYERS_KEYS))
    most = max((each.layer for each in modules if each.stack == main), default=-1)
    if main is None or said is None or most < said:
        return None
    ahead = sizes_in(config, PREDICTION_LAYERS_KEYS)
    if not ahead or most >= said + max(ahead):
        raise ArchitectureError(
            f"{model} has blocks up to layer {most}, but config.json says it has {said} blocks: use the config.json of "
            "these weights"
        )
    return said
