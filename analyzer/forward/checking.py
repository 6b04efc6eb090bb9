"""The engine against the stock model: may rows of a batch share passes, and does each come out as if it were alone?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from analyzer.base.errors import ForwardError
from analyzer.forward.edits import UNTOUCHED, Intervention, scaling
from analyzer.forward.runner import Runner
from analyzer.forward.trace import Stream, Trace
from analyzer.model.ends.logits import likelihoods_of
from analyzer.model.stock import attend_by, attention_of

CHECKED_TOKENS = 64
FACTOR = -50.0  # of the edited weight, so that it shows
# The largest differences by dtype: of a loss to the stock model's (to a nat where that is less), and of a stream to its
# largest value in the layer.
TOLERANCES = {"float32": (1e-6, 1e-5), "float16": (1e-3, 1e-2), "bfloat16": (1e-3, 1e-2)}
FAST_ATTENTION = "sdpa"
MOST_OFF = 1e-2  # of a logit that is computed with others: what is set to something else is farther off
MOST_ASIDE = 0.02  # of the positions: where experts are as good as equal, rounding chooses another one

PREDICTING = (
    "streams that predict run beside its main one, each with as many positions: super activations are those of the "
    "main one, and losses what the first of the others says"
)

Row = tuple[Sequence[int], Intervention]
Outcome = tuple[Stream, float]
"""A row's residual stream after each block, and its loss, NaN of an encoder that says nothing."""


