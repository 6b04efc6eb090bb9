"""The records of all tensors in two versions; their field names are the JSON contract of `diff --all-tensors`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

SAME = ("same", "same file")


@dataclass(frozen=True)
class TensorChange:
    """One tensor in two versions, or a quantized matrix under the name that its plain tensor has.

    `state` is "same file" (of the same content, not read), "same", "changed", "dtype changed" (every value is the
    same), "reshaped", "added", "removed", or "not compared", where the two are stored in ways that cannot be held
    against each other; `note` says why. `relative_change` is ||new - old|| / ||old|| (Frobenius) and `cosine`
    <old, new> / (||old|| ||new||), both over the values that are finite in both versions, `nonfinite` of which are not;
    null where a norm is zero, or where bytes alone were compared. `unchanged` is the share of values that are equal.
    """

    name: str
    stored: tuple[str, ...]
    state: str
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...] | None
    old_dtype: str | None
    new_dtype: str | None
    relative_change: float | None = None
    cosine: float | None = None
    unchanged: float | None = None
    nonfinite: int | None = None
    note: str | None = None

    @property
    def differs(self) -> bool:
        """Whether the two versions of it are not the same, or cannot be compared."""
        return self.state not in SAME

    def named_by(self, patterns: Sequence[str]) -> bool:
        """Tell whether one of these patterns, in the shell's way, names it, or a tensor that it is stored in."""
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (self.name, *self.stored))


@dataclass(frozen=True)
class TensorDiff:
    """What `diff --all-tensors` prints; `unexpected` are the names of what differs and no pattern of `expect` names."""

    old: str
    new: str
    old_commit: str | None
    new_commit: str | None
    expect: tuple[str, ...]
    tensors: tuple[TensorChange, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]
    bytes_read: int
    bytes_shared: int

    @property
    def identical(self) -> bool:
        """True where no tensor differs."""
        return not any(tensor.differs for tensor in self.tensors)
