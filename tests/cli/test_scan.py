"""A scan from the command line."""

import json

import pytest
from checkpoints import random_downs, write_llama
from commands import superweight

from analyzer.cli.scan import Layers


def test_scan_prints_the_outlier_first(spiked):
    result = superweight("scan", spiked, "--top", 3)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "Largest weight: layer 1, row 2, col 3 = +1.5" in result.stdout
    assert str(spiked.parent) not in result.stdout


def test_scan_json_is_the_contract(spiked):
    result = superweight("scan", spiked, "--json", "--top", 3, "--layers", "0-1")
    scan = json.loads(result.stdout)
    assert result.stderr == ""
    assert list(scan) == [
        "model", "revision", "commit", "model_type", "num_layers", "hidden_size", "intermediate_size", "score",
        "bytes_read", "checkpoint_bytes", "seconds", "experts", "towers", "encodings", "unread", "notes", "tensors",
        "outliers",
    ]  # fmt: skip
    assert [scan[key] for key in ("model", "num_layers", "hidden_size", "intermediate_size")] == ["tiny", 3, 8, 20]
    assert [t["layer"] for t in scan["tensors"]] == [0, 1]
    assert list(scan["tensors"][0]) == [
        "name", "layer", "expert", "shape", "dtype", "mean_abs", "std", "max_abs", "nonfinite",
    ]  # fmt: skip
    assert len(scan["outliers"]) == 3
    best = scan["outliers"][0]
    assert list(best) == ["rank", "layer", "expert", "row", "col", "value", "score", "zscore", "tensor"]
    assert [best[key] for key in ("rank", "layer", "expert", "row", "col", "value")] == [1, 1, None, 2, 3, 1.5]


def test_scan_warns_of_layers_that_are_not_there(tmp_path):
    downs = random_downs(layers=4)
    write_llama(tmp_path, downs, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.2.mlp.down_proj.weight"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    result = superweight("scan", tmp_path, "--json")
    assert result.stderr == "warning: no down projection in layer 2: not an MLP block, or not in the index\n"
    assert len(json.loads(result.stdout)["tensors"]) == 3
    assert superweight("scan", tmp_path, "--layers", "0-1").stderr == ""


def test_scan_says_what_is_not_finite(tmp_path):
    downs = random_downs()
    downs[2][0, :2] = float("nan")
    downs[0][:] = float("inf")
    write_llama(tmp_path, downs)
    assert "162 weights in 2 tensors are NaN or infinite" in superweight("scan", tmp_path).stdout
    scan = json.loads(superweight("scan", tmp_path, "--json").stdout)
    assert [t["nonfinite"] for t in scan["tensors"]] == [160, 0, 2]
    assert scan["tensors"][0]["mean_abs"] is None
    assert all(o["layer"] != 0 for o in scan["outliers"])


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("0", (range(1),)), ("0-10,24", (range(11), range(24, 25))), (" 3 - 4 ", (range(3, 5),))],
)
def test_layers(text, ranges):
    assert Layers().convert(text, None, None) == ranges
