"""The frozen records of weights judged in two models; their field names are the JSON contract of `diff --verify`."""

from __future__ import annotations

from dataclasses import dataclass

from analyzer.base.records import Coordinate


@dataclass(frozen=True)
class Judged:
    """What a verification says of one weight: see SuperWeight.

    `activation` is the largest value of the super activation on its channel that it writes to, or takes away from,
    null where there is none; `activation_layer` where that begins.
    """

    value: float
    activation: float | None
    activation_layer: int | None
    share: float
    status: str
    reason: str | None
    effect: str | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None


@dataclass(frozen=True)
class JudgedWeight:
    """One weight in two models; `known` is its standing in the catalog, or what a search in the old model said."""

    layer: int
    expert: int | None
    row: int
    col: int
    known: str
    old: Judged
    new: Judged
    tower: str | None = None
    mlp: int | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)

    @property
    def differs(self) -> bool:
        """Whether it has another value, status or effect: what is measured always differs."""
        old, new = self.old, self.new
        return (old.value, old.status, old.effect) != (new.value, new.status, new.effect)


@dataclass(frozen=True)
class TunedDiff:
    """What `diff --verify` prints; losses are of the models as they are, over the same text."""

    old: str
    new: str
    old_commit: str | None
    new_commit: str | None
    prompt: str
    old_loss: float | None
    new_loss: float | None
    weights: tuple[JudgedWeight, ...]
    notes: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """True where no weight has another value, status or effect."""
        return not any(weight.differs for weight in self.weights)
