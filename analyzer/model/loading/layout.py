"""Pure: where the tensors of a block lie in a slab of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 256  # bytes, as CUDA aligns what it allocates: any dtype can be seen there


@dataclass(frozen=True)
class Layout:
    """Which bytes of a slab each tensor takes, by name, and how many bytes there are in all."""

    places: Mapping[str, slice]
    size: int


def lay_out(sizes: Mapping[str, int]) -> Layout:
    """Return the layout of tensors of so many bytes, in their order, each at a multiple of ALIGNMENT."""
    places, stop = {}, 0
    for name, size in sizes.items():
        start = -(-stop // ALIGNMENT) * ALIGNMENT
        places[name] = slice(start, stop := start + size)
    return Layout(places, stop)
