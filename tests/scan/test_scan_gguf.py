"""Scans of GGUF files: from the Hub by ranges, by gain, next to safetensors; and of the sample model's own file."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_config, write_tensors
from gguf import GGMLQuantizationType, quants
from gguf_files import header_bytes, open_gguf, random_blocks, read_by_the_library, values_of, write_gguf
from hub_scans import facts, scan_hub
from sample_model import sample_gguf, sample_model_folder

from analyzer.analyze.scanning import scan_model
from analyzer.base.records import Coordinate
from analyzer.checkpoint.gguf import FIRST_READ
from analyzer.diff.versions import compare_models
from analyzer.projections.weights import read_weights
from analyzer.scan.records import ScanSettings
from analyzer.scan.report import render_scan
from analyzer.scan.scanner import scan
from analyzer.source.opening import open_model

SAMPLE, SAMPLE_FILE = sample_model_folder(), sample_gguf()
needs_sample = pytest.mark.skipif(
    not (SAMPLE.exists() and SAMPLE_FILE.exists()), reason="the sample model is not there: tools/sample_model.py"
)

ROWS, COLS = 64, 512


def quantized(weights, kind):
    return quants.quantize(weights, GGMLQuantizationType[kind])


def weights_of(layers=3, seed=0):
    """Return gate, up and down projections of each layer and the norm before them, as float32."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(layers):
        shapes = {"gate": (COLS, ROWS), "up": (COLS, ROWS), "down": (ROWS, COLS), "norm": (ROWS,), "after": (ROWS,)}
        found.append({name: generator.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()})
    return found


def as_gguf(layers, kind, names=("ffn_gate", "ffn_up", "ffn_down")):
    tensors = {"token_embd.weight": ("F32", random_blocks("F32", 16, ROWS))}
    for number, layer in enumerate(layers):
        for name, role in zip(names, ("gate", "up", "down"), strict=True):
            tensors[f"blk.{number}.{name}.weight"] = (kind, quantized(layer[role], kind))
        tensors[f"blk.{number}.ffn_norm.weight"] = ("F32", layer["norm"].view(np.uint8))
    return tensors


# From the Hub


@pytest.fixture
def quant(hub, tmp_path):
    """A file on the Hub whose header is longer than a first read, with another beside it."""
    tokens = [f"<token {n}>" for n in range(30_000)]
    path = tmp_path / "repo" / "x.gguf"
    write_gguf(path, as_gguf(weights_of(), "Q8_0"), metadata={"llama.block_count": 3, "tokenizer.ggml.tokens": tokens})
    (path.parent / "other.gguf").write_bytes(b"GGUF")
    hub.add("owner/quant", path.parent)
    return path


