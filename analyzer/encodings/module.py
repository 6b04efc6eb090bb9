"""A module as a checkpoint stores it: its tensors, what config.json says, and the errors about them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from analyzer.base.errors import ArchitectureError, shown
from analyzer.encodings.encoding import NUMPY_DTYPES
from analyzer.encodings.matrices import Part, Shapes

FLOAT_SCALES = ("F32", "F16", "BF16")
MAX_EXPERTS = 1 << 16


@dataclass(frozen=True)
class StoredModule:
    """A module of this `name` in the model `model`, among all of its tensors; each encoding looks for its own."""

    model: str
    name: str
    tensors: Shapes
    config: Mapping[str, Any]

    def companion(
        self, end: str, dtypes: Collection[str], shapes: Collection[tuple[int, ...]], *, of: str | None = None
    ) -> str:
        """Return the name of a tensor that must be there, of one of these dtypes and shapes.

        It ends so after the module's name, or after the tensor `of`. Raises ArchitectureError where it does not fit.
        """
        name = (of or self.name) + end
        if name not in self.tensors:
            raise self.refused(of or self.name, f"is quantized, but {shown(name)} is missing: download it again")
        dtype, shape = self.tensors[name]
        if dtype not in dtypes or shape not in shapes:
            wanted = " or ".join(shown(list(s), 40) for s in dict.fromkeys(shapes))
            raise self.refused(
                name, f"is {dtype} of shape {shown(list(shape), 60)}; expected {'/'.join(dtypes)} of shape {wanted}"
            )
        return name

    def parts(self, name: str, experts: int, shape: tuple[int, ...]) -> list[Part]:
        """Return each expert's part of a tensor that holds them one after the other."""
        dtype = self.tensors[name][0]
        size = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        return [Part(name, dtype, shape, expert * size, (expert + 1) * size) for expert in range(experts)]

    def whole(self, name: str) -> Part:
        """Return a tensor as one part."""
        return self.parts(name, 1, self.tensors[name][1])[0]

    def refused(self, name: str, why: str) -> ArchitectureError:
        """Return the error that says why a tensor cannot be read."""
        return ArchitectureError(f"{self.model}: {shown(name)} {why}")
