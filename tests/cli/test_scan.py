"""A scan from the command line."""

import json

import numpy as np
import pytest
from checkpoints import random_downs, write_llama
from commands import fails, superweight
from gguf_files import write_llama_gguf

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


def test_a_gguf_file_is_scanned_but_not_yet_verified(folder, tmp_path):
    path = tmp_path / "quant" / "x.Q5_K.gguf"
    downs = write_llama_gguf(path, "Q5_K")
    assert "down projections of" in superweight("scan", path).stdout
    result = json.loads(superweight("scan", f"{path.parent}:x.Q5_K.gguf", "--json", "--top", 1).stdout)
    best = max(np.nanmax(np.abs(down[np.isfinite(down)])) for down in downs.values())
    assert (result["model"], result["outliers"][0]["score"]) == ("quant:x.Q5_K.gguf", float(best))
    for command in ("verify", "analyze"):
        fails(
            superweight(command, path, cwd=tmp_path), "x.Q5_K.gguf is a GGUF file: it can be scanned, but not yet ver"
        )
    fails(superweight("diff", path, tmp_path / "no.gguf"), "there is no folder or file")
    path.with_name("y.gguf").write_bytes(b"GGUF")
    fails(superweight("scan", path.parent), "has 2 GGUF files, and none is named", "one of x.Q5_K.gguf, y.gguf")
    fails(superweight("scan", path.with_name("y.gguf")), "quant:y.gguf: y.gguf is truncated")
