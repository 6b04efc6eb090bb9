"""What linear maps see of the text that an experiment calibrates on."""

from __future__ import annotations

from analyzer.base.progress import counted
from analyzer.experiments.lab.opening import Lab
from analyzer.forward.edits import changing_inputs
from analyzer.forward.linears import InputStatistics
from analyzer.forward.losses.plain import rows_in_pass


def watch_calibration(lab: Lab) -> InputStatistics:
    """Run the windows to calibrate on, as many in a pass as memory bears, and return what linear maps saw of them.

    Windows that are known already are not run again.
    """
    if (known := lab.known.inputs.get(lab.calibration)) is not None:
        return known
    runner, seen = lab.runner, InputStatistics()
    watching = changing_inputs(runner.layers, seen)
    rows = rows_in_pass(runner, len(lab.calibration[0].ids))
    advance = counted(lab.progress, "calibration", len(lab.calibration))
    for start in range(0, len(lab.calibration), rows):
        part = lab.calibration[start : start + rows]
        runner.states([window.ids for window in part], [watching] * len(part))
        advance(len(part))
    lab.runs += 1
    lab.known.inputs[lab.calibration] = seen
    return seen
