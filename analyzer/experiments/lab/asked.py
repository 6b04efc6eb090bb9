"""What any experiment is asked for, and which weights it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import ForwardError, shown
from analyzer.base.progress import Progress
from analyzer.base.records import Coordinate
from analyzer.base.settings import check_device, check_dtype, require
from analyzer.base.text import short_commit
from analyzer.catalog.documents import increase_of, is_super
from analyzer.catalog.files import known_documents
from analyzer.catalog.lookup import known_of, lookup, weights_known_of
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
    tokens are run at most, null for all and for as many as are usual. `calibrate` is a file to calibrate on, null for
    the first half of the windows. Raises SettingsError for any other value.
    """

    weights: tuple[Coordinate, ...] = ()
    weights_of: str | None = None
    catalog: Path | None = None
    data: str = "wikitext2"
    prompts_data: str = "lambada"
    calibrate: str | None = None
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


def weights_asked(
    source: Source,
    settings: Settings,
    progress: Progress,
    *,
    most: int = MOST_WEIGHTS,
    static: bool = False,
) -> tuple[tuple[Coordinate, ...], str]:
    """Return the weights that an experiment is about, and a sentence on where they are from.

    Of those that nobody named they are `most`. Raises CatalogError where the catalog does not know a model that was
    named, ForwardError where a verification finds no super weight, or where one would be needed and nothing is to be
    run (`static`).
    """
    if settings.weights or settings.weights_of is not None:
        of: Sequence[Coordinate] = ()
        if settings.weights_of is not None:
            of = weights_known_of(settings.weights_of, folder=settings.catalog)
        more = f", and what the catalog knows of {shown(settings.weights_of, 80)}" if of else ""
        return tuple(dict.fromkeys((*settings.weights, *of))), f"named by the user{more}"
    documents = known_documents(settings.catalog)
    known = known_of(documents, source.model)
    if any(each.standing == "verified" for each in known):
        entries = [
            entry for _, entry in lookup(documents, source.model)[0] if any(map(is_super, entry["super_weights"]))
        ]
        entry = next((each for each in entries if each["commit"] == source.commit), entries[0])
        judged = [
            Judged(_coordinate_of(weight), weight["effect"], increase_of(weight) or 0.0)
            for weight in entry["super_weights"]
            if is_super(weight)
        ]
        return _foremost(judged, f"from the catalog, verified at {short_commit(entry['commit'])}", most)
    reported = [asdict(each) for each in known if each.standing == "reported" and each.col is not None]
    if reported:
        sources = Counter(_coordinate_of(each) for each in reported for _ in each["sources"])
        judged = [Judged(coordinate, None, 0.0) for coordinate, _ in sources.most_common()]
        return _foremost(judged, "from the catalog, as others report them", most)
    if static:
        raise ForwardError(
            f"{source.model}: the catalog knows no weight of it, and --static runs nothing to find one: name some with "
            "--weight"
        )
    wanted = VerifySettings(tower=settings.tower, device=settings.device, dtype=settings.dtype)
    found = [weight for weight in verify_model(source, wanted, progress=progress).super_weights if weight.is_super]
    if not found:
        raise ForwardError(f"{source.model}: a verification finds no super weight: name some with --weight")
    judged = [Judged(weight.coordinate, weight.effect, weight.delta or 0.0) for weight in found]
    return _foremost(judged, "found by a verification just now", most)


@dataclass(frozen=True)
class Judged:
    """A weight that is known: its effect, null where it was not measured, and what zeroing it adds to the loss."""

    coordinate: Coordinate
    effect: str | None
    rise: float


def _foremost(known: Sequence[Judged], said: str, most: int) -> tuple[tuple[Coordinate, ...], str]:
    """Return the critical ones, where there are such, else all; those that cost most, where they are many."""
    known = list({each.coordinate: each for each in known}.values())
    critical = [each for each in known if each.effect == "critical"]
    kept = sorted(critical or known, key=lambda each: -each.rise)[:most]
    if len(kept) < len(known):
        kind = " critical" if critical else ""
        first = "the costliest" if any(each.rise for each in known) else "those of most sources"
        said += f": {len(kept)}{kind} of {len(known)}, {first} first (--weight names any)"
    return tuple(each.coordinate for each in kept), said


def _coordinate_of(fields: Mapping[str, Any]) -> Coordinate:
    return Coordinate(**{name: fields.get(name) for name in Coordinate._fields})  # type: ignore[arg-type]
