"""What a model says after hidden states by its own output head: of all of the vocabulary in slices, or of a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch

from analyzer.model.ends.logits import (
    BLOCK,
    Divergences,
    Draw,
    LogitsPart,
    Sampled,
    divergences_of,
    likelihoods_of,
)
from analyzer.model.ends.stored import SlicedHead

LOGIT_BYTES = 1 << 26  # of one slice of the vocabulary, for the states that go through the head at once
SAMPLED_STATES = 8 * BLOCK  # that go through the head at once, each with the samples of all
LEAST_SAMPLED = 1 << 13  # tokens of a vocabulary: a smaller one is told whole


class OutputHead:
    """The output head of one model."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor], module: object, vocabulary: int) -> None:
        """`run` gives the logits [n, vocabulary] of states [1, n, hidden_size], by the `module`."""
        self._run, self._module = run, module if isinstance(module, SlicedHead) else None
        self._vocabulary = vocabulary if self._module is None else self._module.slices[-1].stop
        self.in_parts = False
        """Whether it is known to give the same logits of a part of the vocabulary alone (checking.py)."""

    def likelihoods(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each target [n] after states [n, hidden_size], in nats, [n] float32."""
        return likelihoods_of(self._slices(states), targets)

    def divergences(self, untouched: torch.Tensor, states: torch.Tensor, targets: torch.Tensor) -> Divergences:
        """Return what is said after states [rows, n, hidden_size] beside what is said after the untouched [n, ...].

        The head runs once for each, and for the untouched.
        """
        return divergences_of(self._slices(untouched, *states), len(states), targets)

    def sampled(
        self, states: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Sequence[Sampled]]:
        """Return the likelihoods, and what tells how those of other states differ, of `SAMPLED_STATES` each.

        Nothing of the second kind where the head is not known to give parts, or the vocabulary is small.
        """
        if self._module is None or not self.in_parts or self._vocabulary < LEAST_SAMPLED:
            return self.likelihoods(states, targets), ()
        draw = Draw(generator)
        likelihoods = likelihoods_of(self._slices(states, least=BLOCK), targets, draw.look)
        parts = [slice(start, start + SAMPLED_STATES) for start in range(0, len(targets), SAMPLED_STATES)]

        def sample(part: slice) -> Sampled:
            return draw.sampled(
                part, targets[part], likelihoods[part], lambda tokens: self.logits(states[part], tokens)
            )

        return likelihoods, [sample(part) for part in parts]

    def logits(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of these tokens, ascending [m], after states [n, hidden_size], [n, m] float32.

        For heads that give parts.
        """
        assert self._module is not None
        step = max(1, LOGIT_BYTES // (4 * len(tokens)))
        with self._module.only(tokens):
            parts = [self._run(part[None]).float() for part in torch.split(states, step)]
        return torch.cat(parts) if parts else states.new_empty(0, len(tokens))

    def differences(
        self, sample: Sampled, places: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a sample tells of states [n, hidden_size] in place of those at its `places` [n], as it does."""
        step = max(1, LOGIT_BYTES // (16 * len(sample.tokens)))  # whose sums make several of as many numbers
        pieces = zip(torch.split(places, step), torch.split(states, step), strict=True)
        told = [sample.differences(here, self.logits(piece, sample.tokens)) for here, piece in pieces]
        differences, spreads = zip(*told, strict=True)
        return torch.cat(differences), torch.cat(spreads)

    def halves(self, states: torch.Tensor) -> torch.Tensor | None:
        """Return the logits [n, vocabulary] put together from two halves of the vocabulary; null where it has none."""
        if self._module is None:
            return None
        whole = torch.empty(len(states), self._vocabulary, device=states.device)
        for first in range(2):
            tokens = torch.arange(first, self._vocabulary, 2, device=states.device)
            whole[:, tokens] = self.logits(states, tokens)
        return whole

    def _slices(self, *states: torch.Tensor, least: int = 1) -> Iterator[LogitsPart]:
        """Yield the logits after each of these states [n, hidden_size], part by part, of at least so many states."""
        module = self._module if self.in_parts else None
        slices = [range(self._vocabulary)] if module is None else module.slices
        for tokens in slices:
            step = max(1, LOGIT_BYTES // (4 * len(tokens) * len(states)) // least) * least
            with module.only(tokens) if module is not None and len(slices) > 1 else nullcontext():
                for start in range(0, len(states[0]), step):
                    part = slice(start, start + step)
                    yield part, tokens.start, [self._run(each[None, part]).float() for each in states]
