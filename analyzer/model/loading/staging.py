"""Blocks on their way to a GPU: read straight into pinned memory, and copied from there while the GPU computes.

There are two slabs, allocated once. A thread takes a free one, reads a block into it, begins one copy of all of it and
gives the slab back when the copy is done: so the block after next is read while the next one is copied and this one
computes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import torch

from analyzer.base.errors import ForwardError
from analyzer.model.loading.layout import lay_out
from analyzer.model.weights import StoredWeights

SLABS = 2

Arrive = Callable[[], dict[str, torch.Tensor]]
"""Returns a block's tensors on the device; what the device is asked to do from then on comes after their copy."""


class Copy(Protocol):
    """A copy of a slab to a device that has begun."""

    def arrive(self) -> torch.Tensor:
        """Return its bytes there, and let no work of the device that is asked for from now on begin before them."""
        ...

    def wait(self) -> None:
        """Return when the slab has been read, and may be overwritten."""
        ...


class Device(Protocol):
    """Where blocks are copied to."""

    def slab(self, size: int) -> torch.Tensor:
        """Return so many bytes of this machine's memory, [size] of uint8. Raises RuntimeError where there are none."""
        ...

    def copy(self, slab: torch.Tensor) -> Copy:
        """Begin to copy a slab, or the beginning of one."""
        ...


class Staging:
    """The way of a checkpoint's blocks to a device, of those whose tensors are stored as plain floats or integers."""

    def __init__(self, weights: StoredWeights, blocks: Mapping[str, Sequence[str]], device: Device) -> None:
        """Allocate the slabs, as large as the largest of `blocks`, each of which has these tensors.

        Raises RuntimeError where there is no such memory.
        """
        self._weights, self._device = weights, device
        self._layouts = {
            block: lay_out({name: weights.stored_bytes([name]) for name in names})
            for block, names in blocks.items()
            if weights.are_plain(names)
        }
        self._reading = threading.Lock()  # the next block comes before the one after it
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        size = max((layout.size for layout in self._layouts.values()), default=0)
        for _ in range(SLABS if size else 0):
            self._free.put(device.slab(size))

    def takes(self, block: str) -> bool:
        """Tell whether a block goes this way."""
        return block in self._layouts

    def send(self, block: str, sent: Callable[[Arrive], object]) -> None:
        """Read a block and begin its copy, tell `sent` of it, and return when the copy is done.

        Raises SourceError where it cannot be read.
        """
        layout, slab = self._layouts[block], self._free.get()
        try:
            with self._reading:
                self._weights.read_into({name: slab[place] for name, place in layout.places.items()})
            copy = self._device.copy(slab[: layout.size])
            sent(lambda: self._tensors(block, copy))
            copy.wait()
        finally:
            self._free.put(slab)

    def _tensors(self, block: str, copy: Copy) -> dict[str, torch.Tensor]:
        """Return a block's tensors, each in memory of its own: what looks for a parameter may tell it by that."""
        there = copy.arrive()
        return {
            name: there[place].view(self._weights.dtype(name)).reshape(self._weights.shape(name)).clone()
            for name, place in self._layouts[block].places.items()
        }


def staging_to(device: torch.device, weights: StoredWeights, blocks: Mapping[str, Sequence[str]]) -> Staging | None:
    """Return the way of blocks to a GPU; null for other devices, and where there is no pinned memory to be had."""
    if device.type == "cuda":
        with suppress(RuntimeError):
            return Staging(weights, blocks, Gpu(device))
    return None


class Gpu:
    """A CUDA device, with a stream of its own for copies; it computes on its default stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._begun: torch.cuda.Event | None = None

    def slab(self, size: int) -> torch.Tensor:
        """See Device.slab: the memory is pinned."""
        with torch.cuda.device(self._device):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, slab: torch.Tensor) -> Copy:
        """See Device.copy."""
        with torch.cuda.stream(self._copying):
            there = torch.empty(slab.shape, dtype=torch.uint8, device=self._device)
            there.copy_(slab, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._copying)
        return _GpuCopy(there, done, self._keep_pace)

    def _keep_pace(self) -> torch.cuda.Stream:
        """Wait until what the block before the last asked for is done: else blocks would pile up on the device.

        Returns the stream of computing. Raises ForwardError where that is another than the default one, on which the
        library casts what it loads.
        """
        computing = torch.cuda.default_stream(self._device)
        if torch.cuda.current_stream(self._device) != computing:
            raise ForwardError("a model's weights come to a GPU on its default stream: run it there")
        if self._begun is not None:
            self._begun.synchronize()
        self._begun = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._begun.record(computing)
        return computing


class _GpuCopy:
    def __init__(self, there: torch.Tensor, done: torch.cuda.Event, keep_pace: Callable[[], torch.cuda.Stream]) -> None:
        self._there, self._done, self._keep_pace = there, done, keep_pace

    def arrive(self) -> torch.Tensor:
        computing = self._keep_pace()
        computing.wait_event(self._done)
        self._there.record_stream(computing)  # its memory is not given to another copy before computing has read it
        return self._there

    def wait(self) -> None:
        self._done.synchronize()
