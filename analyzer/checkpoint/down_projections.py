"""Which tensor is a down projection, of which tower, layer and expert, and which way round it lies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from analyzer.base.config import HIDDEN_SIZE_KEYS, NUM_LAYERS_KEYS, model_types, parts_of, quantization_name
from analyzer.base.errors import ArchitectureError, shown
from analyzer.checkpoint.architectures import (
    CONV1D_MODEL_TYPES,
    INPUTS_FIRST_EXPERTS,
    NUMBER,
    TOWERS,
    BlockName,
    parse_down_projection,
)
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.encodings.finding import STORED_AS, find_matrices
from analyzer.encodings.floats import FORMATS
from analyzer.encodings.matrices import Matrix, Shapes, turned
from analyzer.encodings.module import ReadTensors, StoredTensors, read_nothing

MAX_SHOWN_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class DownProjection:
    """The down projection of one MLP, or of one expert of it; `name` is the tensor that stores it."""

    tower: str | None
    layer: int
    expert: int | None
    block: str
    module: str
    matrix: Matrix

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.matrix.data.tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) = (output, input channels)."""
        return self.matrix.shape

    @property
    def sort_key(self) -> tuple[str, int, int]:
        """Order of towers, layers and experts, without an expert first."""
        return self.tower or "", self.layer, -1 if self.expert is None else self.expert


def find_down_projections(
    model: str,
    tensors: Shapes,
    config: Mapping[str, Any],
    *,
    pattern: str | None = None,
    read: ReadTensors = read_nothing,
) -> list[DownProjection]:
    """Return the down projections among `tensors` (name -> dtype, shape), by tower, layer and expert.

    `pattern`, in the shell's way, names the tensors that are taken for down projections, in place of the names known
    here. `read` brings small tensors that describe others. Raises ArchitectureError where there are none, where two
    claim one place, or where a shape or the way it is stored cannot be a down projection's.
    """
    modules = _known_modules(tensors) if pattern is None else _matching_modules(model, tensors, pattern)
    if not modules:
        raise _none_found(model, tensors, config, pattern)
    towers = _towers(parsed.stack for parsed in modules.values())
    found: dict[tuple[str, int, int], DownProjection] = {}
    stored = StoredTensors(model, tensors, config, read)
    for module, parsed in modules.items():
        matrices = find_matrices(stored, module)
        assert matrices is not None  # the module's name comes from a tensor's
        if len(matrices) > 1 and parsed.expert is not None:
            raise ArchitectureError(f"{model}: {shown(module)} names an expert, but holds {len(matrices)}")
        fused = len(tensors[matrices[0].data.tensor][1]) > 2
        if fused and pattern is None and not re.search("expert|moe", module):
            name = matrices[0].data.tensor
            raise ArchitectureError(f"{model}: {shown(name)} has three dimensions, so is no matrix")
        for number, matrix in enumerate(matrices):
            expert = number if fused else parsed.expert
            matrix = _right_way_round(model, module, matrix, config, fused=fused, known=pattern is None)
            projection = DownProjection(towers[parsed.stack], parsed.layer, expert, parsed.block, module, matrix)
            other = found.setdefault(projection.sort_key, projection)
            if other is not projection:
                raise ArchitectureError(
                    f"{model}: {shown(projection.name)} and {shown(other.name)} both claim layer {parsed.layer}"
                    + ("" if pattern is None else f": narrow --tensors {shown(pattern, 80)}")
                )
    return [found[place] for place in sorted(found)]


def check_can_be_run(model: str, projections: Sequence[DownProjection], config: Mapping[str, Any]) -> None:
    """Refuse what the forward pass cannot follow yet: quantized models, several towers, blocks without an MLP.

    Raises ArchitectureError, also where config.json has another number of blocks than the weights: the model that
    it describes is not the one that was scanned.
    """
    encoded = next((p.matrix.encoding.name for p in projections if p.matrix.encoding.name not in FORMATS), None)
    if encoded is not None:
        raise ArchitectureError(
            f"{model} is quantized ({encoded}): it can be scanned, but not yet verified: use the model "
            "that it was made from"
        )
    towers = sorted({projection.tower for projection in projections if projection.tower is not None})
    if towers:
        raise ArchitectureError(
            f"{model} has several towers ({', '.join(map(shown, towers))}): it can be scanned, but not yet verified"
        )
    layers = sorted({projection.layer for projection in projections})
    claimed = next((config[key] for key in NUM_LAYERS_KEYS if type(config.get(key)) is int), len(layers))
    if layers != list(range(len(layers))) or claimed != len(layers):
        raise ArchitectureError(
            f"{model} has down projections in {len(layers)} layers up to {max(layers)}, but config.json says it has "
            f"{claimed} blocks: a model can only be verified where each block has one"
        )


def _known_modules(tensors: Shapes) -> dict[str, BlockName]:
    modules = {}
    for name in tensors:
        for suffix in STORED_AS:
            if name.endswith(suffix) and (parsed := parse_down_projection(name.removesuffix(suffix))):
                modules[name.removesuffix(suffix)] = parsed
    return modules


def _matching_modules(model: str, tensors: Shapes, pattern: str) -> dict[str, BlockName]:
    """Return the modules of the matrices whose tensors a pattern names; their first number is the layer."""
    modules = {}
    for name, (_, shape) in tensors.items():
        if len(shape) < 2 or not fnmatchcase(name, pattern):
            continue
        module = next(name.removesuffix(suffix) for suffix in STORED_AS if name.endswith(suffix))
        numbers = list(NUMBER.finditer(module))
        if not numbers:
            raise ArchitectureError(
                f"{model}: {shown(name)} has no layer's number in its name: narrow --tensors {shown(pattern, 80)}"
            )
        expert = int(numbers[1][0]) if len(numbers) > 1 else None
        modules[module] = BlockName(module[: numbers[0].start()].rstrip("."), int(numbers[0][0]), expert)
    return modules


