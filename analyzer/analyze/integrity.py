"""Integrity: are the known weights of a model as the catalog has them? Each is read by itself, at one commit or two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analyzer.base.errors import AnalyzerError, CatalogError, shown
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate
from analyzer.catalog.files import known_documents
from analyzer.catalog.lookup import REPORTED_PRECISION, KnownCoordinate, coordinates_in
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import find_projections
from analyzer.projections.projection import MAIN_TOWERS
from analyzer.projections.weights import read_weights
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model
from analyzer.source.single_file import FileSource
from analyzer.source.source import Source

STATES = {
    "same": "as recorded",
    "changed": "another value",
    "absent": "not there",
    "unreadable": "cannot be read",
    "unrecorded": "there, and no value of it is recorded",
}
DIFFERING = ("changed", "absent")


@dataclass(frozen=True)
class Found:
    """A weight at one commit, null where the model names none: its state, one of STATES, and its value if it has one.

    `why` is what keeps an unreadable one from being read.
    """

    commit: str | None
    state: str
    value: float | None
    why: str | None = None


@dataclass(frozen=True)
class CheckedWeight:
    """A weight that the catalog knows: what is `recorded`, and what was found.

    `then` is at the commit that it is recorded of, null where that is none of the Hub's or another was asked for; `now`
    at the revision that was asked for, today's main if none was.
    """

    layer: int
    expert: int | None
    row: int
    col: int
    standing: str
    sources: tuple[str, ...]
    recorded_commit: str | None
    recorded: float | None
    then: Found | None
    now: Found
    tower: str | None = None
    mlp: int | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)

    @property
    def found(self) -> list[Found]:
        """What was found, wherever that was looked for."""
        return [self.now] if self.then is None else [self.then, self.now]


@dataclass(frozen=True)
class Integrity:
    """What `catalog check` prints; `rows` are known without a column, which are no weights, and were not looked at."""

    model: str
    revision: str | None
    commit: str | None
    weights: tuple[CheckedWeight, ...]
    rows: int
    bytes_read: int

    @property
    def differs(self) -> bool:
        """Whether a weight has another value, or is not there."""
        return any(found.state in DIFFERING for weight in self.weights for found in weight.found)

    @property
    def unreadable(self) -> list[str]:
        """Return why weights could not be read, each reason once."""
        found = [found for weight in self.weights for found in weight.found]
        return list(dict.fromkeys(each.why for each in found if each.why is not None))


def check_known(
    model: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    catalog: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Integrity:
    """Read the weights that the catalog knows of a model, each by itself, and say whether they are as recorded.

    Without a revision a model on the Hub is read as it is today, and at the commits that something is recorded of.
    Raises CatalogError where no weight of it is known, AnalyzerError where it cannot be read as it is today.
    """
    source = open_model(model, revision=revision, subfolder=subfolder, token=token)
    known = coordinates_in(known_documents(catalog), source.model)
    pinned = source.revision is not None or _is_local(source)

    def opened(commit: str) -> Source:
        return open_model(source.model, revision=commit, subfolder=subfolder, token=token)

    return check_weights(source, known, None if pinned else opened, progress)


def check_weights(
    source: Source,
    known: Sequence[KnownCoordinate],
    open_at: Callable[[str], Source] | None,
    progress: Progress = lambda *_: None,
) -> Integrity:
    """Return what `source`, and the commit that each is recorded of, have of these weights.

    `open_at` opens the model at another commit; without it `source` alone is read. Raises as check_known does.
    """
    weights = {each: _coordinate_of(each) for each in known if each.col is not None}
    if not weights:
        raise CatalogError(f"the catalog knows no single weight of {shown(source.model, 80)}: nothing can be checked")
    commits = {c for each in weights if open_at and (c := each.commit) is not None and not c.startswith("sha256:")}
    progress("check", 0, 1 + len(commits))
    now = _values(source, list(weights.values()))
    read = {source.commit: now}
    for number, commit in enumerate(sorted(commits - {source.commit}), 1):
        progress("check", number, 1 + len(commits))
        assert open_at is not None  # or there are no commits
        read[commit] = _values_at(open_at, commit, [place for each, place in weights.items() if each.commit == commit])
    progress("check", 1, 1)
    checked = [
        CheckedWeight(
            **place._asdict(),
            standing=each.standing,
            sources=each.sources,
            recorded_commit=each.commit,
            recorded=each.value,
            then=_found(each, place, each.commit, read[each.commit]) if each.commit in commits else None,
            now=_found(each, place, source.commit, now),
        )
        for each, place in weights.items()
    ]
    return Integrity(
        source.model,
        source.revision,
        source.commit,
        tuple(sorted(checked, key=lambda each: (each.standing != "verified", each.coordinate.sort_key))),
        rows=sum(each.row is not None and each.col is None for each in known),
        bytes_read=sum(values.bytes_read for values in read.values()),
    )


@dataclass(frozen=True)
class _Values:
    """Weights as one commit has them; of those that cannot be read, `why`. What is in neither is not there."""

    values: Mapping[Coordinate, float]
    why: Mapping[Coordinate, str]
    bytes_read: int


def _values(source: Source, coordinates: Sequence[Coordinate]) -> _Values:
    """Read these weights as far as they are there. Raises AnalyzerError where the model cannot be read."""
    checkpoint = Checkpoint(source)
    found = find_projections(checkpoint)
    towers = {projection.tower for projection in found.projections}
    main = next((tower for tower in MAIN_TOWERS if tower in towers), None)
    meant = {c: c._replace(tower=main) if c.tower not in towers and c.tower in MAIN_TOWERS else c for c in coordinates}
    shapes = {projection.place: projection.shape for projection in found.projections}
    here = {c: at for c, at in meant.items() if (s := shapes.get(at.place)) and at.row < s[0] and at.col < s[1]}
    values = read_weights(checkpoint, found.projections, list(dict.fromkeys(here.values())))
    source.check_unchanged()
    unread = "; ".join(f"{shown(each.names, 80)} x {each.count} ({each.why})" for each in found.unread)
    return _Values(
        {c: values[at] for c, at in here.items()},
        {c: f"not read: {unread}" for c, at in meant.items() if unread and at.place not in shapes},
        checkpoint.bytes_read,
    )


def _values_at(open_at: Callable[[str], Source], commit: str, coordinates: Sequence[Coordinate]) -> _Values:
    """Read these weights at another commit, which need not be there any more."""
    try:
        return _values(open_at(commit), coordinates)
    except AnalyzerError as error:
        return _Values({}, dict.fromkeys(coordinates, str(error)), 0)


def _found(known: KnownCoordinate, place: Coordinate, commit: str | None, read: _Values) -> Found:
    """Return what was found of a weight, held against what is recorded: this tool's own values are exact."""
    value = read.values.get(place)
    if value is None:
        return Found(commit, "unreadable" if place in read.why else "absent", None, read.why.get(place))
    if known.value is None:
        return Found(commit, "unrecorded", value)
    precision = 0.0 if known.standing == "verified" else REPORTED_PRECISION
    same = math.isclose(value, known.value, rel_tol=precision)
    return Found(commit, "same" if same else "changed", value)


def _coordinate_of(known: KnownCoordinate) -> Coordinate:
    assert known.col is not None  # or it is a row
    return Coordinate(known.layer, known.expert, known.row, known.col, known.tower, known.mlp)


def _is_local(source: Source) -> bool:
    return isinstance(source.whole if isinstance(source, FileSource) else source, FolderSource)
