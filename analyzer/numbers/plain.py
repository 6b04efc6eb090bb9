"""Plain floats."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import NUM_EXPERTS_KEYS, sizes_in
from analyzer.base.errors import shown
from analyzer.numbers.encoding import Companions, Tile
from analyzer.numbers.floats import FORMATS, FloatFormat, Unsigned
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import MAX_EXPERTS, StoredModule

# A parameter of all experts: where it has two dimensions, their matrices lie one after the other (DBRX).
STACKED = re.compile(r"(^|\.)experts(\.[A-Za-z]\w*)+$")


@dataclass(frozen=True)
class Plain:
    """IEEE floats as they are."""

    name: str
    expand = (1, 1)

    @property
    def unit(self) -> np.dtype[Any]:
        """The unsigned integer of the float's width."""
        return self.decoded.bits

    @property
    def decoded(self) -> FloatFormat:
        """The float itself."""
        return FORMATS[self.name]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode."""
        return units


def find_plain(module: StoredModule) -> list[Matrix] | None:
    """Return plain floats, [rows, cols] or [experts, rows, cols]; null where the module has none."""
    name = float_tensor(module, FORMATS)
    if name is None:
        return None
    dtype, shape = module.tensors[name]
    experts, rows, cols = float_shape(module, name, shape)
    return [
        Matrix(data, (), Plain(dtype), (rows, cols), transposed=False)
        for data in module.parts(name, experts, (rows, cols))
    ]


def float_tensor(module: StoredModule, dtypes: Collection[str]) -> str | None:
    """Return the name of the module's tensor of one of these dtypes, null where it has none."""
    names = (module.name + ".weight", module.name)
    return next((name for name in names if module.tensors.get(name, ("",))[0] in dtypes), None)


def float_shape(module: StoredModule, name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (experts, rows, cols), one expert for a matrix. Raises ArchitectureError where it cannot be one."""
    if len(shape) not in (2, 3):
        raise module.refused(name, f"has {len(shape)} dimensions, so is no matrix")
    if 0 in shape or (len(shape) == 3 and shape[0] > MAX_EXPERTS):
        raise module.refused(name, f"has the shape {shown(shape, 60)}, which no down projection has")
    if name == module.name and STACKED.search(name) and len(shape) == 2:
        sizes = [size for size in sizes_in(module.config, NUM_EXPERTS_KEYS) if shape[0] % size == 0]
        if len(set(sizes)) == 1:
            return sizes[0], shape[0] // sizes[0], shape[1]
    return (shape[0] if len(shape) == 3 else 1), shape[-2], shape[-1]
