"""The score `gain`: how much a down projection's weight can amplify, told from the weights around it.

For a gated MLP it is |W_down[r, c]| * ||W_gate[c, :]|| * ||W_up[c, :]||, divided by the median over rows r of the root
of the sum over c of the squares. A norm before the MLP multiplies the columns of gate and up by its weight, one after
it the row by its own. An MLP without a gate has the one input projection. No data and no forward pass are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from analyzer.base.config import is_gguf, model_types
from analyzer.base.errors import ArchitectureError, shown
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.reading import UseTile
from analyzer.encodings.finding import find_matrices
from analyzer.numbers.encoding import NUMPY_DTYPES, Tile
from analyzer.numbers.floats import FORMATS, Float64, Int64, Unsigned
from analyzer.numbers.matrices import Matrix, Part, turned
from analyzer.numbers.module import StoredTensors
from analyzer.projections.projection import DownProjection
from analyzer.scan.outliers import Magnitudes, TensorSummary, TopK
from analyzer.source.streaming import Want

# Of the norms in a block, that on the way into the MLP: the first that is there. Without any, there is none.
NORMS_BEFORE = (
    "pre_feedforward_layernorm", "ffn_norm", "pre_mlp_layernorm", "pre_ff_layernorm", "ln_mlp", "mlp_norm", "ff_norm",
    "norm_2", "norm2", "ln_2", "ln2", "layernorm_after", "layer_norm2", "post_attention_layernorm", "final_layer_norm",
    "sa_layer_norm", "attention.output.LayerNorm", "input_layernorm", "ln_1",
    "post_attention_norm", "attn_output_norm", "attn_norm",
)  # fmt: skip
NORMS_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffw_norm")
# Their norms multiply by 1 + weight; in GGUF files the 1 has been added.
ONE_PLUS_WEIGHT = frozenset({
    "gemma", "gemma2", "gemma3", "gemma3_text", "paligemma", "recurrent_gemma", "vaultgemma", "t5gemma", "nemotron",
    "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
})  # fmt: skip
INTERLEAVED = frozenset({"gpt_oss"})  # gate and up take turns in one matrix; elsewhere one follows the other


@dataclass(frozen=True)
class Surroundings:
    """What the gain of one down projection depends on beside itself."""

    inputs: tuple[Matrix, ...]
    norm_before: Part | None
    norm_after: Part | None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that the checkpoint stores of it."""
        norms = [norm for norm in (self.norm_before, self.norm_after) if norm is not None]
        return (*(part for matrix in self.inputs for part in matrix.parts), *norms)


