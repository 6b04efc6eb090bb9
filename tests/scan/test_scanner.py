"""The scanner: ranks over layers and shards, exact bytes, what plain NumPy and transformers say of the same."""

import json
import math
import os
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from checkpoints import (
    DTYPES,
    LLAMA_DOWN,
    header_bytes,
    random_downs,
    tensor_ranges,
    write_config,
    write_gpt2,
    write_llama,
    write_tensors,
)
from rankings import by_layer, sort_all

from analyzer.base.errors import ArchitectureError, SourceError
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX
from analyzer.projections.down_projections import down_projections
from analyzer.projections.projection import down_projection_bytes, in_layers
from analyzer.scan.ranks import static_ranks
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class RecordingSource(FolderSource):
    """A folder that remembers what was read of it."""

    def __init__(self, path):
        super().__init__(path)
        self.asked = []

    def read(self, filename, start, stop):
        self.asked.append((filename, start, stop - 1))
        return super().read(filename, start, stop)


class FailingSource(FolderSource):
    """Fails the first read of the last tensor's data at once; the others' wait until it has."""

    def __init__(self, path, fails_at):
        super().__init__(path)
        self.readers, self.block_bytes = 2, 2
        self.fails_at, self.failed, self.reads_after = fails_at, threading.Event(), 0

    def read(self, filename, start, stop):
        if start == self.fails_at:
            self.failed.set()
            raise SourceError("broken")
        if stop - start == 2:  # a block
            assert self.failed.wait(30)
            self.reads_after += 1
            time.sleep(0.01)
        return super().read(filename, start, stop)


def test_a_failure_stops_the_tensors_before_it_too(tmp_path):
    write_llama(tmp_path, random_downs(layers=2))  # 160 weights each: 160 blocks to go when the other fails
    last = Checkpoint(FolderSource(tmp_path)).tensors["model.layers.1.mlp.down_proj.weight"].record.start
    source = FailingSource(tmp_path, last)
    checkpoint = Checkpoint(source)
    with pytest.raises(SourceError, match="broken"):
        scan(checkpoint, down_projections(checkpoint))
    assert source.reads_after < 20


def open_folder(folder):
    return Checkpoint(FolderSource(folder))


def scan_folder(folder, *, layers=None, top=20):
    checkpoint = open_folder(folder)
    projections = down_projections(checkpoint)
    return scan(checkpoint, projections if layers is None else in_layers("m", projections, layers), top=top)


def found(result):
    """Return where the outliers are and what they are, best first."""
    return [(o.layer, o.expert, o.row, o.col, o.value) for o in result.outliers]


@pytest.fixture
def tied_downs():
    """Down projections with the same largest magnitudes in several layers, rows and columns."""
    downs = random_downs(layers=12)
    for layer, row, col, value in [
        (11, 0, 0, 2),
        (2, 7, 19, -2),
        (2, 7, 3, 2),
        (2, 1, 19, -2),
        (10, 4, 4, 3),
        (0, 5, 5, 1),
    ]:
        downs[layer][row, col] = value
    return downs


@pytest.mark.parametrize("top", [1, 3, 5, 20, 12 * 8 * 20, 10_000])
@pytest.mark.parametrize("write", [write_llama, write_gpt2])
def test_the_ranking_is_the_whole_models(tmp_path, tied_downs, write, top):
    write(tmp_path, tied_downs)
    result = scan_folder(tmp_path, top=top)
    assert found(result) == sort_all(by_layer(tied_downs))[:top]
    assert [o.rank for o in result.outliers] == list(range(1, len(result.outliers) + 1))


