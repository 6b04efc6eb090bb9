"""A base model and its tuned version: the weights that are known of the base, verified in both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import ForwardError, shown
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate
from analyzer.base.text import count_of
from analyzer.catalog.files import known_documents
from analyzer.catalog.lookup import KnownCoordinate, known_of
from analyzer.source.source import Source
from analyzer.verify.records import VerifyResult
from analyzer.verify.settings import VerifySettings


@dataclass(frozen=True)
class Verified:
    """What both models say of the weights that were asked for.

    `known` has the standing of each, in the order of both results' `asked`; `note` says where the weights are from.
    """

    known: Mapping[Coordinate, str]
    note: str
    old: VerifyResult
    new: VerifyResult


def verify_known(
    base: Source,
    tuned: Source,
    settings: VerifySettings,
    *,
    catalog: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Verified:
    """Verify in both models what is known of the base: by the catalog or, where that knows nothing, by a search in it.

    Where critical weights are known, they are all that is asked for. Raises ForwardError where the base has no super
    weight, AnalyzerError where one of the models cannot be run, or the tuned one has no such weight.
    """
    every = [each for each in known_of(known_documents(catalog), base.model) if each.col is not None]
    known = {_coordinate_of(each): _standing(each.standing, each.effect) for each in reversed(every)}
    critical = {_coordinate_of(each) for each in every if each.effect == "critical"}
    said = "the catalog knows"
    if not known:
        searched = [w for w in verify_model(base, settings, progress=progress).super_weights if w.is_super]
        known = {weight.coordinate: _standing("verified", weight.effect) for weight in searched}
        critical = {weight.coordinate for weight in searched if weight.effect == "critical"}
        said = "a search just now found"
    if not known:
        raise ForwardError(f"{shown(base.model, 80)} has no super weight that is known, and a search finds none")
    chosen = sorted(critical or known, key=lambda coordinate: coordinate.sort_key)
    left = len(known) - len(chosen)
    note = f"Judged: {count_of(len(chosen), 'critical weight' if critical else 'weight')} that {said} of {base.model}"
    note += f"; nothing was run of {left} that {'is' if left == 1 else 'are'} not critical." if left else "."
    asking = replace(settings, weights=tuple(chosen))
    old, new = (verify_model(source, asking, progress=progress) for source in (base, tuned))
    return Verified({coordinate: known[coordinate] for coordinate in chosen}, note, old, new)


def _coordinate_of(known: KnownCoordinate) -> Coordinate:
    assert known.col is not None  # or it is a row
    return Coordinate(known.layer, known.expert, known.row, known.col, known.tower, known.mlp)


def _standing(standing: str, effect: str | None) -> str:
    return f"{standing}, {effect}" if effect else standing