class GainScan:
    """Ranks the weights of down projections by their gain."""

    def __init__(self, checkpoint: Checkpoint, projections: Sequence[DownProjection]) -> None:
        """Find what is around each; raises ArchitectureError where that cannot be told."""
        self._checkpoint = checkpoint
        self._shapes = checkpoint.shapes
        self._stored = StoredTensors(checkpoint.source.model, self._shapes, checkpoint.config, checkpoint.read_tensors)
        types = model_types(checkpoint.config)
        self._one_plus = bool(types & ONE_PLUS_WEIGHT) and not is_gguf(checkpoint.config)
        self._interleaved = bool(types & INTERLEAVED)
        found: dict[str, list[Matrix] | None] = {}
        self._around = {p.place: self._find(p, found) for p in projections}

    def parts(self, projection: DownProjection) -> tuple[Part, ...]:
        """Return all of the checkpoint that a projection's gains depend on."""
        return (*projection.matrix.parts, *self._around[projection.place].parts)

    def wants(
        self,
        projection: DownProjection,
        top: int,
        finish: Callable[[TensorSummary], None],
        progress: Callable[[int], object],
        watch: UseTile | None = None,
    ) -> Iterator[Want]:
        """Yield the wishes to read what is around a projection, then itself; `finish` gets the summary.

        `watch` is handed every tile of the projection too.
        """
        around, checkpoint, matrix = self._around[projection.place], self._checkpoint, projection.matrix
        rows, cols = matrix.shape
        offset = 1.0 if self._one_plus and projection.tower in (None, "language") else 0.0
        norms = {"before": np.ones(rows), "after": np.ones(rows)}
        ready: list[threading.Event] = []
        for which, part in (("before", around.norm_before), ("after", around.norm_after)):
            if part is None:
                continue
            event = threading.Event()

            def take_norm(weight: np.ndarray, which: str = which, event: threading.Event = event) -> None:
                norms[which] = np.abs(weight.astype(np.float64) + offset)
                event.set()

            ready.append(event)
            yield checkpoint.read_part(part, take_norm)

        lengths: list[SquaredLengths] = []
        for source in around.inputs:
            length = SquaredLengths(source)
            lengths.append(length)
            measured = threading.Event()

            def measure(number: int, tile: Tile, bits: Unsigned, length=length) -> None:  # type: ignore[no-untyped-def]
                weights = np.abs(length.matrix.encoding.decoded.decode(bits))
                length.add(number, tile, _times(length.matrix, tile, weights, 1, norms["before"]))

            yield from checkpoint.read_matrix(source, measure, done=measured.set, progress=progress, after=tuple(ready))
            ready.append(measured)

        ranking = _Gains(matrix, top)

        def rank(number: int, tile: Tile, bits: Unsigned) -> None:
            ranking.add(number, tile, bits, self._column_gains(lengths, cols), norms["after"])
            if watch:
                watch(number, tile, bits)

        def done() -> None:
            finish(ranking.summary())

        yield from checkpoint.read_matrix(matrix, rank, done=done, progress=progress, after=tuple(ready))

    def _column_gains(self, lengths: Sequence[SquaredLengths], cols: int) -> Float64:
        """Return what the MLP's input projections can make of each inner channel, [cols]."""
        norms = [np.sqrt(length.total) for length in lengths]
        if len(norms) == 1 and norms[0].size == 2 * cols:
            fused = norms[0]
            norms = [fused[::2], fused[1::2]] if self._interleaved else [fused[:cols], fused[cols:]]
        gains: Float64 = reduce(np.multiply, norms)
        return gains

    def _find(self, projection: DownProjection, found: dict[str, list[Matrix] | None]) -> Surroundings:
        for module in projection.inputs:
            if module not in found:
                found[module] = find_matrices(self._stored, module)
        matrices = [found[module] for module in projection.inputs]
        if matrices and all(each is not None for each in matrices):
            inputs = tuple(self._input(projection, each) for each in matrices if each is not None)
            before, after = self._norms(projection)
            return Surroundings(inputs, before, after)
        raise ArchitectureError(
            f"{self._checkpoint.source.model}: what goes into {shown(projection.module)} has no name that this version "
            "knows: use --score magnitude"
        )

    def _input(self, projection: DownProjection, matrices: list[Matrix]) -> Matrix:
        """Return an input projection's matrix with the MLP's inner channels as rows."""
        down = projection.matrix
        matrix = matrices[projection.expert or 0] if len(matrices) > 1 else matrices[0]
        if matrix.transposed != down.transposed and matrix.encoding.expand == (1, 1):
            matrix = turned(matrix)
        rows, cols = down.shape
        if matrix.shape not in ((cols, rows), (2 * cols, rows)):
            raise ArchitectureError(
                f"{self._checkpoint.source.model}: {shown(matrix.data.tensor)} of shape {list(matrix.shape)} does not "
                f"fit {shown(projection.name)} of shape {list(down.shape)}"
            )
        return matrix

    def _norms(self, projection: DownProjection) -> tuple[Part | None, Part | None]:
        """Return the norms before and after an MLP, as far as its block has them."""
        block = projection.block
        after = self._first_norm(projection, [f"{block}.{name}" for name in NORMS_AFTER])
        names = [f"{block}.{name}" for name in NORMS_BEFORE]
        if after is not None and not any(f"{name}.weight" in self._shapes for name in names[:2]):
            return None, after  # such blocks (OLMo 2) have norms only after what they do
        beside = projection.module.rsplit(".", 2)[0] + ".layer_norm"  # t5
        return self._first_norm(projection, [beside, *names]), after

    def _first_norm(self, projection: DownProjection, names: Sequence[str]) -> Part | None:
        rows = projection.shape[0]
        for name in (f"{name}.weight" for name in names):
            dtype, shape = self._shapes.get(name, ("", ()))
            if dtype in FORMATS and shape == (rows,):
                return Part(name, dtype, shape, 0, rows * NUMPY_DTYPES[dtype].itemsize)
        return None