def _towers(stacks: Iterable[str]) -> dict[str, str | None]:
    """Return the name of each stack of blocks; a model's only one has none."""
    unique = sorted(set(stacks))
    if len(unique) == 1:
        return {unique[0]: None}
    towers = {stack: _tower(stack) for stack in unique}
    if {"vision", "audio"} & set(towers.values()) and list(towers.values()).count(None) == 1:
        towers = {stack: tower or "language" for stack, tower in towers.items()}
    common = Counter(towers.values())
    return {stack: tower if common[tower] == 1 else stack for stack, tower in towers.items()}


def _tower(stack: str) -> str | None:
    for part in stack.split("."):
        words = re.split(r"[_\d]+", part)
        for tower, names in TOWERS.items():
            if any(name in words for name in names):
                return tower
    return None


def _right_way_round(
    model: str, module: str, matrix: Matrix, config: Mapping[str, Any], *, fused: bool, known: bool
) -> Matrix:
    """Return the matrix with its output channels as rows; where names do not tell, the model's hidden size does.

    Raises ArchitectureError where its input side, not its output side, has the model's hidden size.
    """
    sizes = {part[key] for part in parts_of(config) for key in HIDDEN_SIZE_KEYS if type(part.get(key)) is int}
    if matrix.transposed or matrix.encoding.expand != (1, 1):  # such formats say which way round they are
        told = True
    else:
        types = model_types(config)
        conv1d = module.endswith("mlp.c_proj") and types & CONV1D_MODEL_TYPES
        if conv1d or (fused and types & INPUTS_FIRST_EXPERTS):
            matrix = turned(matrix)
        told = known and not fused
    rows, cols = matrix.shape
    if not sizes or rows in sizes or cols not in sizes:
        return matrix
    if not told:
        return turned(matrix)
    raise ArchitectureError(
        f"{model}: {shown(matrix.data.tensor)} has {rows} output and {cols} input channels, but config.json says the "
        f"hidden size is {' or '.join(map(str, sorted(sizes)))}: it lies the other way round than this architecture's "
        "tensors do"
    )


def _none_found(model: str, tensors: Shapes, config: Mapping[str, Any], pattern: str | None) -> ArchitectureError:
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
    candidates = _candidates(tensors, config)
    if not candidates:
        return ArchitectureError(f"{what} has no MLP down projection, and no matrix in numbered layers at all")
    listed = ", ".join(f"{shown(name, 80)} {list(shape)} x {count}" for (name, shape), count in candidates)
    return ArchitectureError(
        f"{what} has no MLP down projection that this version knows; tensors that could be: {listed}; scan the "
        f"right ones with --tensors '{shown(candidates[0][0][0], 80)}'"
    )


def _candidates(tensors: Shapes, config: Mapping[str, Any]) -> list[tuple[tuple[str, tuple[int, ...]], int]]:
    """Return patterns of names, numbers starred, of matrices, the likeliest down projections first."""
    hidden = {part[key] for part in parts_of(config) for key in HIDDEN_SIZE_KEYS if type(part.get(key)) is int}
    families: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, (_, shape) in sorted(tensors.items()):
        starred = NUMBER.sub("*", name)
        if len(shape) in (2, 3) and starred != name:
            families[starred, shape] += 1

    def likely(family: tuple[tuple[str, tuple[int, ...]], int]) -> tuple[bool, bool, bool]:
        (name, (*_, rows, cols)), _ = family
        says = re.search(r"down|fc2|c_proj|4h_to_h|w2|wo|ff|mlp", name.lower()) is not None
        return (rows in hidden or not hidden) and rows < cols, rows != cols, says

    return sorted(families.items(), key=likely, reverse=True)[:MAX_SHOWN_CANDIDATES]


def down_projections(
    checkpoint: Checkpoint, layers: Sequence[range] | None = None, *, pattern: str | None = None
) -> list[DownProjection]:
    """Return the checkpoint's down projections by tower, layer and expert; `layers` keeps only those in its ranges.

    `pattern` names the tensors taken for down projections, in place of the names known here. Raises
    ArchitectureError where there are none, or where a range names no layer.
    """
    model = checkpoint.source.model
    found = find_down_projections(
        model, checkpoint.shapes, checkpoint.config, pattern=pattern, read=checkpoint.read_tensors
    )
    return found if layers is None else in_layers(model, found, layers)


def in_layers(model: str, projections: Sequence[DownProjection], layers: Sequence[range]) -> list[DownProjection]:
    """Return those of the projections in these ranges; raises ArchitectureError where a range names no layer."""
    present = {projection.layer for projection in projections}
    for wanted in layers:
        if wanted.start not in present or wanted.stop - 1 not in present:
            raise ArchitectureError(
                f"{model} has no down projection in layer "
                f"{wanted.start if wanted.start not in present else wanted.stop - 1}: "
                f"its layers go from {min(present)} to {max(present)}"
            )
    return [p for p in projections if any(p.layer in wanted for wanted in layers)]


def down_projection_bytes(projections: Collection[DownProjection]) -> int:
    """Return how many bytes of the checkpoint these are, scales included."""
    return sum(projection.matrix.stored_bytes for projection in projections)
