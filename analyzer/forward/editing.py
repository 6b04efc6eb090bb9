"""A language model for experiments of one's own: text in, logits or losses out, with weights edited meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.checking import check_rows
from analyzer.forward.edits import UNTOUCHED, Intervention, scaling
from analyzer.forward.losses.plain import losses
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Tokens


class EditableModel:
    """A stock model whose weights can be edited for the length of a block of code; none is ever written.

    Its weights come block by block, so it may be larger than memory.
    """

    def __init__(self, runner: Runner, tokens: Tokens) -> None:
        self._runner, self._tokens = runner, tokens
        self._intervention = UNTOUCHED
        self._checked = False

    @contextmanager
    def edited(self, factors: Mapping[Coordinate, float]) -> Iterator[None]:
        """While the context lasts, multiply each of these weights by its factor; 0 sets it to zero.

        Contexts nest: the inner one's factor of a weight goes before the outer one's. Raises ForwardError where a
        factor is no finite number; ArchitectureError, once the model is run, where it has no such weight.
        """
        outer = self._intervention
        edits = {edit.key: edit for edit in (*outer.edits, *scaling(factors).edits)}
        self._intervention = Intervention(tuple(edits.values()))
        try:
            yield
        finally:
            self._intervention = outer

    def logits(self, text: str) -> NDArray[np.float32]:
        """Return what the model says after each token of a text, [tokens, vocabulary], unnormalized.

        The encoder of an encoder-decoder reads the first half of it, and the tokens are those that the decoder reads.
        Raises ForwardError where the text has no token, or more than the model has positions.
        """
        ids = self._tokens.ids(text)
        most, least = self._tokens.max_tokens, 1 if self._runner.start is None else 2
        if len(ids) < least or (most is not None and len(ids) > most):
            some = f"{least} to {most or 'many'}"
            raise ForwardError(f"{self._runner.name} cannot be run on {len(ids)} tokens: give {some}")
        states = self._runner.states([ids], [self._intervention])[0]
        return self._runner.logits(states).to("cpu", torch.float32).numpy()

    def loss(self, text: str) -> float:
        """Return the mean negative log-likelihood of a text, in nats per token, over windows of at most 512.

        Of each next token, or of every seventh, masked, where the model is a masked one, or of each in the second half
        of a window, where it is an encoder-decoder. Raises ForwardError where the
        text is too short, and where the model comes out otherwise here than the stock model by itself.
        """
        windows = self._tokens.windows(text)
        if not self._checked:
            check_rows(self._runner, windows[0].ids)
            self._checked = True
        return losses(self._runner, windows, [self._intervention])[0]
