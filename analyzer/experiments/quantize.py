"""Tables 3 and 4, Figure 7: rounded weights and activations, with the super weight or super activation held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.experiments.lab.records import Experiment, Measured, Option, Outcome
from analyzer.experiments.quantization.grid import (
    ACTIVATIONS,
    NONE,
    SMOOTH,
    Group,
    name_of,
    parse_bits,
    plan,
    setting_of,
)

if TYPE_CHECKING:
    from analyzer.analyze.running import Runnable
    from analyzer.experiments.lab.opening import Lab
    from analyzer.experiments.lab.records import Arm, Weight


def run(lab: Lab, *, grid: str, group: Sequence[Group], bits: Sequence[int], activations: Sequence[str]) -> Outcome:
    """Quantize the blocks' matrices as they are loaded, and what their linear maps see, and hold weights out of it.

    Of each rounding the weights are restored or not, and clipping comes before it or not: all four, since clipping and
    restoring together, as the paper compares them with rounding alone, do not tell which of them helps. Raises
    ForwardError where a group does not divide a matrix.
    """
    from analyzer.experiments.lab.calibrating import watch_calibration
    from analyzer.experiments.lab.opening import ORIGINAL
    from analyzer.experiments.quantization import verdicts
    from analyzer.experiments.quantization.activations import smoothing_factors
    from analyzer.experiments.quantization.arms import Arms
    from analyzer.experiments.quantization.matrices import matrices_of
    from analyzer.experiments.quantization.protecting import holds, read_affected
    from analyzer.model.weights import StoredWeights

    coordinates = _checked(lab.weights)
    if lab.runner.blocks.encodings or lab.runnable.checkpoint.metadata:
        raise ForwardError(f"{lab.runner.name} is quantized already: run it on the model that it was made from")
    matrices = matrices_of(lab.runner)
    if lost := next((each.name for each in lab.runnable.projections if each.name not in matrices), None):
        raise ForwardError(f"{lab.runner.name}: {lost} is that of no linear map known here: it cannot be quantized yet")
    shapes = [each.shape for each in matrices.values()]
    asked = plan(shapes, grid=grid, group=group, bits=bits, activations=activations)
    for rounding in asked.roundings:
        for name, shape in zip(matrices, shapes, strict=True):
            rounding.group.check(name, shape)
    weights, affected = StoredWeights(lab.runnable.checkpoint), read_affected(lab.runnable, coordinates)
    making = Arms(lab.runnable, matrices, affected, lab.runner.layers)
    zs = {rounding: _choose_z(lab, making.clipped(rounding)) for rounding in asked.roundings}
    factors = {}
    if SMOOTH in asked.activations:
        seen = watch_calibration(lab)
        factors = smoothing_factors(lab.runner, weights, matrices, seen, lab.windows[0].ids)
    kinds = [each for each in asked.activations if each != NONE and (factors or each != SMOOTH)]
    arms = [ORIGINAL, *(arm for rounding in asked.roundings for arm in making.of_weights(rounding, zs[rounding]))]
    for under in asked.under if kinds else ():
        arms += making.of_activations(under, kinds, asked.per, factors)
    arms = [arm for place, arm in enumerate(arms) if arm.name not in {other.name for other in arms[:place]}]
    losses = lab.losses(arms)
    measured = tuple(verdicts.measured(arms, losses))
    held = [each for rounding in asked.roundings for each in holds(affected, rounding)]
    judged = [verdicts.judge(rounding, zs[rounding], arms, losses, held) for rounding in asked.roundings]
    findings = [
        verdicts.summary(judged),
        *(each["says"] for each in judged),
        *verdicts.of_activations(measured),
        *verdicts.of_plan(asked, matrices, unsmoothed=SMOOTH in asked.activations and not factors),
    ]
    more = {"matrices": [verdicts.facts(each) for each in held], "verdicts": judged, "quantized": len(matrices)}
    claims = tuple(verdicts.claims(judged, arms, losses))
    return Outcome(measured, tuple(findings), more, (verdicts.table(held),), claims)


def _choose_z(lab: Lab, arms: Sequence[Arm]) -> float:
    """Return where to clip: as in the arm with the least loss on the first of the windows to calibrate on."""
    import numpy as np

    here = replace(lab, windows=lab.calibration[:1])
    losses = np.nan_to_num(here.losses(arms)[:, 0], nan=np.inf)
    lab.runs += here.runs
    return float(arms[int(losses.argmin())].facts["clip"])


def static(
    runnable: Runnable,
    weights: Sequence[Weight],
    *,
    grid: str,
    group: Sequence[Group],
    bits: Sequence[int],
    activations: Sequence[str],
) -> Outcome:
    """Tell the steps, and whether restoring is a no-op, from the matrices that have the weights alone: no run."""
    from analyzer.experiments.quantization import verdicts
    from analyzer.experiments.quantization.protecting import holds, read_affected

    affected = read_affected(runnable, _checked(weights))
    shapes = [(each.shape[0], each.shape[1]) for each in affected.values()]
    asked = plan(shapes, grid=grid, group=group, bits=bits, activations=activations)
    held = {rounding: holds(affected, rounding) for rounding in asked.roundings}
    arms = tuple(
        Measured(
            f"{name_of(rounding)}, restored",
            0,
            None,
            facts=setting_of(rounding, restore=True) | {"no_op": all(each.no_op for each in inside)},
        )
        for rounding, inside in held.items()
    )
    every = [each for inside in held.values() for each in inside]
    findings = (*verdicts.of_steps(every), *verdicts.of_plan(asked, {}))
    return Outcome(arms, findings, {"matrices": [verdicts.facts(each) for each in every]}, (verdicts.table(every),))


def _checked(weights: Sequence[Weight]) -> list[Coordinate]:
    """Return where the weights are. Raises ForwardError where one is 0: there is nothing of it to protect."""
    for weight in weights:
        if weight.value == 0:
            raise ForwardError(f"{weight.coordinate} is 0: there is nothing of it to protect, name another (--weight)")
    return [weight.coordinate for weight in weights]


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


EXPERIMENT = Experiment(
    name="quantize",
    says="""Round weights and activations, and hold the super weight or super activation out (Tables 3, 4, Figure 7).

    Weights are quantized as they are loaded, to the nearest level, with and without clipping, the weights restored or
    not; activations as linear maps see them, the super activation held out, or smoothed. Says whether protecting helps.

    \b
    Examples:
      superweight experiment quantize ./my-model --windows 8 --length 1024
      superweight experiment quantize ./my-model --bits 4 --group row --group 128 --activations none
      superweight experiment quantize ./my-model --weight 11,507,1229 --static
    """,
    run=run,
    static=static,
    calibrates=True,
    in_all={"grid": "least"},
    less="Figure 7's smallest and largest group",
    options=(
        Option("grid", "Which settings: the paper's, or many.", _one_of(("quick", "full")), "quick", "quick|full"),
        Option(
            "group",
            "Weights that share a step, in place of the grid's: a matrix, a row, N of a row, N of the matrix laid "
            "out row after row, a square; may be given again.",
            Group.parse,
            (),
            "tensor|row|N|flat:N|tile:N",
            several=True,
        ),
        Option("bits", "Bits, in place of the grid's, 2 to 8; may be given again.", parse_bits, (), "N", several=True),
        Option(
            "activations",
            "How activations are quantized, in place of all ways; may be given again.",
            _one_of(ACTIVATIONS),
            (),
            "|".join(ACTIVATIONS),
            several=True,
        ),
    ),
)
