"""Where a model's true down projections are: in which block, MLP and expert, by the structure of its modules."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cutting import Place
from forward_runs import joined, runs
from torch import Tensor, nn
from true_mlps import Use, find_uses

NUMBER = re.compile(r"\d+$")


@dataclass(frozen=True)
class Truth:
    """One true down projection. `layers` are all blocks that share it, where several do; `how` is "run" or "shape"."""

    place: Place
    stack: str
    layer: int
    layers: tuple[int, ...] | None
    mlp: int | None
    expert: int | None
    writes: str
    how: str


@dataclass(frozen=True)
class Found:
    """The true down projections, what else is like one (pattern -> why it is none), and what no run reached."""

    matrices: tuple[Truth, ...]
    asides: Mapping[str, str]
    unreached: tuple[str, ...]


@dataclass
class Observed:
    """What all runs told: how linear maps are used, which parameters are used at all, and which mix positions."""

    uses: dict[Place, list[Use]]
    touched: set[str]
    mixing: set[str]


def find_true_mlps(model: nn.Module) -> Found:
    """Return a model's down projections, told by running it and, where nothing reaches a part, by shapes."""
    seen = _observe(model)
    blocks = Blocks(model, seen.mixing)
    downs: dict[Place, list[Use]] = {}
    asides: dict[str, str] = {}
    for place, uses in seen.uses.items():
        if any(use.is_mlp for use in uses) and blocks.of(place.parameter) is not None:
            downs[place] = uses
        elif any(use.local and use.bent and use.writes == "residual" for use in uses):
            asides[_starred(place.parameter)] = _why_none(uses[0])
    for place in list(downs):
        for other in [*_slices(place, blocks.parameters[place.parameter]), *blocks.siblings(place)]:
            downs.setdefault(other, seen.uses.get(other, []))
    matrices = {name for name, value in blocks.parameters.items() if value.ndim > 1 and blocks.of(name) is not None}
    unreached = matrices - seen.touched
    by_shape: dict[Place, list[Use]] = {place: [] for place in _told_by_shape(blocks.parameters, unreached)}
    truths = tuple(_numbered(model, blocks, {**by_shape, **downs}, set(downs)))
    told = {truth.place.parameter for truth in truths}
    return Found(truths, asides, tuple(sorted({_starred(name) for name in unreached - told})))


def _observe(model: nn.Module) -> Observed:
    convolutions = {
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and max(part.kernel_size) > 1
    }
    seen = Observed({}, set(), convolutions)
    for name, cutting, outputs in runs(model):
        seen.touched |= {joined(name, each) for each in cutting.touched}
        seen.mixing |= {joined(name, each) for each in cutting.mixing}
        of_run: dict[Place, list[Use]] = defaultdict(list)
        for use in find_uses(cutting.calls, outputs):
            for place in use.places:
                of_run[replace(place, parameter=joined(name, place.parameter))].append(use)
        seen.uses = {**of_run, **seen.uses}
    seen.mixing |= {place.parameter for place, uses in seen.uses.items() if not any(use.local for use in uses)}
    return seen


def _why_none(use: Use) -> str:
    if use.narrow:
        return "narrower inside than outside"
    return "in no numbered block" if use.is_mlp else "fed from outside"


def _slices(place: Place, parameter: Tensor) -> list[Place]:
    """Return all matrices of a fused parameter that lie as this one does."""
    size = place.rows * place.cols
    if {place.row_step, place.col_step} not in ({1, place.cols}, {1, place.rows}) or parameter.numel() % size:
        return [place]
    return [replace(place, offset=offset) for offset in range(0, parameter.numel(), size)]


def _told_by_shape(parameters: Mapping[str, Tensor], unreached: set[str]) -> list[Place]:
    """Return what must be down projections where nothing was run: [hidden, inner] next to [inner, hidden].

    The hidden width is that of most vectors nearby: of the norms.
    """
    found = []
    for name in sorted(unreached):
        *experts, rows, cols = parameters[name].shape
        block, nearby = re.split(r"(?<=\.)\d+\.", name)[0], name.rsplit(".", 3)[0] + "."
        vectors = Counter(
            len(value) for other, value in parameters.items() if other.startswith(block) and value.ndim == 1
        )
        others = [tuple(parameters[other].shape) for other in unreached if other.startswith(nearby) and other != name]
        for turned in (False, True) if experts else (False,):
            if turned:
                rows, cols = cols, rows
            partners = [(*experts, *((rows, part) if turned else (part, rows))) for part in (cols, 2 * cols)]
            fits = rows < cols and (not vectors or rows == vectors.most_common(1)[0][0])
            if len(experts) < 2 and fits and any(partner in others for partner in partners):
                found += _slices(Place(name, 0, rows, cols, *((1, rows) if turned else (cols, 1))), parameters[name])
    return found


