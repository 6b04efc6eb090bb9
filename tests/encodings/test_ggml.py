"""Down projections of GGUF files rank by the values that the gguf library makes of the whole tensor."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from gguf_files import open_gguf, random_blocks, values_of, write_gguf, write_llama_gguf
from quantized import Model, check_coordinates, found
from rankings import magnitudes, ranking

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Coordinate, Unread
from analyzer.encodings.ggml import GGML, ggml_type
from analyzer.projections.down_projections import find_projections
from analyzer.projections.weights import read_row, read_weights
from analyzer.scan.scanner import scan

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

KINDS = (
    "F64", "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
    "NVFP4",
)  # fmt: skip


def check(path, downs, dtype, *, block_bytes=None):
    """Compare a scan of a file with the down projections that it holds, and return it."""
    checkpoint, projections = open_gguf(path)
    if block_bytes is not None:
        checkpoint.source.block_bytes = block_bytes
    result = scan(checkpoint, projections, top=50)
    best = ranking(downs, 50)
    assert found(result) == best
    for tensor in result.tensors:
        down = downs[tensor.layer, tensor.expert]
        finite = np.abs(down[np.isfinite(down)].astype(np.float64))
        assert (tensor.shape, tensor.dtype, tensor.nonfinite) == (down.shape, dtype, down.size - finite.size)
        assert tensor.mean_abs == pytest.approx(finite.mean(), rel=1e-6)
        assert tensor.max_abs == finite.max()
    check_coordinates(checkpoint, projections, Model({}, None, downs, set(), dtype), best)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_as_the_library_decodes_it(tmp_path, kind):
    downs = write_llama_gguf(tmp_path / "x.gguf", kind, rows=40, cols=1024)
    result = check(tmp_path / "x.gguf", downs, kind)
    assert [(t.layer, t.expert) for t in result.tensors] == [(0, None), (1, None)]
    assert (result.model_type, result.hidden_size, result.intermediate_size) == ("llama", 40, 1024)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K", "MXFP4"])
def test_fused_experts(tmp_path, kind):
    downs = write_llama_gguf(tmp_path / "x.gguf", kind, rows=24, cols=512, experts=5)
    result = check(tmp_path / "x.gguf", downs, kind)
    assert [(t.layer, t.expert) for t in result.tensors] == [(layer, e) for layer in (0, 1) for e in range(5)]


@pytest.mark.parametrize("block_bytes", [1000, 30_000, 1 << 20])
@pytest.mark.parametrize(("kind", "cols"), [("Q4_0", 288_032), ("Q6_K", 1 << 18), ("Q5_1", 4096)])
def test_tiles_and_blocks_of_any_size(tmp_path, kind, cols, block_bytes):
    """A line longer than a tile, one as long, and many lines a tile."""
    downs = write_llama_gguf(tmp_path / "x.gguf", kind, layers=1, rows=6 if cols > 5000 else 100, cols=cols)
    check(tmp_path / "x.gguf", downs, kind, block_bytes=block_bytes)


def test_rows_on_their_own(tmp_path):
    downs = write_llama_gguf(tmp_path / "x.gguf", "Q3_K", rows=8)
    checkpoint, projections = open_gguf(tmp_path / "x.gguf")
    for row in (0, 3, 7):
        np.testing.assert_array_equal(read_row(checkpoint, projections[1], row), downs[1, None][row])


def test_blocks_by_hand(tmp_path):
    """Q4_1: 32 numbers of 4 bits, the low halves first, times a scale and plus a minimum (ggml's block_q4_1)."""
    block = struct.pack("<ee", 0.5, -3.0) + bytes(n | (15 - n) << 4 for n in range(16))
    data = np.frombuffer(block, np.uint8).reshape(1, 20)
    write_gguf(tmp_path / "x.gguf", {"blk.0.ffn_down.weight": ("Q4_1", data)})
    checkpoint, projections = open_gguf(tmp_path / "x.gguf")
    coordinates = [Coordinate(0, None, 0, col) for col in range(32)]
    numbers = [*range(16), *range(15, -1, -1)]
    assert list(read_weights(checkpoint, projections, coordinates).values()) == [0.5 * n - 3 for n in numbers]


def test_a_planted_weight_ranks_first(tmp_path):
    weights = np.random.default_rng(0).normal(0, 0.02, (3, 64, 512)).astype(np.float32)
    weights[1, 5, 300] = -4.0
    from gguf import GGMLQuantizationType, quants

    data = quants.quantize(weights, GGMLQuantizationType.Q8_0)
    tensors = {f"blk.{layer}.ffn_down.weight": ("Q8_0", data[layer]) for layer in range(3)}
    write_gguf(tmp_path / "x.gguf", tensors, metadata={"llama.embedding_length": 64})
    best = scan(*open_gguf(tmp_path / "x.gguf")).outliers[0]
    assert (best.layer, best.row, best.col) == (1, 5, 300)
    assert best.value == pytest.approx(-4.0, rel=0.01)


@pytest.mark.parametrize("kind", ["TQ2_0", "F16"])
def test_a_factor_beside_a_tensor(tmp_path, kind):
    """As of BitNet: what is stored is ternary."""
    data = random_blocks(kind, 40, 512)
    factor = np.array([0.0123], np.float32)
    name = "blk.0.ffn_down"
    write_gguf(tmp_path / "x.gguf", {f"{name}.weight": (kind, data), f"{name}.scale": ("F32", factor.view(np.uint8))})
    check(tmp_path / "x.gguf", {(0, None): values_of(kind, data).astype(np.float32) * factor}, kind)


def test_a_factor_for_each_expert(tmp_path):
    data = random_blocks("NVFP4", 3, 40, 512)
    factors = np.array([1, 0.5, 3], np.float32)
    name = "blk.4.ffn_down_exps"
    write_gguf(
        tmp_path / "x.gguf", {f"{name}.weight": ("NVFP4", data), f"{name}.scale": ("F32", factors.view(np.uint8))}
    )
    values = values_of("NVFP4", data).reshape(3, 40, 512) * factors[:, None, None]
    check(tmp_path / "x.gguf", {(4, expert): values[expert] for expert in range(3)}, "NVFP4")


def test_a_factor_that_does_not_fit(tmp_path):
    name = "blk.0.ffn_down"
    tensors = {
        f"{name}.weight": ("Q8_0", random_blocks("Q8_0", 4, 64)),
        f"{name}.scale": ("F32", random_blocks("F32", 4)),
    }
    write_gguf(tmp_path / "x.gguf", tensors)
    with pytest.raises(ArchitectureError, match=r"ffn_down.scale is F32 of shape \[4\]; expected F32 of shape \[1\]"):
        open_gguf(tmp_path / "x.gguf")


def retype(path, old, new):
    """Change the type of a file's only tensor of 4 x 256 numbers."""
    file = path.read_bytes()
    kinds = [struct.pack("<QQI", 256, 4, kind) for kind in (old, new)]
    assert file.count(kinds[0]) == 1
    path.write_bytes(file.replace(*kinds))


@pytest.mark.parametrize(
    ("number", "dtype"), [(15, "GGML_Q8_K"), (41, "GGML_Q1_0"), (31, "GGML_31"), (4711, "GGML_4711")]
)
@pytest.mark.parametrize("name", ["output.weight", "blk.0.ffn_down.weight"])
def test_types_that_the_library_does_not_decode(tmp_path, name, number, dtype):
    """They are left out by name among down projections, and in the way of nothing elsewhere."""
    path = tmp_path / "x.gguf"
    downs = {f"blk.{layer}.ffn_down.weight": ("Q6_K", random_blocks("Q6_K", 8, 256)) for layer in (1, 2)}
    write_gguf(path, {**downs, name: ("F32", random_blocks("F32", 4, 256))})
    retype(path, 0, number)
    if name == "output.weight":
        checkpoint, _ = open_gguf(path)
        assert checkpoint.shapes[name] == (dtype, (4, 256))
    checkpoint, projections = open_gguf(path)
    assert [p.layer for p in projections] == [1, 2]
    unread = [] if name == "output.weight" else [Unread("blk.*.ffn_down", 1, None, f"stored by {dtype}")]
    assert [*find_projections(checkpoint).unread] == unread


def test_a_type_of_all_layers_that_the_library_does_not_decode(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, {"blk.0.ffn_down.weight": ("F32", random_blocks("F32", 4, 256))})
    retype(path, 0, 4711)
    with pytest.raises(ArchitectureError) as caught:
        open_gguf(path)
    assert "ffn_down.weight is stored as GGML_4711, which the gguf library cannot decode: use the" in str(caught.value)


def test_the_types_of_the_library():
    assert ggml_type(12) == ("GGML_Q4_K", GGML("Q4_K", 256, 144))
    assert ggml_type(0) == ("F32", GGML("F32", 1, 4))
    assert ggml_type(4711) == ("GGML_4711", None)


@pytest.mark.parametrize("architecture", ["llama4", "gpt2", "gpt-oss"])
def test_a_file_says_which_way_round_its_matrices_lie(tmp_path, architecture):
    """Whatever safetensors of that architecture do."""
    metadata = {f"{architecture}.embedding_length": 32}
    for name, shape in {"ffn_down": (32, 32), "ffn_down_exps": (2, 32, 64)}.items():
        data = random_blocks("F16", *shape)
        write_gguf(
            tmp_path / "x.gguf", {f"blk.0.{name}.weight": ("F16", data)}, architecture=architecture, metadata=metadata
        )
        values = values_of("F16", data)
        downs = {(0, None): values} if len(shape) == 2 else {(0, e): values[e] for e in range(2)}
        check(tmp_path / "x.gguf", downs, "F16")


def test_names_swapped_by_older_converters_are_refused(tmp_path):
    """Of vision towers some have up and down the other way round."""
    tensors = {"v.blk.0.ffn_down.weight": ("F16", random_blocks("F16", 128, 32))}
    write_gguf(tmp_path / "x.gguf", tensors, architecture="clip", metadata={"clip.vision.embedding_length": 32})
    with pytest.raises(ArchitectureError, match="128 output and 32 input channels, but the hidden size is 32"):
        open_gguf(tmp_path / "x.gguf")


def test_dense_shared_and_routed_experts_of_one_model(tmp_path):
    shapes = {
        "blk.0.ffn_down": (32, 96), "blk.1.ffn_down_shexp": (32, 64), "blk.1.ffn_down_exps": (3, 32, 64),
        "blk.2.ffn_down.0": (32, 64), "blk.2.ffn_down.1": (32, 64),
    }  # fmt: skip
    tensors = {f"{name}.weight": ("Q5_0", random_blocks("Q5_0", *shape)) for name, shape in shapes.items()}
    write_gguf(tmp_path / "x.gguf", tensors, architecture="deepseek2", metadata={"deepseek2.embedding_length": 32})
    _, projections = open_gguf(tmp_path / "x.gguf")
    assert [(p.layer, p.expert, p.shape) for p in projections] == [
        (0, None, (32, 96)), (1, None, (32, 64)), *[(1, e, (32, 64)) for e in range(3)],
        *[(2, e, (32, 64)) for e in range(2)],
    ]  # fmt: skip


def test_two_stacks(tmp_path):
    tensors = {f"{stack}.blk.0.ffn_down.weight": ("F16", random_blocks("F16", 32, 64)) for stack in ("enc", "dec")}
    write_gguf(tmp_path / "x.gguf", tensors, architecture="t5", metadata={"t5.embedding_length": 32})
    assert [p.tower for p in open_gguf(tmp_path / "x.gguf")[1]] == ["decoder", "encoder"]


def test_the_library_is_imported_where_it_is_needed():
    code = "import sys, analyzer.analyze.scanning; assert 'gguf' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_finite_is_counted(tmp_path):
    downs = write_llama_gguf(tmp_path / "x.gguf", "Q8_0")
    lost = sum(int((~np.isfinite(down)).sum()) for down in downs.values())
    assert lost > 100
    assert all(np.isfinite(magnitudes(down)).all() for down in downs.values())
    assert sum(tensor.nonfinite for tensor in scan(*open_gguf(tmp_path / "x.gguf")).tensors) == lost
