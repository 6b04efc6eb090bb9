"""The frozen records of comparisons; their field names are the JSON contract of `diff`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analyzer.base.records import Coordinate, Unread


@dataclass(frozen=True)
class Change:
    """One weight in two versions; `old` and `new` hold what each side says of it, or null.

    `known` is the standing of a super weight that was looked up because the catalog, or one side alone, knows it.
    """

    kind: str
    tower: str | None
    layer: int
    expert: int | None
    row: int
    col: int
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    known: str | None = None
    mlp: int | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)


@dataclass(frozen=True)
class LargestChange:
    """The weight of a layer that changed most."""

    expert: int | None
    row: int
    col: int
    old: float
    new: float
    mlp: int | None = None


@dataclass(frozen=True)
class UnreadOf:
    """What one side, "old" or "new", has that looks like a down projection and was not read: see Unread."""

    side: str
    names: str
    count: int
    shape: tuple[int, ...] | None
    why: str


@dataclass(frozen=True)
class LayerChange:
    """One layer in two versions.

    `state` is "same file" (of the same content, not read), "same", "changed", "not compared" weight by weight,
    "incomparable", or "ranked" where no more is known than the outliers that were saved; `note` says more. All else is
    over the layer's down projections that differ, which of many experts may be a few. Of the `ranked` top outliers on
    each side `shared` are the same weights, and `rank_correlation` is Spearman's over those (null below three).
    `relative_change` is ||new - old|| / ||old||, Frobenius norms over the weights that are finite in both;
    `old_nonfinite` and `new_nonfinite` are how many are not, of each.
    """

    tower: str | None
    layer: int
    state: str
    note: str | None
    ranked: int | None
    shared: int | None
    rank_correlation: float | None
    relative_change: float | None
    largest_change: LargestChange | None
    old_nonfinite: int | None = None
    new_nonfinite: int | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite, as far as that was looked at."""
        return not (self.old_nonfinite or self.new_nonfinite)


@dataclass(frozen=True)
class DiffResult:
    """What `diff` prints.

    A side's `model` and `commit` are those of the saved result, where it is one and says so. `super_weights_from` is
    "verified" where both sides are, "known" where their values were looked up, else null. `outliers` are those that
    differ; they rank among `outliers_among`: "all" down projections, or those "changed".
    """

    old: str
    new: str
    old_model: str | None
    new_model: str | None
    old_commit: str | None
    new_commit: str | None
    score: str | None
    super_weights_from: str | None
    super_weights: tuple[Change, ...]
    outliers_among: str | None
    outliers: tuple[Change, ...]
    outliers_unchanged: int
    layers: tuple[LayerChange, ...]
    notes: tuple[str, ...]
    bytes_read: int
    bytes_shared: int
    unread: tuple[UnreadOf, ...]

    @property
    def identical(self) -> bool:
        """True where nothing that was compared differs."""
        return (
            not self.outliers
            and all(change.kind in ("unchanged", "unknown") for change in self.super_weights)
            and all(layer.state in ("same", "same file", "ranked") for layer in self.layers)
        )


@dataclass(frozen=True)
class RevisionSummary:
    """One of several revisions; `shared` of its `ranked` top outliers are also those of the revision before it."""

    revision: str
    commit: str | None
    ranked: int
    shared: int | None
    rank_correlation: float | None
    bytes_read: int
    unread: tuple[Unread, ...] = ()


@dataclass(frozen=True)
class FollowedWeight:
    """One weight through all revisions: its value in each, and its rank where it has one."""

    tower: str | None
    layer: int
    expert: int | None
    row: int
    col: int
    known: str | None
    values: tuple[float | None, ...]
    ranks: tuple[int | None, ...]
    mlp: int | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)


@dataclass(frozen=True)
class History:
    """What `diff --revisions` prints."""

    model: str
    score: str
    revisions: tuple[RevisionSummary, ...]
    weights: tuple[FollowedWeight, ...]