class Blocks:
    """The numbered blocks of a model."""

    def __init__(self, model: nn.Module, mixing: Iterable[str]) -> None:
        """`mixing` names the parameters of what mixes positions."""
        self.parameters = dict(model.named_parameters())
        self._modules = dict(model.named_modules())
        self._mixing = tuple(sorted(mixing))
        self._aliases: dict[int, list[str]] = defaultdict(list)
        for name, value in model.named_parameters(remove_duplicate=False):
            self._aliases[id(value)].append(name)

    def of(self, name: str) -> tuple[str, int] | None:
        """Return the stack and the number of a parameter's block; null where it is in none.

        The innermost numbered module that mixes positions too; else the innermost list of modules of which one does;
        else the outermost number.
        """
        words = name.split(".")
        numbered = [index for index, word in enumerate(words) if word.isdigit()]
        for length in (1, 0):
            for index in reversed(numbered):
                prefix = ".".join(words[: index + length]) + "."
                if any(each.startswith(prefix) for each in self._mixing):
                    return ".".join(words[:index]), int(words[index])
        return (".".join(words[: numbered[0]]), int(words[numbered[0]])) if numbered else None

    def siblings(self, place: Place) -> list[Place]:
        """Return the matrices that lie in other members of the same list of modules, within the same block."""
        words = place.parameter.split(".")
        found = []
        for index in range(1, len(words)):
            within = self._modules.get(".".join(words[:index]))
            if isinstance(within, nn.ModuleList | nn.ModuleDict):
                for member, _ in within.named_children():
                    name = ".".join((*words[:index], member, *words[index + 1 :]))
                    other = self.parameters.get(name)
                    alike = other is not None and other.shape == self.parameters[place.parameter].shape
                    if alike and self.of(name) == self.of(place.parameter):
                        found.append(replace(place, parameter=name))
        return found

    def sharing(self, name: str) -> tuple[int, ...]:
        """Return the numbers of all blocks that a parameter is a part of."""
        blocks = [self.of(alias) for alias in self._aliases[id(self.parameters[name])]]
        return tuple(sorted({block[1] for block in blocks if block is not None}))


def _numbered(
    model: nn.Module, blocks: Blocks, downs: Mapping[Place, list[Use]], by_run: set[Place]
) -> Iterable[Truth]:
    """Yield the down projections, in order, each with its block, MLP and expert."""
    by_block: dict[tuple[str, int], list[Place]] = defaultdict(list)
    for place in downs:
        block = blocks.of(place.parameter)
        assert block is not None
        by_block[block].append(place)
    repeated = _repeated(model, by_block, downs)
    for (stack, _), places in sorted(by_block.items()):
        groups: dict[str, list[Place]] = defaultdict(list)
        for place in places:
            groups[_starred(place.parameter)].append(place)
        mlps: dict[bool, list[dict[Place, int | None]]] = {False: [], True: []}
        for members in sorted(groups.values(), key=lambda each: _first_use(each, downs)):
            if _one_after_another(members, downs):
                for place in sorted(members, key=lambda each: _first_use([each], downs)):
                    mlps[False].append({place: None})
            else:
                experts = _experts(members, blocks.parameters)
                mlps[None not in experts.values()].append(experts)
        for several in mlps.values():
            for number, experts in enumerate(several):
                for place, expert in sorted(experts.items(), key=lambda each: (each[1] or 0, each[0].offset)):
                    sharing = repeated.get(place) or blocks.sharing(place.parameter)
                    yield Truth(
                        place=place,
                        stack=stack,
                        layer=min(sharing),
                        layers=sharing if len(sharing) > 1 else None,
                        mlp=number if len(several) > 1 else None,
                        expert=expert,
                        writes=next((use.writes for use in downs[place] if use.is_mlp), "residual"),
                        how="run" if place in by_run else "shape",
                    )


def _experts(members: list[Place], parameters: Mapping[str, Tensor]) -> dict[Place, int | None]:
    """Return the number of each expert: the matrix's within a fused parameter, or what differs in their names."""
    first, parameter = members[0], parameters[members[0].parameter]
    if parameter.numel() > first.rows * first.cols or (parameter.ndim == 3 and parameter.shape[-1] > 1):
        return {place: place.offset // (place.rows * place.cols) for place in members}
    if len(members) == 1:
        return {first: None}
    words = [place.parameter.split(".") for place in members]
    differing = next(index for index, each in enumerate(zip(*words, strict=True)) if len(set(each)) > 1)
    return {place: int(NUMBER.findall(place.parameter.split(".")[differing])[0]) for place in members}


def _one_after_another(members: list[Place], downs: Mapping[Place, list[Use]]) -> bool:
    """Whether MLPs whose names differ only in a number read one another's output: then they are no experts."""
    uses = [use for place in members for use in downs[place][:1]]
    return len({place.parameter for place in members}) > 1 and any(
        use.before >> other.number & 1 for use in uses for other in uses if use is not other
    )


def _first_use(members: list[Place], downs: Mapping[Place, list[Use]]) -> int:
    return min((use.number for place in members for use in downs[place]), default=0)


def _repeated(
    model: nn.Module, by_block: Mapping[tuple[str, int], list[Place]], downs: Mapping[Place, list[Use]]
) -> dict[Place, tuple[int, ...]]:
    """Return the blocks, as the configuration counts them, that are one module applied again and again."""
    wanted = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    found: dict[Place, tuple[int, ...]] = {}
    for stack in {stack for stack, _ in by_block}:
        places = [place for (of, _), each in by_block.items() if of == stack for place in each]
        order = sorted(((use.number, place) for place in places for use in downs[place]), key=lambda each: each[0])
        if len(order) == wanted and len(order) > len(places):
            for place in places:
                found[place] = tuple(layer for layer, (_, each) in enumerate(order) if each == place)
    return found


def _starred(name: str) -> str:
    return re.sub(r"\d+", "*", name)
