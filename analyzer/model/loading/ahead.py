"""Reads the weights of blocks on threads, before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import torch

from analyzer.model.loading.staging import Arrive, Staging


class ReadAhead:
    """Blocks' tensors, each read once for each time that it is taken."""

    def __init__(self, read: Callable[[str], dict[str, torch.Tensor]], staging: Staging | None) -> None:
        """`read` returns the tensors of a block that does not go through `staging`."""
        self._read, self._staging = read, staging
        self._begun: dict[str, Future[Arrive]] = {}
        self.far = 1 if staging is None else 2
        """How many blocks it pays to be ahead: one is copied while the other is read."""

    def begin(self, block: str) -> None:
        """Have a block read, unless it is being read, on a thread that nobody waits for: it may not be needed any more.

        What goes wrong is told when it is taken.
        """
        if block not in self._begun:
            self._begun[block] = Future()
            threading.Thread(target=self._bring, args=(block, self._begun[block]), name="weights", daemon=True).start()

    def take(self, block: str) -> Arrive:
        """Return what returns a block's tensors, when it has been read. Raises like StoredWeights.read."""
        self.begin(block)
        return self._begun.pop(block).result()

    def _bring(self, block: str, future: Future[Arrive]) -> None:
        try:
            if self._staging is not None and self._staging.takes(block):
                self._staging.send(block, future.set_result)
            else:
                tensors = self._read(block)
                future.set_result(lambda: tensors)
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
