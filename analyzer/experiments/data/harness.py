"""A model under interventions as lm-evaluation-harness asks it: log-likelihoods of continuations, all arms at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from analyzer.base.errors import ForwardError
from analyzer.base.progress import Progress, counted
from analyzer.forward.edits import Intervention
from analyzer.forward.losses.plain import PASS_BYTES
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Tokens

LOGIT_BYTES = 1 << 26
LENGTH = 2048  # tokens of a window, where the model sets no limit
Answer = tuple[float, bool]
Request = tuple[tuple[int, ...], tuple[int, ...]]
"""The token ids of a context and of its continuation."""


class Respondent(TemplateLM):  # type: ignore[misc]
    """Answers for one arm, by its number in `arm`; what it is asked first is answered for all arms, as rows."""

    def __init__(
        self, runner: Runner, tokens: Tokens, interventions: Sequence[Intervention], progress: Progress
    ) -> None:
        super().__init__()
        self.arm = 0
        self.answered: dict[Request, list[Answer]] = {}
        self._runner, self._tokens, self._interventions = runner, tokens, interventions
        self._progress, self._stderr = progress, sys.stderr
        self._most = tokens.max_tokens or LENGTH

    @property
    def eot_token_id(self) -> int:
        """The token that stands for a context where there is none."""
        return self._tokens.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text, with the special tokens that the tokenizer adds by itself."""
        return self._tokens.ids(string, special=add_special_tokens is not False)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows that do not overlap."""
        split = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self._most, context_len=1)
            split.append([self._cut(*make_disjoint_window(each)) for each in windows])
        self._answer([window for windows in split for window in windows])
        return [sum(self.answered[window][self.arm][0] for window in windows) for windows in split]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Raise ForwardError."""
        raise ForwardError("a task asks for text that is made, and here likelihoods alone are: name others (--tasks)")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **_: Any
    ) -> list[Answer]:
        asked = [self._cut(context, continuation) for _, context, continuation in requests]
        self._answer(asked)
        return [self.answered[each][self.arm] for each in asked]

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        """Return a request without what is too long of it, from the left, as the harness cuts it."""
        if not context or not continuation or len(continuation) > self._most:
            raise ForwardError(
                f"a task asks for {len(continuation):,} tokens after {len(context):,}, which this model cannot judge: "
                "name others (--tasks)"
            )
        kept = self._most + 1 - len(continuation)
        return tuple(context)[-kept:], tuple(continuation)

    def _answer(self, requests: Sequence[Request]) -> None:
        new = [each for each in dict.fromkeys(requests) if each not in self.answered]
        arms = range(len(self._interventions))
        with contextlib.redirect_stderr(self._stderr):
            advance = counted(self._progress, "requests", len(new) * len(arms))
            for length in sorted({len(context) + len(said) for context, said in new}):
                pairs = [(each, arm) for each in new if len(each[0]) + len(each[1]) == length for arm in arms]
                rows = max(1, PASS_BYTES // (4 * length * (3 * self._runner.hidden_size + length)))
                for start in range(0, len(pairs), rows):
                    part = pairs[start : start + rows]
                    for (request, _), answer in zip(part, self._judged(part), strict=True):
                        self.answered.setdefault(request, []).append(answer)
                    advance(len(part))

    def _judged(self, pairs: Sequence[tuple[Request, int]]) -> list[Answer]:
        """Return the answers to requests of one length, each under its arm, in one pass."""
        prompts = [(*context, *said)[:-1] for (context, said), _ in pairs]
        states = self._runner.states(prompts, [self._interventions[arm] for _, arm in pairs])
        judged = torch.cat([state[-len(said) :] for state, ((_, said), _) in zip(states, pairs, strict=True)])
        targets = torch.tensor([token for (_, said), _ in pairs for token in said])
        step = max(1, LOGIT_BYTES // (8 * self._runner.vocabulary))
        logs, greedy = [], []
        for start in range(0, len(judged), step):
            part = slice(start, start + step)
            logits = self._runner.logits(judged[part]).double().cpu()
            logs.append(logits.log_softmax(dim=-1).gather(1, targets[part, None])[:, 0])
            greedy.append(logits.argmax(dim=-1) == targets[part])
        ends = np.cumsum([len(said) for (_, said), _ in pairs])[:-1]
        each = zip(np.split(torch.cat(logs).numpy(), ends), np.split(torch.cat(greedy).numpy(), ends), strict=True)
        return [(float(log.sum()), bool(same.all())) for log, same in each]
