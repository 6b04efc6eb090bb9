"""A module as a checkpoint stores it: its tensors, what config.json says, and the errors about them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from analyzer.base.config import quantizations
from analyzer.base.errors import ArchitectureError, shown
from analyzer.numbers.encoding import NUMPY_DTYPES
from analyzer.numbers.matrices import Part, Shapes

FLOAT_SCALES = ("F32", "F16", "BF16")
POWERS = ("F8_E8M0", "U8")  # scales that are powers of two (E8M0), by their biased exponents
EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2")
SCALES = (  # what a module's name is followed by in the name of its weights' scales
    ".weight_scale_inv", ".weight_scale", ".scale_weight", ".qscale_weight", ".scale",
    "_scale_inv", "_scale", "_weight_scale_inv", "_weight_scale",
)  # fmt: skip
MAX_EXPERTS = 1 << 16
MAX_PARTS = 32  # of a module's name, all of whose ends are held
MAX_CONTENT_BYTES = 1 << 12  # of a tensor that is read to learn how others are stored; known ones have some 200

# Numbers between dots, and those that end the word expert.
IN_A_NAME = re.compile(r"(?:(?<![^.])|(?<=expert_)|(?<=expert))\d{1,5}(?![^.])", re.ASCII)

ReadTensors = Callable[[Sequence[str]], Mapping[str, bytes | bytearray]]
"""Returns the bytes of whole tensors by name."""


def read_nothing(names: Sequence[str]) -> dict[str, bytes]:
    """Stand in for the tensors' bytes where only their names, dtypes and shapes are known."""
    raise ArchitectureError(f"{shown(names[0])} has to be read to know what it describes")


@dataclass(frozen=True)
class StoredTensors:
    """All tensors of the model `model`, and what config.json says; `read` brings those that describe others."""

    model: str
    tensors: Shapes
    config: Mapping[str, Any]
    read: ReadTensors = read_nothing
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def has_scaled_floats(self) -> bool:
        """Whether any 8-bit floats have scales beside them."""
        return any(
            dtype in EIGHT_BIT_FLOATS and any(name.removesuffix(".weight") + end in self.tensors for end in SCALES)
            for name, (dtype, _) in self.tensors.items()
        )

    @cached_property
    def said_of_modules(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What config.json says of the quantization of single modules, as MLX does, by those that have scales.

        A name that none of these has counts for the one whose name it ends with, or that ends with it, as of a model
        that was saved under another prefix. Where those are several, what it says of all modules may be meant as well.
        """
        modules = {name.removesuffix(".scales") for name in self.tensors if name.endswith(".scales")}
        told = [
            (name, said, of_all)
            for of_all in quantizations(self.config)
            for name, said in of_all.items()
            if isinstance(said, Mapping)
        ]
        exactly: dict[str, list[Mapping[str, Any]]] = {}
        akin: dict[str, list[Mapping[str, Any]]] = {}
        by_end: dict[str, list[str]] = {}
        for module in modules if any(name not in modules for name, _, _ in told) else ():
            for end in _ends(module):
                by_end.setdefault(end, []).append(module)
        for name, said, of_all in told:
            if name in modules:
                exactly.setdefault(name, []).append(said)
                continue
            meant = by_end.get(name) or [end for end in _ends(name) if end in modules]
            for module in meant:
                akin.setdefault(module, []).extend([said] if len(meant) == 1 else [said, of_all])
        return akin | exactly

    def content(self, name: str) -> bytes:
        """Return the bytes of a small tensor. Those of all layers and experts are read in one go.

        Raises ArchitectureError where it is too large for what it should be, SourceError where it cannot be read.
        """
        if name not in self._contents:
            if not self._is_small(name):
                raise ArchitectureError(f"{self.model}: {shown(name)} is too large for what it should describe")
            kind = starred(name)
            names = [other for other in self.tensors if starred(other) == kind and self._is_small(other)]
            self._contents.update({other: bytes(data) for other, data in self.read(names).items()})
        return self._contents[name]

    def _is_small(self, name: str) -> bool:
        dtype, shape = self.tensors[name]
        return dtype in NUMPY_DTYPES and math.prod(shape) * NUMPY_DTYPES[dtype].itemsize <= MAX_CONTENT_BYTES


def _ends(name: str) -> Iterator[str]:
    """Yield a name, then without its first part, and so on."""
    for _ in range(MAX_PARTS):
        yield name
        _, dot, name = name.partition(".")
        if not dot:
            return


def starred(name: str) -> str:
    """Return a name with a star for each number between dots, as a pattern for all names of its kind."""
    return IN_A_NAME.sub("*", name)


@dataclass(frozen=True)
class StoredModule:
    """A module of this `name` among the tensors of its checkpoint; each encoding looks for its own."""

    checkpoint: StoredTensors
    name: str

    @property
    def tensors(self) -> Shapes:
        """Dtype and shape of all tensors of the checkpoint."""
        return self.checkpoint.tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json says."""
        return self.checkpoint.config

    def has(self, end: str, dtypes: Collection[str] | None = None) -> bool:
        """Whether the module has a tensor, of one of these dtypes, whose name ends so after its own."""
        stored = self.tensors.get(self.name + end)
        return stored is not None and (dtypes is None or stored[0] in dtypes)

    def shape(self, end: str) -> tuple[int, ...]:
        """Return the shape of the module's tensor whose name ends so; of none, that of nothing."""
        return self.tensors.get(self.name + end, ("", (0,)))[1]

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

    def parts(
        self,
        name: str,
        experts: int,
        shape: tuple[int, ...],
        *,
        unit: np.dtype[Any] | None = None,
        dtype: str | None = None,
    ) -> list[Part]:
        """Return each expert's part of a tensor that holds them one after the other; all of it for each, if a number.

        The shape counts `unit`, where that is not the tensor's own number. `dtype` is what its bytes are read as, where
        it is not the tensor's own.
        """
        dtype = dtype or self.tensors[name][0]
        size = math.prod(shape) * (unit or NUMPY_DTYPES[dtype]).itemsize
        if math.prod(self.tensors[name][1]) == 1:
            return [Part(name, dtype, shape, 0, size)] * experts
        return [Part(name, dtype, shape, expert * size, (expert + 1) * size) for expert in range(experts)]

    def whole(self, name: str) -> Part:
        """Return a tensor as one part."""
        return self.parts(name, 1, self.tensors[name][1])[0]

    def refused(self, name: str, why: str) -> ArchitectureError:
        """Return the error that says why a tensor cannot be read."""
        return ArchitectureError(f"{self.checkpoint.model}: {shown(name)} {why}")
