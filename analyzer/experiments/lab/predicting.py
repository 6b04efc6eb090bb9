"""What a model says after contexts: its last states, kept, and probabilities made of them a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.progress import counted
from analyzer.experiments.lab.opening import Lab
from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.forward.losses.plain import rows_in_pass
from analyzer.forward.runner import Runner

LOGIT_BYTES = 1 << 26


def last_states(lab: Lab, interventions: Sequence[Intervention]) -> torch.Tensor:
    """Return the state that goes into the head after each context under each, [interventions, contexts, hidden_size].

    Contexts of one length ride in one pass with all interventions, as many as memory bears.
    """
    runner = lab.runner
    found = torch.empty(len(interventions), len(lab.contexts), runner.hidden_size)
    advance = counted(lab.progress, "contexts", len(lab.contexts) * len(interventions))
    for length in sorted({len(ids) for ids in lab.contexts}):
        same = [number for number, ids in enumerate(lab.contexts) if len(ids) == length]
        pairs = [(number, arm) for number in same for arm in range(len(interventions))]
        rows = rows_in_pass(runner, length)
        for start in range(0, len(pairs), rows):
            part = pairs[start : start + rows]
            states = runner.states([lab.contexts[n] for n, _ in part], [interventions[arm] for _, arm in part])
            for (number, arm), state in zip(part, states[:, -1], strict=True):
                found[arm, number] = state.float().cpu()
            advance(len(part))
    lab.runs += len(interventions)
    return found


def probabilities(runner: Runner, states: torch.Tensor) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the probabilities of the next token after a few states [n, hidden_size] at a time, [few, vocabulary].

    With each come the places of these states.
    """
    step = max(1, LOGIT_BYTES // (8 * runner.vocabulary))
    for start in range(0, len(states), step):
        part = slice(start, start + step)
        logits = runner.logits(states[part].to(runner.blocks.device, runner.blocks.dtype))
        yield part, logits.double().softmax(dim=-1).cpu().numpy()


def lens(runner: Runner, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what directions of the stream [n, hidden_size] do to the logits, [n, vocabulary]: a signed logit lens.

    Each goes through the stock model's final norm and head, in place of what the last block gives; what a direction of
    zeros gives, by biases, is taken away. Null directions come out as zeros.
    """
    rows = torch.tensor(np.concatenate([directions, np.zeros_like(directions[:1])])).float()

    def replace(_module: object, _args: object, output: Any) -> Any:
        given = output if isinstance(output, torch.Tensor) else output[0]
        changed = given.clone()
        changed.view(-1, changed.shape[-1])[: len(rows)] = rows.to(changed.device, changed.dtype)
        return changed if output is given else (changed, *output[1:])

    handle = runner.stack[-1].module.register_forward_hook(replace)
    try:
        states = runner.states([[0] * len(rows)], [UNTOUCHED])[0]
    finally:
        handle.remove()
    logits = runner.logits(states[: len(rows)]).double().cpu().numpy()
    found: NDArray[np.float64] = logits[:-1] - logits[-1]
    return found
