"""What an experiment is made of: its options, its arms, and what it returns; light, since the command line reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analyzer.base.records import Coordinate, plain
from analyzer.forward.edits import UNTOUCHED, Intervention

if TYPE_CHECKING:
    from analyzer.model.weights import ChangeTensor

Facts = Mapping[str, Any]
"""What the JSON has of a thing beside what all things of its kind have."""


@dataclass(frozen=True)
class Option:
    """An option of one experiment: `--name VALUE`, parsed by a function that raises ValueError for what is none.

    With `several` it may be given again, and the default is a tuple.
    """

    name: str
    help: str
    parse: Callable[[str], Any]
    default: Any
    metavar: str
    several: bool = False


def whole_number(text: str) -> int:
    """Return the number from 1 that an option gives. Raises ValueError where it is none."""
    if (number := int(text)) < 1:
        raise ValueError(f"{number} is too small")
    return number


@dataclass(frozen=True)
class Experiment:
    """A command of `superweight experiment`: `run` is handed the opened lab, and a keyword for each option.

    `needs` names what it runs on: "text" (losses over windows), "prompts" (contexts) or "tasks" (what it asks for
    itself); one that `calibrates` has windows of another text, or the first half of those, beside. `static`, where it
    has one, is handed the runnable and the weights in place of a lab, and tells what it can without a run. `picture` is
    how its result is drawn: see pictures.py. `says` is the help, which ends in an example. `in_all` are those of its
    options that `superweight experiment all` gives other values than the usual ones, and how many `windows`, and tokens
    of these (`length`), it has at most there; `less` says so in words.
    """

    name: str
    says: str
    run: Callable[..., Outcome]
    needs: str = "text"
    calibrates: bool = False
    static: Callable[..., Outcome] | None = None
    picture: str = "arms"
    options: tuple[Option, ...] = ()
    in_all: Facts = field(default_factory=dict)
    less: str = ""


@dataclass(frozen=True)
class Weight:
    """A weight that the experiment is about, with its value."""

    coordinate: Coordinate
    value: float

    def __str__(self) -> str:
        return f"{self.coordinate} = {self.value:+.5g}"


@dataclass(frozen=True)
class Arm:
    """One way to run the model: with edits, as a row of a pass, or with weights changed as they are loaded.

    `edits` are those of every window, or one intervention for each of them. An arm with a `change` is a run of its
    own. `zeroed` is how many weights are really zeroed.
    """

    name: str
    edits: Intervention | Sequence[Intervention] = UNTOUCHED
    zeroed: int = 0
    change: ChangeTensor | None = None
    facts: Facts = field(default_factory=dict)

    def of(self, window: int) -> Intervention:
        """Return the edits of a window, by its number."""
        return self.edits if isinstance(self.edits, Intervention) else self.edits[window]


@dataclass(frozen=True)
class Cost:
    """A mean loss in nats per token, and what it is above the untouched model's, with a 95 % interval over windows.

    The interval is null where there is but one window; all are infinite where a loss is no number.
    """

    nll: float
    delta: float
    delta_low: float | None
    delta_high: float | None

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves no effect out."""
        return self.delta_low is not None and self.delta_high is not None and self.delta_low * self.delta_high > 0


@dataclass(frozen=True)
class Measured:
    """An arm with its cost; `recovered` is the part of an effect that it takes back, null where it restores nothing."""

    name: str
    zeroed: int
    cost: Cost | None
    recovered: float | None = None
    facts: Facts = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what the JSON has of it; an arm without losses has no cost."""
        cost = self.cost
        losses: dict[str, Any] = {}
        if cost is not None:
            names = ("nll", "perplexity", "delta", "delta_low", "delta_high")
            losses = {name: getattr(cost, name) for name in names} | {"recovered": self.recovered}
        return {"name": self.name, "zeroed": self.zeroed, **losses, **self.facts}


@dataclass(frozen=True)
class Claim:
    """What the paper claims, whether that holds here, null where it cannot be told, and the figures that decide."""

    text: str
    holds: bool | None
    why: str

    @property
    def verdict(self) -> str:
        """Whether it holds here, in words."""
        return {True: "holds", False: "does not hold", None: "cannot be told"}[self.holds]


@dataclass(frozen=True)
class Outcome:
    """What an experiment returns: its arms, its findings in sentences, and what its JSON has beside.

    `tables` are what the text shows of that: titles, each with a header and rows. `claims` are the paper's, where it
    has any on the matter.
    """

    arms: tuple[Measured, ...]
    findings: tuple[str, ...]
    more: Facts = field(default_factory=dict)
    tables: tuple[tuple[str, Sequence[str], Sequence[Sequence[object]]], ...] = ()
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Result:
    """What `superweight experiment` prints.

    `weights_from` says where the weights were known from, and `protocol` what was run on; `published` is what others
    published of this model, each with its source.
    """

    experiment: str
    model: str
    revision: str | None
    commit: str | None
    weights: tuple[Weight, ...]
    weights_from: str
    protocol: Facts
    outcome: Outcome
    published: tuple[Facts, ...]
    notes: tuple[str, ...]
    picture: str = "arms"

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON has."""
        weights = [plain(weight.coordinate) | {"value": weight.value} for weight in self.weights]
        found: dict[str, Any] = plain({
            "experiment": self.experiment,
            "model": self.model,
            "revision": self.revision,
            "commit": self.commit,
            "weights": weights,
            "weights_from": self.weights_from,
            "protocol": self.protocol,
            "arms": [arm.as_json() for arm in self.outcome.arms],
            **self.outcome.more,
            "findings": self.outcome.findings,
            "claims": self.outcome.claims,
            "published": self.published,
            "notes": self.notes,
        })  # fmt: skip
        return found
