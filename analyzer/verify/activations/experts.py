"""Pure NumPy: which experts are super experts, by the criterion of Su et al. (arXiv 2507.23279)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from analyzer.base.records import Coordinate, Place, Unit
from analyzer.verify.records import ExpertOutput, SuperActivation, Write

PERCENTILE = 99.5  # of the largest outputs of all experts, that a super expert's is above
PART_OF_LARGEST = 0.1  # of the largest of these, that it is above too


def forming_layers(writes: Sequence[Write], activations: Sequence[SuperActivation]) -> set[int]:
    """Return the layers that write super activations, those that take one away left out."""
    signs = {(a.channel, a.position, a.value > 0) for a in activations}
    return {write.layer for write in writes if (write.channel, write.position, write.change > 0) in signs}


def judge_experts(found: Mapping[Place, tuple[float, int]], forming: Collection[int]) -> dict[Unit, ExpertOutput]:
    """Return all experts by what they are, of which these gave outputs so large, for so many tokens.

    A super expert's largest output is above the percentile of all experts' and above a tenth of the largest of all, in
    a layer where super activations are formed.
    """
    largest = np.array([output for output, _ in found.values()])
    bound = max(np.percentile(largest, PERCENTILE), PART_OF_LARGEST * largest.max()) if len(largest) else np.inf
    judged = {}
    for place, (output, tokens) in found.items():
        at, rank = Coordinate.at(place, 0, 0), 1 + int((largest > output).sum())
        is_super = bool(output > bound) and at.layer in forming
        assert at.expert is not None
        judged[Unit(place)] = ExpertOutput(at.layer, at.expert, output, rank, tokens, is_super, at.tower, at.mlp)
    return judged
