"""What any experiment is asked for, and which weights it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import ForwardError, shown
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate
from analyzer.base.settings import check_device, check_dtype, require
from analyzer.base.text import count_of, short_commit
from analyzer.catalog.files import known_documents
from analyzer.catalog.lookup import KnownCoordinate, known_of, weights_known_of
from analyzer.verify.settings import VerifySettings

if TYPE_CHECKING:
    from analyzer.source.source import Source

MOST_WEIGHTS = 4  # of those that nobody named: each costs several passes over the text


@dataclass(frozen=True)
class Settings:
    """What any experiment is asked for.

    `weights` and those that the catalog knows of the model `weights_of` are what it is about, without any those that
    the catalog (`catalog`, a folder, or null for the usual ones) knows of this model, or that a verification finds.
    `data` is wikitext2, c4 or the name of a file, `prompts_data` lambada or one; `windows` is how many of `length`
    tokens are run at most, null for all and for as many as are usual. Raises SettingsError for any other value.
    """

    weights: tuple[Coordinate, ...] = ()
    weights_of: str | None = None
    catalog: Path | None = None
    data: str = "wikitext2"
    prompts_data: str = "lambada"
    windows: int | None = None
    length: int | None = None
    limit: int = 500
    bos: bool = False
    seed: int = 0
    tower: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        check_dtype(self.dtype)
        for name, least in (("windows", 1), ("length", 2), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            fits = (isinstance(value, int) and value >= least) or (value is None and name in ("windows", "length"))
            require(fits, name, value, f"a whole number from {least}")


def weights_asked(source: Source, settings: Settings, progress: Progress) -> tuple[tuple[Coordinate, ...], str]:
    """Return the weights that an experiment is about, and a sentence on where they are from.

    Raises CatalogError where the catalog does not know a model that was named, ForwardError where a verification
    finds no super weight.
    """
    if settings.weights or settings.weights_of is not None:
        known: Sequence[Coordinate] = ()
        if settings.weights_of is not None:
            known = weights_known_of(settings.weights_of, folder=settings.catalog)
        of = f", and what the catalog knows of {shown(settings.weights_of, 80)}" if known else ""
        return tuple(dict.fromkeys((*settings.weights, *known))), f"named by the user{of}"
    documents = known_documents(settings.catalog)
    for wanted, said in (("verified", "verified"), ("reported", "as others report them")):
        found = [each for each in known_of(documents, source.model) if each.standing == wanted and each.col is not None]
        if found:
            at = f" at {short_commit(commit)}" if (commit := found[0].commit) else ""
            same = [each for each in found if each.commit == found[0].commit]
            effects = {_coordinate_of(each): each.effect for each in same}
            return _foremost(effects, f"from the catalog, {said}{at}")
    settings_here = VerifySettings(tower=settings.tower, device=settings.device, dtype=settings.dtype)
    verified = verify_model(source, settings_here, progress=progress)
    effects = {weight.coordinate: weight.effect for weight in verified.super_weights if weight.is_super}
    if not effects:
        raise ForwardError(f"{source.model}: a verification finds no super weight: name some with --weight")
    return _foremost(effects, "found by a verification just now")


def _foremost(effects: Mapping[Coordinate, str | None], said: str) -> tuple[tuple[Coordinate, ...], str]:
    """Return the critical ones, where there are such, else all; the first of them, where they are many."""
    critical = [coordinate for coordinate, effect in effects.items() if effect == "critical"]
    kept = (critical or list(effects))[:MOST_WEIGHTS]
    left = len(effects) - len(kept)
    critical_ones = " critical" if critical else ""
    more = f"; {count_of(left, 'further one')} left out (--weight names any)" if left else ""
    return tuple(kept), f"{said}: the first {len(kept)}{critical_ones} of {len(effects)}{more}" if left else said


def _coordinate_of(known: KnownCoordinate) -> Coordinate:
    assert known.col is not None
    return Coordinate(known.layer, known.expert, known.row, known.col, known.tower, known.mlp)
