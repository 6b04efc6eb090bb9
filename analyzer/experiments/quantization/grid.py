"""What may be asked for: bits, groups, schemes; and the groups that fit a model's matrices. Light: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from analyzer.base.errors import ForwardError

BITS = (8, 4, 3)
LEAST = 8  # values of a group that is made to fit: less is not worth its scale
Shape = tuple[int, int]
"""Of a matrix: output and input channels."""


@dataclass(frozen=True)
class Group:
    """The values of a matrix, [rows, cols], that share a step.

    `tensor` is all of them, `row` those of one output channel, `run` so many that follow each other within such a
    row, `flat` so many that follow each other in the whole matrix, row after row, wherever that begins and ends (as
    the authors' code has it), `tile` those of a square of so many rows and columns.
    """

    kind: str
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> Group:
        """Return what tensor, row, 128, flat:16384 or tile:128 stand for. Raises ValueError for any other text."""
        kind, _, size = text.partition(":")
        if text in ("tensor", "row"):
            return cls(text)
        if text.isdecimal() and int(text) > 0:
            return cls("run", int(text))
        if kind in ("flat", "tile") and size.isdecimal() and int(size) > 0:
            return cls(kind, int(size))
        raise ValueError(f"{text!r} is none of tensor, row, N, flat:N, tile:N")

    def __str__(self) -> str:
        return {"run": f"{self.size}", "tensor": "tensor", "row": "row"}.get(self.kind, f"{self.kind}:{self.size}")

    def divides(self, shape: Shape) -> bool:
        """Tell whether a matrix of this shape is made up of such groups."""
        return not self.size or _whole(self.kind, shape) % self.size == 0

    def check(self, name: str, shape: Shape) -> None:
        """Raise ForwardError where a matrix of this name and shape is not made up of such groups."""
        if not self.divides(shape):
            rows, cols = shape
            best = self.fitting([shape])
            hint = f"{best} would" if best else "row and tensor do"
            raise ForwardError(f"--group {self} does not divide {name}, {rows} x {cols}: {hint}")

    def fitting(self, shapes: Sequence[Shape]) -> Group | None:
        """Return the largest group of this kind, no larger than this one, that divides all; null where all are tiny."""
        if not self.size:
            return self
        whole = math.gcd(*(_whole(self.kind, shape) for shape in shapes))
        size = next(size for size in range(min(self.size, whole), 0, -1) if whole % size == 0)
        return replace(self, size=size) if size >= LEAST else None


@dataclass(frozen=True)
class Rounding:
    """How the weights of a matrix are rounded: to the nearest of 2**bits levels between the extremes of their group.

    The extremes are the least and the largest value, or with `symmetric` the largest magnitude and its negative, with
    zero a level. With `z` magnitudes are clipped first to the group's mean magnitude plus z standard deviations of it.
    """

    bits: int
    group: Group
    symmetric: bool = False
    z: float | None = None

    def __str__(self) -> str:
        return f"{self.bits} bits, {self.scheme}, group {self.group}"

    @property
    def scheme(self) -> str:
        """The scheme's name."""
        return "symmetric" if self.symmetric else "asymmetric"


NONE, NAIVE, HELD_OUT, SMOOTH = "none", "naive", "held-out", "smoothquant"
ACTIVATIONS = (NONE, NAIVE, HELD_OUT, SMOOTH)
ACTIVATION_BITS = 8
FLAT = tuple(Group("flat", side * side) for side in (128, 256, 512, 1024))  # Figure 7's blocks, as its code has them
EVERY = (Group("tensor"), Group("row"), Group("run", 128), *FLAT, Group("tile", 128), Group("tile", 256))
GROUPS = {"quick": FLAT, "full": EVERY, "least": (FLAT[0], FLAT[-1])}
"""Of each grid; `least` is what all experiments together leave time for."""
TABLE_3 = Rounding(ACTIVATION_BITS, Group("tensor"), symmetric=True)


@dataclass(frozen=True)
class Plan:
    """What is asked for: roundings of weights, of which the protected ones are arms too, and of activations.

    Activations are quantized in steps `per` token or tensor, over weights rounded in each of the ways of `under`, null
    for weights as they are. `changed` are groups that were made to fit.
    """

    roundings: tuple[Rounding, ...]
    activations: tuple[str, ...]
    per: tuple[str, ...]
    under: tuple[Rounding | None, ...]
    changed: tuple[str, ...]


def plan(
    shapes: Sequence[Shape], *, grid: str, group: Sequence[Group], bits: Sequence[int], activations: Sequence[str]
) -> Plan:
    """Return what a grid, and what is asked for in its place, come to for matrices of these shapes.

    Groups of a grid that do not divide all matrices are made smaller; those that are asked for are taken as they are.
    """
    full = grid == "full"
    wanted = tuple(group) or GROUPS[grid]
    fitted = {each: each if group else each.fitting(shapes) for each in wanted}
    groups = dict.fromkeys(each for each in fitted.values() if each is not None)
    changed = [f"{each} to {new or 'none'}" for each, new in fitted.items() if new != each]
    roundings = [
        Rounding(number, each, symmetric)
        for number in bits or (BITS if full else (4,))
        for each in groups
        for symmetric in ((False, True) if full else (False,))
    ]
    if not full and not group and not bits:
        roundings.append(TABLE_3)
    return Plan(
        roundings=tuple(roundings),
        activations=tuple(activations) or ACTIVATIONS,
        per=("token", "tensor") if full else ("token",),
        under=(TABLE_3, replace(TABLE_3, group=Group("row")), None) if full else (TABLE_3,),
        changed=tuple(changed),
    )


def name_of(rounding: Rounding) -> str:
    """Return what arms of a rounding are called."""
    clip = "" if rounding.z is None else f", z {rounding.z:g}"
    return f"W{rounding.bits} {rounding.scheme[:-6]} {rounding.group}{clip}"


def setting_of(
    rounding: Rounding | None, *, restore: bool = False, activations: str = NONE, per: str | None = None
) -> dict[str, Any]:
    """Return what an arm's JSON has of how it is quantized."""
    return {
        "bits": ACTIVATION_BITS if rounding is None else rounding.bits,
        "group": None if rounding is None else str(rounding.group),
        "scheme": None if rounding is None else rounding.scheme,
        "clip": None if rounding is None else rounding.z,
        "restore": restore,
        "activations": activations,
        "per": per,
    }


def parse_bits(text: str) -> int:
    """Return a number of bits. Raises ValueError for what is none, from 2 to 8."""
    bits = int(text)
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits are none of 2 to 8")
    return bits


def _whole(kind: str, shape: Shape) -> int:
    rows, cols = shape
    return {"run": cols, "flat": rows * cols, "tile": math.gcd(rows, cols)}[kind]
