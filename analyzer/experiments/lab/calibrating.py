"""What linear maps see of the text that an experiment calibrates on."""

from __future__ import annotations

from analyzer.base.progress import counted
from analyzer.experiments.lab.opening import Lab
from analyzer.forward.edits import changing_inputs
from analyzer.forward.linears import InputStatistics
from analyzer.forward.losses import PASS_BYTES


def watch_calibration(lab: Lab) -> InputStatistics:
    """Run the windows to calibrate on, as many in a pass as memory bears, and return what linear maps saw of them."""
    runner, seen = lab.runner, InputStatistics()
    watching = changing_inputs(runner.layers, seen)
    length = len(lab.calibration[0].ids)
    rows = max(1, PASS_BYTES // (4 * length * (3 * runner.hidden_size + length)))
    advance = counted(lab.progress, "calibration", len(lab.calibration))
    for start in range(0, len(lab.calibration), rows):
        part = lab.calibration[start : start + rows]
        runner.states([window.ids for window in part], [watching] * len(part))
        advance(len(part))
    lab.runs += 1
    return seen