def test_ties_are_in_order_of_their_coordinates(tmp_path, tied_downs):
    write_gpt2(tmp_path, tied_downs)  # stored by columns: the order of the file would be another
    assert [o.coordinate for o in scan_folder(tmp_path, top=6).outliers] == [
        Coordinate(10, None, 4, 4),
        Coordinate(2, None, 1, 19),
        Coordinate(2, None, 7, 3),
        Coordinate(2, None, 7, 19),
        Coordinate(11, None, 0, 0),
        Coordinate(0, None, 5, 5),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_statistics(tmp_path, dtype):
    downs = random_downs(dtype=dtype)
    downs[1][2, 3] = -7
    write_llama(tmp_path, downs)
    result = scan_folder(tmp_path)
    magnitudes = [np.abs(down.astype(np.float64)) for down in downs]
    for layer, (tensor, magnitude) in enumerate(zip(result.tensors, magnitudes, strict=True)):
        assert (tensor.name, tensor.layer, tensor.expert) == (LLAMA_DOWN.format(layer), layer, None)
        assert (tensor.shape, tensor.dtype, tensor.nonfinite) == ((8, 20), dtype, 0)
        assert tensor.mean_abs == pytest.approx(magnitude.mean(), rel=1e-12)
        assert tensor.std == pytest.approx(magnitude.std(), rel=1e-12)
        assert tensor.max_abs == magnitude.max()
    first = result.outliers[0]
    assert (first.coordinate, first.value, first.score) == (Coordinate(1, None, 2, 3), -7.0, 7.0)
    assert first.tensor == LLAMA_DOWN.format(1)
    for outlier in result.outliers:
        magnitude = magnitudes[outlier.layer]
        assert outlier.score == magnitude[outlier.row, outlier.col]
        assert outlier.zscore == pytest.approx((outlier.score - magnitude.mean()) / magnitude.std(), rel=1e-9)


def test_what_the_result_says_of_the_model(tmp_path):
    write_llama(tmp_path / "tiny", random_downs(), shards=2)
    result = scan_folder(tmp_path / "tiny")
    assert (result.model, result.revision, result.commit, result.model_type) == ("tiny", None, None, "llama")
    assert (result.num_layers, result.hidden_size, result.intermediate_size) == (3, 8, 20)
    assert result.score == "magnitude"
    assert result.checkpoint_bytes == sum(file.stat().st_size for file in (tmp_path / "tiny").glob("*.safetensors"))
    assert result.seconds > 0


@pytest.mark.parametrize("shards", [2, 4, 10])
def test_shards_change_nothing(tmp_path, tied_downs, shards):
    write_llama(tmp_path / "one", tied_downs)
    write_llama(tmp_path / "many", tied_downs, shards=shards)
    one, many = scan_folder(tmp_path / "one"), scan_folder(tmp_path / "many")
    assert many.outliers == one.outliers
    assert many.tensors == one.tensors


def test_threads_change_nothing(tmp_path, tied_downs):
    write_llama(tmp_path, tied_downs)
    results = []
    for readers in (1, 2, 8):
        checkpoint = open_folder(tmp_path)
        checkpoint.source.readers = readers
        results.append(scan(checkpoint, down_projections(checkpoint)))
    assert results[0].outliers == results[1].outliers == results[2].outliers
    assert results[0].tensors == results[1].tensors == results[2].tensors


def test_blocks_change_no_rank(tmp_path, tied_downs):
    write_gpt2(tmp_path, tied_downs)
    checkpoint = open_folder(tmp_path)
    checkpoint.source.block_bytes = 34  # 17 weights: rows and columns break across blocks
    projections = down_projections(checkpoint)
    assert found(scan(checkpoint, projections)) == sort_all(by_layer(tied_downs))[:20]
    wanted = Coordinate(2, None, 7, 19)
    assert static_ranks(checkpoint, projections, [wanted]) == {wanted: 4}


def test_experts(tmp_path):
    routed, shared, dense = random_downs(layers=3), random_downs(layers=1, seed=1), random_downs(layers=1, seed=2)
    name = "model.layers.1.mlp.{}.down_proj.weight"
    tensors = {name.format(f"experts.{expert}"): down for expert, down in enumerate(routed)}
    tensors |= {name.format("shared_expert"): shared[0], LLAMA_DOWN.format(0): dense[0]}
    for tensor in tensors.values():
        tensor[5, 6] = 1  # a tie: no expert before the first expert
    write_tensors(tmp_path, tensors)
    write_config(tmp_path, model_type="qwen2_moe", hidden_size=8)
    result = scan_folder(tmp_path)
    downs = {(1, expert): down for expert, down in enumerate(routed)} | {(1, None): shared[0], (0, None): dense[0]}
    assert found(result) == sort_all(downs)[:20]
    assert [(o.layer, o.expert) for o in result.outliers[:5]] == [(0, None), (1, None), (1, 0), (1, 1), (1, 2)]
    assert result.num_layers == 2


def test_sizes_that_differ_are_null(tmp_path):
    downs = random_downs(layers=2)
    downs[1] = downs[1][:, :10].copy()
    write_llama(tmp_path, downs)
    result = scan_folder(tmp_path)
    assert (result.hidden_size, result.intermediate_size) == (8, None)
    assert found(result) == sort_all(by_layer(downs))[:20]


def test_nonfinite_weights_are_counted_and_not_ranked(tmp_path):
    downs = random_downs(dtype="F16")
    downs[0][:] = math.nan
    downs[1][3, 4], downs[1][3, 5] = math.inf, -math.nan
    write_llama(tmp_path, downs)
    result = scan_folder(tmp_path, top=10_000)
    assert found(result) == sort_all(by_layer(downs))
    assert [t.nonfinite for t in result.tensors] == [160, 2, 0]
    assert math.isnan(result.tensors[0].max_abs)
    checkpoint = open_folder(tmp_path)
    ranks = static_ranks(checkpoint, down_projections(checkpoint), [o.coordinate for o in result.outliers])
    assert list(ranks.values()) == list(range(1, 3 * 160 - 162 + 1))


def test_layers_filter(tmp_path, tied_downs):
    write_llama(tmp_path, tied_downs)
    result = scan_folder(tmp_path, layers=[range(2, 4), range(10, 11)], top=5)
    kept = {(layer, None): tied_downs[layer] for layer in (2, 3, 10)}
    assert found(result) == sort_all(kept)[:5]
    assert [t.layer for t in result.tensors] == [2, 3, 10]
    less = scan_folder(tmp_path).bytes_read - result.bytes_read
    assert less == 9 * tied_downs[0].nbytes


@pytest.mark.parametrize("layers", [range(3, 4), range(2, 4), range(-1, 1)])
def test_layers_that_the_model_lacks(tmp_path, layers):
    write_llama(tmp_path, random_downs())
    with pytest.raises(ArchitectureError, match="its layers go from 0 to 2"):
        scan_folder(tmp_path, layers=[range(0, 1), layers])


def test_only_the_down_projections_are_read(tmp_path):
    write_llama(tmp_path, random_downs(), shards=2)
    source = RecordingSource(tmp_path)
    checkpoint = Checkpoint(source)
    projections = down_projections(checkpoint)
    result = scan(checkpoint, projections)
    expected = [(name, 0, (tmp_path / name).stat().st_size - 1) for name in (INDEX, "config.json")]
    for shard in sorted(tmp_path.glob("*.safetensors")):
        expected += [(shard.name, 0, 7), (shard.name, 8, header_bytes(shard) - 1)]
        expected += [(shard.name, *ends) for name, ends in tensor_ranges(shard).items() if "down_proj" in name]
    assert sorted(source.asked) == sorted(expected)
    assert result.bytes_read == sum(last - first + 1 for _, first, last in expected)
    assert down_projection_bytes(projections) == 3 * 8 * 20 * 2


@pytest.mark.slow
def test_50_000_tensors(tmp_path):
    """A header of 6 MB, each tensor with a read of its own."""
    header = {}
    for number in range(50_000):
        kind = "down" if number % 40 == 0 else "gate"
        name = f"model.layers.{number // 400}.mlp.experts.{number % 400}.{kind}_proj.weight"
        header[name] = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8 * number, 8 * number + 8]}
    encoded = json.dumps(header).encode()
    weights = np.ones((50_000, 4), DTYPES["BF16"])
    weights[49_960, 2] = -3  # of layer 124, expert 360
    (tmp_path / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + weights.tobytes())
    write_config(tmp_path, model_type="qwen3_moe", hidden_size=2)
    result = scan_folder(tmp_path, top=2)
    assert found(result) == [(124, 360, 1, 0, -3.0), (0, 0, 0, 0, 1.0)]
    assert len(result.tensors) == 1250


