"""What a scan returns; the field names are the JSON contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analyzer.base.records import Coordinate, Place, Unread
from analyzer.base.settings import SCORES, is_text, require


@dataclass(frozen=True)
class ScanSettings:
    """What a scan is asked for.

    `score` is "magnitude" or "gain"; the `top` best weights of the model are kept. `layers` null stands for all.
    `pattern` names the tensors taken for down projections, in the shell's way. `use_cache` keeps the result of each
    tensor of the Hub, and uses what is kept. Raises AnalyzerError for any other value.
    """

    score: str = "magnitude"
    top: int = 20
    layers: tuple[range, ...] | None = None
    pattern: str | None = None
    use_cache: bool = True

    def __post_init__(self) -> None:
        require(self.score in SCORES, "score", self.score, " or ".join(SCORES))
        require(isinstance(self.top, int) and self.top > 0, "top", self.top, "a whole number of 1 or more")
        ranges = isinstance(self.layers, tuple | list) and all(isinstance(each, range) for each in self.layers)
        require(self.layers is None or (ranges and bool(self.layers)), "layers", self.layers, "ranges, or None for all")
        require(self.pattern is None or is_text(self.pattern), "pattern", self.pattern, "text, or None")


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Statistics of |W| over the finite weights of one down projection; `std` is the population's.

    `mlp` is null where the block has one MLP, `layers` where one block uses the matrix, `writes` ("latent") where its
    rows are channels of the residual stream. `shape` is (rows, cols) whichever way round the file stores it, `dtype`
    the name of what it stores: a safetensors dtype, or an encoding such as MXFP4. The figures are NaN (JSON null)
    where no weight is finite.
    """

    name: str
    tower: str | None
    layer: int
    mlp: int | None
    layers: tuple[int, ...] | None
    expert: int | None
    shape: tuple[int, int]
    writes: str | None
    dtype: str
    mean_abs: float
    std: float
    max_abs: float
    nonfinite: int

    @property
    def place(self) -> Place:
        """Where it is: see Coordinate.place."""
        return Coordinate(self.layer, self.expert, 0, 0, self.tower, self.mlp).place


@dataclass(frozen=True, slots=True)
class Outlier:
    """A weight that ranks high by `score`, |W| or its gain; `zscore` is (|W| - mean|W|) / std|W| over its tensor."""

    rank: int
    tower: str | None
    layer: int
    mlp: int | None
    layers: tuple[int, ...] | None
    expert: int | None
    row: int
    col: int
    value: float
    score: float
    zscore: float
    tensor: str
    writes: str | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)


@dataclass(frozen=True)
class ScanResult:
    """What `scan` prints.

    `model` is its name, `revision` the one that was asked for, `commit` the Hub's, null for other folders;
    `model_type` is config.json's. `num_layers` counts the blocks, also those that `layers` leaves out, but not those of
    `mtp`. `hidden_size` is how many rows (output channels) the scanned down projections have, `intermediate_size` how
    many columns, each null where they do not agree on one.

    `score` is what the outliers rank by. `bytes_read` is what was read of the model, headers included, and less where
    results were kept; `checkpoint_bytes` is what its weight files have in all. `seconds` is how long the scan
    took. `experts` is the largest number of experts in a layer, null without any; `towers` are named where there are
    several; `encodings` counts matrices by how they are stored. `unread` is what looks like a down projection and was
    not read, empty where the model is whole; `notes` say what else one should know. `tensors` has the statistics of
    each down projection, `outliers` the weights that rank highest, the best first.
    """

    model: str
    revision: str | None
    commit: str | None
    model_type: str | None
    num_layers: int
    hidden_size: int | None
    intermediate_size: int | None
    score: str
    bytes_read: int
    checkpoint_bytes: int
    seconds: float
    experts: int | None
    towers: tuple[str, ...]
    encodings: Mapping[str, int]
    unread: tuple[Unread, ...]
    notes: tuple[str, ...]
    tensors: tuple[TensorStatistics, ...]
    outliers: tuple[Outlier, ...]