class SquaredLengths:
    """Sums the squares of each of a matrix's rows from its tiles, always in the same order.

    Where a row's weights are spread over tiles, the order of the additions would otherwise show in the last digits.
    """

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self.total: Float64 = np.zeros(matrix.shape[0])
        self._waiting: dict[int, tuple[slice | Int64, Float64]] = {}
        self._next = 0
        self._adding = threading.Lock()

    def add(self, number: int, tile: Tile, magnitudes: Float64) -> None:
        """Add the squares of a tile's magnitudes, [lines, places along them]; they are overwritten."""
        lines, places = self.matrix.axes(tile)
        np.multiply(magnitudes, magnitudes, out=magnitudes)
        sums = magnitudes.sum(axis=0 if self.matrix.transposed else 1)
        with self._adding:
            self._waiting[number] = (places if self.matrix.transposed else lines, sums)
            while self._next in self._waiting:
                where, ready = self._waiting.pop(self._next)
                self.total[where] += ready
                self._next += 1


class _Gains:
    """Ranks one down projection's weights by gain, from its tiles in any order."""

    def __init__(self, matrix: Matrix, top: int) -> None:
        self._matrix = matrix
        self._statistics = Magnitudes(matrix.encoding.decoded, 1)
        self._ranking = TopK(top)
        self._rows = SquaredLengths(matrix)

    def add(self, number: int, tile: Tile, bits: Unsigned, column_gains: Float64, row_gains: Float64) -> None:
        flat = bits.ravel()
        self._statistics.add(flat, lambda indices: self._matrix.row_major(tile, indices))
        values = self._matrix.encoding.decoded.decode(bits)
        gains = _times(self._matrix, tile, np.abs(values), 1, column_gains)
        gains = _times(self._matrix, tile, gains, 0, row_gains)
        self._ranking.offer(
            gains.ravel(), flat, lambda indices: self._matrix.row_major(tile, indices), ~np.isfinite(values.ravel())
        )
        self._rows.add(number, tile, gains)

    def summary(self) -> TensorSummary:
        statistics, ranking = self._statistics.summary(), self._ranking
        typical = float(np.median(np.sqrt(self._rows.total)))
        return TensorSummary(
            statistics.mean_abs,
            statistics.std,
            statistics.max_abs,
            statistics.nonfinite,
            ranking.places,
            self._matrix.encoding.decoded.decode(ranking.bits.astype(self._matrix.encoding.decoded.bits)),
            ranking.scores / typical if typical > 0 else np.zeros(ranking.scores.size),
        )


def _times(matrix: Matrix, tile: Tile, magnitudes: Float64, axis: int, factors: Float64) -> Float64:
    """Multiply a tile's magnitudes, in place, by a factor for each row (axis 0) or col (axis 1) of its matrix.

    What is not finite becomes 0: it has no gain that could be compared.
    """
    lines, places = matrix.axes(tile)
    with np.errstate(invalid="ignore", over="ignore"):
        if matrix.transposed == (axis == 0):
            magnitudes *= factors[None, places]
        else:
            magnitudes *= factors[lines, None]
        if not np.isfinite(magnitudes.sum()):
            magnitudes[~np.isfinite(magnitudes)] = 0.0
    return magnitudes
