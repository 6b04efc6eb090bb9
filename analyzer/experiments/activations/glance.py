"""A glance at the beginnings of windows: which heads have a sink there, and single channels of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.forward.edits import Intervention
from analyzer.forward.losses.plain import rows_in_pass
from analyzer.forward.observers import observed
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Window

TOKENS = 64  # of a window: as many as Gu et al. look at (arXiv 2410.10781)
SINK = 0.3  # their threshold


@dataclass(frozen=True)
class Glance:
    """What one window's beginning did: `channels` [layers, T, channels] are those of the stream that were asked for.

    `attended` has by layer the mean probability that each position gets from itself and those after it (of a model
    that looks both ways from all), [heads, T].
    """

    channels: NDArray[np.float32]
    attended: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def sinks(self, *, first: bool = False) -> float | None:
        """Return the share of heads that give some position more than the threshold, or the first one.

        Positions in the second half count for none: few look at them. Null where no head was seen.
        """
        heads = [each[:, : 1 if first else max(1, each.shape[1] // 2)] for each in self.attended.values()]
        return float(np.concatenate([each.max(axis=1) > SINK for each in heads]).mean()) if heads else None


def glance(
    runner: Runner, windows: Sequence[Window], interventions: Sequence[Intervention], channels: Sequence[int]
) -> list[Glance]:
    """Run the beginning of each window with its intervention, and return what there was to see.

    Of a model that looks both ways, and of an encoder-decoder, the whole window is run.
    """
    whole = runner.masked or runner.start is not None
    prompts = [window.ids if whole else window.ids[:TOKENS] for window in windows]
    found: list[Glance] = []
    start = 0
    while start < len(prompts):
        length = len(prompts[start])
        most = 1 if runner.one_by_one else rows_in_pass(runner, length)
        some = [ids for ids in prompts[start : start + most] if len(ids) == length]
        found += _pass(runner, some, interventions[start : start + len(some)], channels)
        start += len(some)
    return found


def _pass(
    runner: Runner, prompts: Sequence[Sequence[int]], interventions: Sequence[Intervention], channels: Sequence[int]
) -> list[Glance]:
    streams: list[NDArray[np.float32]] = []
    attended: list[dict[int, NDArray[np.float32]]] = [{} for _ in prompts]
    tokens = runner.length(prompts[0])

    def stream(_layer: int, stream: torch.Tensor) -> None:
        streams.append(stream[:, :tokens, list(channels)].float().cpu().numpy())

    def attention(layer: int, groups: Sequence[Sequence[int]], probabilities: torch.Tensor) -> None:
        given = probabilities.float().sum(dim=2)
        # From a position on, as many look at it as are left.
        counts = torch.full((tokens,), tokens) if runner.masked else torch.arange(tokens, 0, -1)
        means = (given / counts.to(given)).cpu().numpy()
        for group, each in zip(groups, means, strict=True):
            for row in group:
                attended[row][layer] = each

    within = [_within(each, tokens) for each in interventions]
    with observed(runner, stream=stream if channels else None, attention=attention):
        runner.states(prompts, within)
    layers = np.stack(streams, axis=1) if streams else np.zeros((len(prompts), 0, tokens, 0), np.float32)
    return [Glance(*each) for each in zip(layers, attended, strict=True)]


def _within(intervention: Intervention, tokens: int) -> Intervention:
    """Return an intervention without what it sets at positions that are not run."""
    from dataclasses import replace

    from analyzer.forward.edits import StreamEdit

    return Intervention(
        tuple(
            replace(edit, values=frozenset(each for each in edit.values if each[0] < tokens))
            if isinstance(edit, StreamEdit)
            else edit
            for edit in intervention.edits
        )
    )