def header_reads(path):
    """Return the ranges that a header is read in: each half as long as all before it, the first ones alike."""
    ranges, stop, end = [], 0, header_bytes(path)
    while stop < end:
        ranges.append((stop, min(stop + max(FIRST_READ, stop // 2), path.stat().st_size)))
        stop = ranges[-1][1]
    return ranges


def test_a_scan_reads_the_header_and_the_down_projections_and_nothing_else(hub, quant):
    result = scan_hub("owner/quant@main:x.gguf")
    assert facts(result) == facts(scan_model(open_model(str(quant))))
    commit = hub.repositories["owner/quant"].branches["main"]
    assert (result.model, result.revision, result.commit) == ("owner/quant:x.gguf", "main", commit)
    assert render_scan(result).startswith(f"owner/quant@main:x.gguf ({commit[:12]}): ")  # as it was named
    assert result.checkpoint_bytes == quant.stat().st_size
    downs = [tensor for name, tensor in read_by_the_library(quant).items() if "ffn_down" in name]
    reads = header_reads(quant)
    assert len(reads) > 2
    assert sum(hub.body_bytes.values()) == result.bytes_read == reads[-1][1] + sum(t.n_bytes for t in downs)
    reads += [(tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in downs]
    assert sorted(r.range for r in hub.asked("cdn")) == sorted(f"bytes={start}-{stop - 1}" for start, stop in reads)
    assert [r.path for r in hub.asked("hub")] == [
        "/api/models/owner/quant/revision/main?blobs=true", f"/owner/quant/resolve/{commit}/x.gguf"
    ]  # fmt: skip


def test_what_was_scanned_is_kept(hub, quant):
    first = scan_hub("owner/quant:x.gguf")
    hub.forget()
    again = scan_hub("owner/quant:x.gguf")
    assert facts(again) == facts(first)
    assert sum(hub.body_bytes.values()) == again.bytes_read == header_reads(quant)[-1][1]


def test_a_split_file_on_the_hub(hub, tmp_path):
    tensors = as_gguf(weights_of(), "Q5_1")
    write_gguf(tmp_path / "x.gguf", tensors)
    write_gguf(tmp_path / "repo" / "Q5" / "x.gguf", tensors, split_max_tensors=4)
    hub.add("owner/split", tmp_path / "repo")
    result = scan_hub("owner/split")
    assert result.model == "owner/split:Q5/x-00001-of-00004.gguf"
    assert facts(result) == facts(scan_model(open_model(str(tmp_path / "x.gguf"))))
    assert result.checkpoint_bytes == sum(part.stat().st_size for part in (tmp_path / "repo" / "Q5").iterdir())


# The score `gain`


def gains(gate, up, down, before, after=None):
    """Return the score of each weight, by its definition."""
    columns = np.linalg.norm(gate * before, axis=1) * np.linalg.norm(up * before, axis=1)
    scores = np.abs(down) * columns * (np.ones((ROWS, 1)) if after is None else np.abs(after)[:, None])
    return scores / np.median(np.linalg.norm(scores, axis=1))


def decoded(layer, kind):
    """Return the projections of a layer as a file holds them, in float64."""
    return [values_of(kind, quantized(layer[role], kind)).astype(np.float64) for role in ("gate", "up", "down")]


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_gain_of_a_gated_mlp(tmp_path, architecture):
    """Of Gemma's norms too: in these files they hold what is multiplied with, 1 + weight."""
    layers = weights_of()
    write_gguf(tmp_path / "x.gguf", as_gguf(layers, "Q8_0"), architecture=architecture)
    result = scan(*open_gguf(tmp_path / "x.gguf"), score="gain", top=40)
    expected = [gains(*decoded(layer, "Q8_0"), layer["norm"]) for layer in layers]
    check_gains(result, expected)


def check_gains(result, expected):
    for outlier in result.outliers:
        assert outlier.score == pytest.approx(expected[outlier.layer][outlier.row, outlier.col], rel=1e-6)
    best = np.sort(np.concatenate([scores.ravel() for scores in expected]))[::-1][: len(result.outliers)]
    np.testing.assert_allclose([outlier.score for outlier in result.outliers], best, rtol=1e-6)


def test_gain_with_a_norm_after(tmp_path):
    """As of Gemma 2 and 3: a norm on the way in, and one on the way out."""
    layers = weights_of()
    after = {f"blk.{n}.post_ffw_norm.weight": ("F32", layer["after"].view(np.uint8)) for n, layer in enumerate(layers)}
    other = {f"blk.{n}.post_attention_norm.weight": ("F32", np.full(ROWS, 9, "<f4").view(np.uint8)) for n in range(3)}
    write_gguf(tmp_path / "x.gguf", {**other, **as_gguf(layers, "F16"), **after}, architecture="gemma2")
    result = scan(*open_gguf(tmp_path / "x.gguf"), score="gain", top=40)
    check_gains(result, [gains(*decoded(layer, "F16"), layer["norm"], layer["after"]) for layer in layers])


def test_gain_with_a_norm_after_alone(tmp_path):
    """As of OLMo 2."""
    layers = weights_of()
    tensors = as_gguf(layers, "F16")
    for number, layer in enumerate(layers):
        del tensors[f"blk.{number}.ffn_norm.weight"]
        tensors[f"blk.{number}.post_attention_norm.weight"] = ("F32", layer["norm"].view(np.uint8))
        tensors[f"blk.{number}.post_ffw_norm.weight"] = ("F32", layer["after"].view(np.uint8))
    write_gguf(tmp_path / "x.gguf", tensors, architecture="olmo2")
    result = scan(*open_gguf(tmp_path / "x.gguf"), score="gain", top=40)
    check_gains(result, [gains(*decoded(layer, "F16"), 1.0, layer["after"]) for layer in layers])


def test_gain_of_gate_and_up_in_one(tmp_path):
    """As of Phi-3."""
    layers = weights_of()
    tensors = as_gguf(layers, "Q4_0")
    for number, layer in enumerate(layers):
        del tensors[f"blk.{number}.ffn_gate.weight"]
        fused = np.concatenate([layer["gate"], layer["up"]])
        tensors[f"blk.{number}.ffn_up.weight"] = ("Q4_0", quantized(fused, "Q4_0"))
    write_gguf(tmp_path / "x.gguf", tensors, architecture="phi3")
    result = scan(*open_gguf(tmp_path / "x.gguf"), score="gain", top=40)
    check_gains(result, [gains(*decoded(layer, "Q4_0"), layer["norm"]) for layer in layers])


def test_gain_of_experts(tmp_path):
    routed, shared = weights_of(layers=4), weights_of(layers=1, seed=1)[0]
    stacked = {role: np.stack([expert[role] for expert in routed]) for role in ("gate", "up", "down")}
    names = {"gate": "blk.0.ffn_gate{}.weight", "up": "blk.0.ffn_up{}.weight", "down": "blk.0.ffn_down{}.weight"}
    tensors = {name.format("_exps"): ("Q8_0", quantized(stacked[role], "Q8_0")) for role, name in names.items()}
    tensors |= {name.format("_shexp"): ("Q8_0", quantized(shared[role], "Q8_0")) for role, name in names.items()}
    tensors["blk.0.ffn_norm.weight"] = ("F32", shared["norm"].view(np.uint8))
    write_gguf(tmp_path / "x.gguf", tensors, architecture="qwen2moe")
    result = scan(*open_gguf(tmp_path / "x.gguf"), score="gain", top=40)
    expected = {e: gains(*decoded(expert, "Q8_0"), shared["norm"]) for e, expert in enumerate(routed)}
    expected[None] = gains(*decoded(shared, "Q8_0"), shared["norm"])
    for outlier in result.outliers:
        assert outlier.score == pytest.approx(expected[outlier.expert][outlier.row, outlier.col], rel=1e-6)
    assert len({outlier.expert for outlier in result.outliers}) == 5


# Next to safetensors


@pytest.fixture
def both(tmp_path):
    """A model as it was published, with a planted weight, and as a file of 4 bits."""
    layers = weights_of()
    layers[1]["down"][5, 300] = -4.3
    write_tensors(
        tmp_path / "original",
        {
            f"model.layers.{n}.mlp.down_proj.weight": layer["down"].astype(ml_dtypes.bfloat16)
            for n, layer in enumerate(layers)
        },
    )
    write_config(tmp_path / "original", model_type="llama", hidden_size=ROWS, num_hidden_layers=3)
    write_gguf(tmp_path / "quant" / "x.Q4_0.gguf", as_gguf(layers, "Q4_0"))
    return tmp_path, layers


def test_a_diff_tells_what_quantization_did_place_by_place(both):
    folder, layers = both
    result = compare_models(str(folder / "original"), str(folder / "quant" / "x.Q4_0.gguf"))
    assert result.new_model == "quant:x.Q4_0.gguf"
    planted = next(change for change in result.outliers if change.coordinate == Coordinate(1, None, 5, 300))
    assert (planted.old["rank"], planted.new["rank"], planted.old["value"]) == (1, 1, -4.3125)
    assert planted.new["value"] == decoded(layers[1], "Q4_0")[2][5, 300]
    for number, (layer, change) in enumerate(zip(layers, result.layers, strict=True)):
        old = layer["down"].astype(ml_dtypes.bfloat16).astype(np.float64)
        new = decoded(layer, "Q4_0")[2]
        assert (change.layer, change.state) == (number, "changed")
        assert change.relative_change == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6)
        largest = change.largest_change
        moved = np.abs(new - old)
        assert abs(largest.new - largest.old) == pytest.approx(moved.max())
        assert moved[largest.row, largest.col] == moved.max()


def test_a_diff_of_a_file_with_itself_and_with_a_saved_scan(both):
    from analyzer.base.records import plain

    folder, _ = both
    path = folder / "quant" / "x.Q4_0.gguf"
    assert compare_models(str(path), str(folder / "quant")).identical
    saved = folder / "saved.json"
    saved.write_text(json.dumps(plain(scan_model(open_model(str(path))))))
    assert compare_models(str(saved), str(path)).identical


# The sample model's own file


@needs_sample
def test_the_sample_models_file_has_the_outliers_of_its_dequantized_copy():
    copy = scan_model(open_model(str(SAMPLE)), ScanSettings(top=200))
    result = scan_model(open_model(str(SAMPLE_FILE)), ScanSettings(top=200))
    assert (result.model_type, result.num_layers, result.hidden_size, result.intermediate_size) == (
        "llama", 30, 576, 1536
    )  # fmt: skip
    assert {tensor.dtype for tensor in result.tensors} == {"Q4_1"}
    assert [o.coordinate for o in result.outliers[:10]] == [o.coordinate for o in copy.outliers[:10]]
    values = {outlier.coordinate: outlier.value for outlier in copy.outliers}
    shared = [outlier for outlier in result.outliers if outlier.coordinate in values]
    assert len(shared) > 180
    for outlier in shared:
        assert np.float32(outlier.value).astype(ml_dtypes.bfloat16) == np.float32(values[outlier.coordinate])


@needs_sample
def test_the_sample_models_super_weights_in_its_file():
    known = {(11, 507, 1229): 5.875, (11, 507, 1487): 6.0625, (28, 507, 678): -5.78125}
    places = [Coordinate(layer, None, row, col) for layer, row, col in known]
    read = read_weights(*open_gguf(SAMPLE_FILE), places)
    rounded = [float(np.float32(value).astype(ml_dtypes.bfloat16)) for value in read.values()]
    assert rounded == list(known.values())


@needs_sample
def test_every_weight_of_the_sample_models_file():
    checkpoint, projections = open_gguf(SAMPLE_FILE)
    tensors = read_by_the_library(SAMPLE_FILE)
    summaries = scan(checkpoint, projections).tensors
    for projection, summary in zip(projections, summaries, strict=True):
        tensor = tensors[projection.name]
        magnitudes = np.abs(quants.dequantize(tensor.data, tensor.tensor_type))
        assert magnitudes.shape == projection.shape
        assert summary.max_abs == magnitudes.max()
        assert summary.mean_abs == pytest.approx(magnitudes.mean(dtype=np.float64), rel=1e-12)
