"""Every stored bit of each weight flipped: the new value, and what it does to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import Coordinate
from analyzer.experiments.lab.records import Arm, Cost, Experiment, Measured, Outcome
from analyzer.forward.edits import scaling

if TYPE_CHECKING:
    from analyzer.experiments.lab.opening import Lab
    from analyzer.projections.projection import DownProjection

FATAL_NATS = 1.0  # above the untouched model's loss: the perplexity times e
FORMATS = {"BF16": (8, 7), "F16": (5, 10), "F32": (8, 23)}
"""How many bits of exponent and mantissa the floats have whose bits are flipped."""


def run(lab: Lab) -> Outcome:
    """Multiply each weight by what a flipped bit makes of it, over what it is; all as rows of the same passes.

    A flip that gives no finite number gives no finite loss, and is not run. Raises ForwardError where a weight is not
    stored as a plain float, or is 0, which no factor changes.
    """
    by_place = {projection.place: projection for projection in lab.runnable.projections}
    arms: list[Arm] = []
    broken: list[Arm] = []
    for weight in lab.weights:
        for arm, new in _flips(lab, by_place[weight.coordinate.place], weight.coordinate, weight.value):
            (arms if math.isfinite(new) else broken).append(arm)
    original, *measured = lab.measure(arms)
    infinite = Cost(math.inf, math.inf, math.inf, math.inf)
    measured += [Measured(arm.name, arm.zeroed, infinite, facts=arm.facts) for arm in broken]
    order = [str(weight.coordinate) for weight in lab.weights]
    measured.sort(key=lambda arm: (order.index(arm.facts["of"]), -arm.facts["bit"]))
    judged = [_judged(arm) for arm in measured]
    return Outcome((original, *judged), tuple(_findings(judged)), {"fatal_nats": FATAL_NATS})


def _flips(lab: Lab, projection: DownProjection, coordinate: Coordinate, value: float) -> Iterator[tuple[Arm, float]]:
    """Yield an arm for each stored bit, the highest first, with the value that it makes."""
    matrix, name = projection.matrix, lab.runner.name
    kind = matrix.encoding.name
    if kind not in FORMATS:
        raise ForwardError(
            f"{name}: {coordinate} is stored as {shown(kind)}: bits are flipped of plain floats alone "
            f"({', '.join(FORMATS)})"
        )
    if value == 0:
        raise ForwardError(f"{name}: {coordinate} is 0, which no factor changes: name another weight (--weight)")
    tile, _ = matrix.tile_of(coordinate.row, coordinate.col)
    start, stop = matrix.span(tile)
    checkpoint = lab.runnable.checkpoint
    stored = int.from_bytes(checkpoint.read(checkpoint.tensors[projection.name], start, stop), "little")
    for bit in reversed(range(8 * (stop - start))):
        new = value_of(stored ^ (1 << bit), kind)
        edits = scaling({coordinate: new / value}) if math.isfinite(new) else scaling({})
        facts = {"of": str(coordinate), "bit": bit, "part": part_of(bit, kind), "new": new}
        yield Arm(f"{coordinate} bit {bit}", edits, int(new == 0), facts=facts), new


def value_of(bits: int, kind: str) -> float:
    """Return the float that bits stand for in BF16, F16 or F32."""
    import numpy as np

    if kind == "F16":
        return float(np.array(bits, np.uint16).view(np.float16))
    return float(np.array(bits << (16 if kind == "BF16" else 0), np.uint32).view(np.float32))


def part_of(bit: int, kind: str) -> str:
    """Return which part of a float a bit is in."""
    exponent, mantissa = FORMATS[kind]
    return "mantissa" if bit < mantissa else "exponent" if bit < mantissa + exponent else "sign"


def _judged(arm: Measured) -> Measured:
    assert arm.cost is not None
    fatal = not math.isfinite(arm.cost.nll) or arm.cost.delta >= FATAL_NATS
    return Measured(arm.name, arm.zeroed, arm.cost, facts={**arm.facts, "fatal": fatal})


def _findings(arms: Sequence[Measured]) -> Iterator[str]:
    for name in dict.fromkeys(arm.facts["of"] for arm in arms):
        here = [arm for arm in arms if arm.facts["of"] == name]
        fatal = [f"{arm.facts['bit']} ({arm.facts['part']})" for arm in here if arm.facts["fatal"]]
        named = f"fatal are {', '.join(fatal)}" if fatal else "none is fatal"
        yield f"{name}: of its {len(here)} bits {named}; fatal is {FATAL_NATS:g} nat or more above the untouched loss."


EXPERIMENT = Experiment(
    name="bits",
    says="""Flip every stored bit of each weight, and say which are fatal.

    A flipped bit is a factor, so that all are rows of the same passes; the file is not touched.

    \b
    Examples:
      superweight experiment bits ./my-model
      superweight experiment bits ./my-model --weight 11,507,1229 --windows 8 --length 1024
    """,
    run=run,
    picture="bit",
    in_all={"windows": 2, "length": 512},
    less="at most 2 windows of 512 tokens",
)
