"""Plain memory in place of a GPU's, which is written late: who does not wait for a copy finds rubbish."""

import queue
import threading
import time

import torch

from analyzer.model.loading.staging import Staging

RUBBISH = 0xDD


class LateDevice:
    """Copies one slab after the other, each a while after it was asked for; keeps what goes wrong meanwhile."""

    def __init__(self, delay=0.003):
        self.slabs, self.copies, self.overwritten = [], 0, 0
        self._delay, self._asked = delay, queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def slab(self, size):
        self.slabs.append(torch.full((size,), RUBBISH, dtype=torch.uint8))
        return self.slabs[-1]

    def copy(self, slab):
        copy = LateCopy(torch.full_like(slab, RUBBISH))
        self._asked.put((slab, slab.clone(), copy))
        return copy

    def _work(self):
        while True:
            slab, before, copy = self._asked.get()
            time.sleep(self._delay)
            self.overwritten += not torch.equal(slab, before)
            copy.there.copy_(slab)
            self.copies += 1
            copy.done.set()


class LateCopy:
    def __init__(self, there):
        self.there, self.done = there, threading.Event()

    def arrive(self):
        self.done.wait()
        return self.there

    def wait(self):
        self.done.wait()


def staged(monkeypatch, device):
    """Have models send their blocks to this device, whatever theirs is; with null none is staged."""
    monkeypatch.setattr(
        "analyzer.model.blocks.staging_to",
        lambda _, weights, blocks: None if device is None else Staging(weights, blocks, device),
    )
