"""What a verification is asked for: prompts, texts, thresholds, where to run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path

from analyzer.base.errors import SourceError, shown
from analyzer.base.records import Coordinate, Unit
from analyzer.base.settings import check_device, check_dtype, is_text, require
from analyzer.forward.edits import UnitEdit, WeightEdit

PAPER_PROMPT = "Apple Inc. is a worldwide tech company."  # of arXiv 2411.07191
MAX_TEXT_BYTES = 10_000_000
MAX_PROMPTS = 1000


@dataclass(frozen=True)
class Thresholds:
    """What counts as what. Multiples are of the median |h| of the layer."""

    activation_ratio: float = 100.0
    """A super activation is at least this multiple."""
    persists: int = 2
    """It stays so for at least this many following blocks."""
    feature_positions: float = 0.5
    """A channel that large at more than this part of the positions is an outlier feature."""
    write_ratio: float = 100.0
    """A write changes the channel by at least this multiple."""
    share: float = 0.25
    """A weight with at least this part of a write's down-projection output is behind it."""
    collapse: float = 0.25
    """Zeroing collapses an activation if it takes at least this part of its magnitude away.

    The same as `share`: of a write that several weights share, each can take away no more than it brought.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            fits = isinstance(value, int | float) and 0 < value < math.inf
            require(fits, each.name, value, "a number larger than 0")
        require(isinstance(self.persists, int), "persists", self.persists, "a whole number of blocks")


DEFAULT_THRESHOLDS = Thresholds()


def evaluation_text() -> str:
    """Return the bundled text, some 1,900 tokens of prose written for this project."""
    return resources.files("analyzer.verify").joinpath("evaluation.txt").read_text("utf-8")


def read_text(path: Path) -> str:
    """Return a text file's content. Raises SourceError where it is not UTF-8 text of bearable length."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
            raise SourceError(f"{shown(path)} is not a text file of at most {MAX_TEXT_BYTES:,} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {shown(path)} as UTF-8 text: {shown(error)}") from error


def bundled_prompts() -> tuple[str, ...]:
    """Return the bundled prompts."""
    return _lines(resources.files("analyzer.verify").joinpath("prompts.txt").read_text("utf-8"))


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a file, one a line. Raises SourceError where it holds none, or too many."""
    prompts = _lines(read_text(path))
    if not prompts or len(prompts) > MAX_PROMPTS:
        raise SourceError(f"{shown(path)} has {len(prompts)} prompts: give 1 to {MAX_PROMPTS}, one a line")
    return prompts


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class VerifySettings:
    """What a verification is asked for.

    Losses are over `text`. `prompts` are what super activations are looked for in beside `prompt`; null stands for the
    bundled ones or, with `early_stop`, `weights` or `units`, for none. `early_stop` ends at the first super activation
    that has persisted, and leaves effects and ranks out. `weights`, and `units`, rows, columns and experts, are looked
    at in place of searching for any; those without a tower are of the one that is judged. With `more`, critical weights
    are also halved and zeroed two at a time, and their rows and columns judged as a whole. `tower` names the one that
    is judged, of a model that has several, null for the one that makes text. `device` is auto, cpu, cuda, cuda:N or
    mps, `dtype` auto, float32, bfloat16 or float16. Raises AnalyzerError for any other value.
    """

    prompt: str = PAPER_PROMPT
    text: str = field(default_factory=evaluation_text)
    prompts: tuple[str, ...] | None = None
    early_stop: bool = False
    weights: tuple[Coordinate, ...] = ()
    units: tuple[Unit, ...] = ()
    more: bool = False
    tower: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    thresholds: Thresholds = DEFAULT_THRESHOLDS

    def __post_init__(self) -> None:
        texts = isinstance(self.prompts, tuple | list) and all(map(is_text, self.prompts))
        require(is_text(self.prompt), "prompt", self.prompt, "text that UTF-8 can store")
        require(is_text(self.text), "text", self.text, "text that UTF-8 can store")
        require(self.prompts is None or texts, "prompts", self.prompts, "several texts, or None for the bundled ones")
        coordinates = isinstance(self.weights, tuple | list) and all(isinstance(c, Coordinate) for c in self.weights)
        require(coordinates, "weights", self.weights, "several Coordinates")
        units = isinstance(self.units, tuple | list) and all(isinstance(unit, Unit) for unit in self.units)
        require(units, "units", self.units, "several Units")
        require(
            not (self.is_asked and self.early_stop),
            "early_stop",
            True,
            "False where weights are asked for: it searches",
        )
        require(
            not (self.more and self.early_stop), "early_stop", True, "False where more is asked for: it runs no text"
        )
        require(self.tower is None or is_text(self.tower), "tower", self.tower, "the name of a tower, or None")
        for coordinate in self.weights:
            WeightEdit(coordinate)  # or it is refused
        for unit in self.units:
            UnitEdit(unit)  # the same
        check_device(self.device)
        check_dtype(self.dtype)
        require(isinstance(self.thresholds, Thresholds), "thresholds", self.thresholds, "Thresholds")

    @property
    def is_asked(self) -> bool:
        """Whether weights or units are asked for, and so none is searched for."""
        return bool(self.weights or self.units)