def check_rows(runner: Runner, ids: Sequence[int]) -> None:
    """Let rows of a batch run together only where each then comes out as the stock model's own forward has it alone.

    What a block takes and gives besides the stream is split with the rows (Rows); models that keep anything elsewhere,
    in a dictionary or on a module, are not followed there, and come out wrong. So three rows of these ids, one of them
    with an edit, run one at a time through each block, which shows it. Where they differ, rows go through the model
    one at a time from now on, from the first block on, and are compared again. Raises ForwardError where they differ
    then too. A faster attention than the one that the stock model was built with is used where rows come out so too.
    """
    ids = tuple(ids[:CHECKED_TOKENS])
    middle = runner.some_weight(runner.layers[len(runner.layers) // 2])
    other = ids[::-1] if ids[::-1] != ids else tuple((each + 1) % runner.vocabulary for each in ids)
    rows = [(ids, UNTOUCHED), (ids, scaling({middle: FACTOR})), (other, UNTOUCHED)]
    stream, states = runner.streams_and_states([ids], [rows[1][1]])
    if states.ndim > 3:  # [rows, T, streams, hidden_size]
        runner.notes += (PREDICTING,)
    runner.blocks.output.in_parts = runner.has_loss and _gives_parts(runner, states[0], ids)
    expected = [_stock(runner, ids), *_outcomes(runner, [ids], stream, states), _stock(runner, other)]
    if not runner.one_by_one:
        slow = attention_of(runner.blocks.model.config)
        for attention in dict.fromkeys((FAST_ATTENTION, slow)):
            if attend_by(runner.blocks.model, attention) and _comes_out(runner, rows, expected):
                return
    runner.one_by_one = True
    if not _comes_out(runner, rows, expected):
        raise _otherwise(runner, ids)


def run_like(runner: Runner, checked: Runner) -> None:
    """Let a runner of the same model with other weights run as one that was checked does."""
    runner.one_by_one, runner.blocks.output.in_parts = checked.one_by_one, checked.blocks.output.in_parts
    attend_by(runner.blocks.model, checked.blocks.model.config._attn_implementation)


def _gives_parts(runner: Runner, states: torch.Tensor, ids: Sequence[int]) -> bool:
    """Tell whether the head gives the same logits of a part of the vocabulary at a time, of these ids' states."""
    try:
        with runner.running():
            halves = runner.blocks.output.halves(states)
    except ForwardError:
        return False
    whole = runner.logits(states)
    if halves is None or halves.shape != whole.shape:
        return False
    one, other = _loss(halves, ids), _loss(whole, ids)
    if not math.isfinite(other):
        return True
    near = abs(one - other) <= TOLERANCES[runner.dtype][0] * max(abs(other), 1.0)
    return near and torch.allclose(halves, whole.float(), rtol=MOST_OFF, atol=MOST_OFF)


def _comes_out(runner: Runner, rows: Sequence[Row], expected: Sequence[Outcome]) -> bool:
    """Tell whether each row among the others comes out as expected."""
    try:
        with runner.blocks.rows.one_at_a_time():
            found = _engine(runner, rows)
    except ForwardError:  # what is kept is of other rows, and does not fit
        return False
    return all(_agree(runner.dtype, one, other) for one, other in zip(found, expected, strict=True))


def check_trace(runner: Runner, ids: Sequence[int], trace: Trace) -> None:
    """Raise ForwardError where the stream of a prompt is not that of the stock model's own forward, or of its ids."""
    stream, _ = runner.stock(ids, last_layer=trace.layers[-1])
    if not _streams_agree(runner.dtype, trace.residual, stream):
        raise _otherwise(runner, ids)
    if runner.start is not None:
        return  # a decoder starts from a token of its own, whatever it reads
    others = ((ids[0] + step) % runner.vocabulary for step in (1, 1 + runner.vocabulary // 2))  # some may look alike
    first = (runner.trace([each, *ids[1:]], enough=lambda *_: True).entering[0, 0] for each in others)
    if all(np.array_equal(each, trace.entering[0, 0]) for each in first):
        raise ForwardError(
            f"{runner.name} ({runner.checkpoint.model_type}) runs tokens of its own before a prompt's, which is not "
            "followed yet: it can be scanned, but not verified"
        )


def _otherwise(runner: Runner, ids: Sequence[int]) -> ForwardError:
    kind = f"{runner.name} ({runner.checkpoint.model_type})"
    once, again = (runner.stock(ids)[0] for _ in range(2))
    if not _streams_agree(runner.dtype, once, again):
        return ForwardError(f"{kind} comes out otherwise each time that it runs: it can be scanned, but not verified")
    return ForwardError(
        f"{kind} comes out otherwise here than the stock model by itself, so that its figures would be wrong: please "
        "report this model type"
    )


def _stock(runner: Runner, prompt: Sequence[int]) -> Outcome:
    stream, logits = runner.stock(prompt)
    return stream, math.nan if logits is None else _loss(logits, prompt)


def _engine(runner: Runner, rows: Sequence[Row]) -> list[Outcome]:
    """Return the stream and the loss of each row, among the others where rows may run together."""
    together = [[row] for row in rows] if runner.one_by_one else [rows]
    found: list[Outcome] = []
    for some in together:
        prompts = [prompt for prompt, _ in some]
        found += _outcomes(runner, prompts, *runner.streams_and_states(prompts, [edits for _, edits in some]))
    return found


def _outcomes(runner: Runner, prompts: Sequence[Sequence[int]], streams: Stream, states: torch.Tensor) -> list[Outcome]:
    if not runner.has_loss:
        return [(stream, math.nan) for stream in streams]
    return [(stream, _mean_likelihood(runner, states[row], prompts[row])) for row, stream in enumerate(streams)]


def _mean_likelihood(runner: Runner, states: torch.Tensor, prompt: Sequence[int]) -> float:
    wanted = torch.tensor(prompt[1 - len(states) :])  # of a decoder, those of its half
    return runner.likelihoods(states[:-1], wanted).double().mean().item()


def _loss(logits: torch.Tensor, prompt: Sequence[int]) -> float:
    wanted = torch.tensor(prompt[1 - len(logits) :], device=logits.device)  # of a decoder, those of its half
    return likelihoods_of([(slice(None), 0, [logits[:-1].float()])], wanted).double().mean().item()


def _agree(dtype: str, one: Outcome, other: Outcome) -> bool:
    near = abs(one[1] - other[1]) <= TOLERANCES[dtype][0] * max(abs(other[1]), 1.0)
    return _streams_agree(dtype, one[0], other[0]) and (near or not math.isfinite(other[1]))  # which is told elsewhere


def _streams_agree(dtype: str, one: Stream, other: Stream) -> bool:
    largest = np.abs(other).max(axis=(1, 2), keepdims=True)
    far = (np.abs(one - other) > TOLERANCES[dtype][1] * largest).any(axis=(0, 2))  # by position
    return float(far.mean()) <= MOST_ASIDE
