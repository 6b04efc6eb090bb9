"""What a scan returns; the field names are the JSON contract."""

from __future__ import annotations

from dataclasses import dataclass

from analyzer.base.records import Coordinate


@dataclass(frozen=True)
class ScanSettings:
    """What a scan is asked for.

    `score` is "magnitude" or "gain"; the `top` best weights of the model are kept. `layers` null stands for all.
    `pattern` names the tensors taken for down projections, in the shell's way. `use_cache` keeps the result of each
    tensor of the Hub, and uses what is kept.
    """

    score: str = "magnitude"
    top: int = 20
    layers: tuple[range, ...] | None = None
    pattern: str | None = None
    use_cache: bool = True


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Statistics of |W| over the finite weights of one down projection; `std` is the population's.

    `shape` is (rows, cols) whichever way round the file stores it, `dtype` the name of what it stores: a
    safetensors dtype, or an encoding such as MXFP4. The figures are NaN (JSON null) where no
    weight is finite.
    """

    name: str
    tower: str | None
    layer: int
    expert: int | None
    shape: tuple[int, int]
    dtype: str
    mean_abs: float
    std: float
    max_abs: float
    nonfinite: int


@dataclass(frozen=True, slots=True)
class Outlier:
    """A weight that ranks high by `score`, |W| or its gain; `zscore` is (|W| - mean|W|) / std|W| over its tensor."""

    rank: int
    tower: str | None
    layer: int
    expert: int | None
    row: int
    col: int
    value: float
    score: float
    zscore: float
    tensor: str

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower)


@dataclass(frozen=True)
class ScanResult:
    """What `scan` prints. Sizes are null where the scanned tensors do not agree on one."""

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
    tensors: tuple[TensorStatistics, ...]
    outliers: tuple[Outlier, ...]