def test_progress_adds_up(tmp_path):
    write_llama(tmp_path, random_downs())
    checkpoint = open_folder(tmp_path)
    checkpoint.source.block_bytes = 100
    projections = down_projections(checkpoint)
    steps = []
    scan(checkpoint, projections, progress=steps.append)
    assert sum(steps) == down_projection_bytes(projections)


def test_one_failure_stops_the_others(tmp_path):
    name = LLAMA_DOWN.format
    write_tensors(tmp_path, {name(0): np.ones((8, 4), np.float32), name(1): np.ones((200, 500), np.float32)}, shards=2)
    write_config(tmp_path)
    source = RecordingSource(tmp_path)
    source.readers, source.block_bytes = 2, 4  # so that the second tensor takes 100,000 reads
    checkpoint = Checkpoint(source)
    broken = tmp_path / checkpoint.tensors[name(0)].filename
    os.truncate(broken, broken.stat().st_size - 1)
    with pytest.raises(SourceError, match="changed while it was read"):
        scan(checkpoint, down_projections(checkpoint))
    assert len(source.asked) < 50_000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_memory_does_not_grow_with_the_tensor(tmp_path):
    # All equal is the worst for the ranking: every weight ties. A sparse file, so that the disk does not matter.
    rows, cols = 4096, 8192
    header = json.dumps(
        {LLAMA_DOWN.format(0): {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [0, 2 * rows * cols]}}
    ).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * rows * cols)
    write_config(tmp_path, model_type="llama")
    checkpoint = open_folder(tmp_path)
    checkpoint.source.readers = 2
    projections = down_projections(checkpoint)
    tracemalloc.start()
    result = scan(checkpoint, projections)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found(result) == [(0, None, 0, col, 0.0) for col in range(20)]
    assert {o.zscore for o in result.outliers} == {0.0}
    assert peak < 40 << 20  # of a tensor of 64 MiB


def test_scanning_imports_no_torch(tmp_path):
    write_llama(tmp_path, random_downs())
    program = (
        "import sys\n"
        "from analyzer.analyze.scanning import scan_model; from analyzer.source.opening import open_model\n"
        "scan_model(open_model(sys.argv[1]))\n"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub', 'accelerate'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Models that transformers itself wrote
