"""A scan from the command line."""

import json

import numpy as np
import pytest
from checkpoints import random_downs, write_llama, write_tensors
from commands import fails, superweight
from gguf_files import write_llama_gguf
from safetensors.numpy import load_file

from analyzer.base.records import Unread
from analyzer.cli.output import warn_of
from analyzer.cli.scan import Layers


def test_scan_prints_the_outlier_first(spiked):
    result = superweight("scan", spiked, "--top", 3)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "Largest weight: layer 1, row 2, col 3 = +1.5" in result.stdout
    assert str(spiked.parent) not in result.stdout


def test_scan_json_is_the_contract(here, spiked):
    result = here("scan", spiked, "--json", "--top", 3, "--layers", "0-1")
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


def test_scan_warns_of_what_a_layer_lacks(here, tmp_path):
    write_llama(tmp_path, random_downs(layers=4))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    write_tensors(tmp_path, tensors)
    result = here("scan", tmp_path, "--json")
    why = "what projects into it is stored, and it is not"
    assert result.stderr == f"warning: not read: 1 x model.layers.2.mlp.down_proj: {why}\n"
    assert len(json.loads(result.stdout)["tensors"]) == 3
    assert here("scan", tmp_path, "--layers", "0-1").stderr == ""


def test_scan_says_what_is_not_finite(here, tmp_path):
    downs = random_downs()
    downs[2][0, :2] = float("nan")
    downs[0][:] = float("inf")
    write_llama(tmp_path, downs)
    assert "162 weights in 2 tensors are NaN or infinite" in here("scan", tmp_path).stdout
    scan = json.loads(here("scan", tmp_path, "--json").stdout)
    assert [t["nonfinite"] for t in scan["tensors"]] == [160, 0, 2]
    assert scan["tensors"][0]["mean_abs"] is None
    assert all(o["layer"] != 0 for o in scan["outliers"])


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("0", (range(1),)), ("0-10,24", (range(11), range(24, 25))), (" 3 - 4 ", (range(3, 5),))],
)
def test_layers(text, ranges):
    assert Layers().convert(text, None, None) == ranges


def test_a_gguf_file(here, tmp_path):
    path = tmp_path / "quant" / "x.Q5_K.gguf"
    downs = write_llama_gguf(path, "Q5_K")
    assert "down projections of" in here("scan", path).stdout
    result = json.loads(here("scan", f"{path.parent}:x.Q5_K.gguf", "--json", "--top", 1).stdout)
    best = max(np.nanmax(np.abs(down[np.isfinite(down)])) for down in downs.values())
    assert (result["model"], result["outliers"][0]["score"]) == ("quant:x.Q5_K.gguf", float(best))
    fails(here("diff", path, tmp_path / "no.gguf"), "there is no folder or file")
    path.with_name("y.gguf").write_bytes(b"GGUF")
    fails(here("scan", path.parent), "has 2 GGUF files, and none is named", "one of x.Q5_K.gguf, y.gguf")
    fails(here("scan", path.with_name("y.gguf")), "quant:y.gguf: y.gguf is truncated")


def test_what_is_not_read_is_said_after_success(here, partly_known):
    result = here("scan", partly_known)
    assert result.returncode == 0
    said = "not read: 1 x model.layers.*.extra.bwd of shape [8, 20]: looks like a down projection"
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"warning: {said}")
    first = " ".join(result.stdout.split("\n\n")[0].split())
    assert first.startswith("part: 3 down projections of 3 layers, BF16, ")
    assert first.endswith("; 1 not read")
    result = here("scan", partly_known, "--json")
    assert result.stderr.startswith(f"warning: {said}")
    assert json.loads(result.stdout)["unread"] == [
        {
            "names": "model.layers.*.extra.bwd", "count": 1, "shape": [8, 20],
            "why": "looks like a down projection, by a name that is not known",
        }
    ]  # fmt: skip


def test_what_is_left_out_on_purpose_is_not_unread(here, partly_known):
    for wanted in (("--layers", "0,2"), ("--tensors", "*.mlp.down_proj.weight")):
        result = here("scan", partly_known, "--json", *wanted)
        assert (result.stderr, json.loads(result.stdout)["unread"]) == ("", [])


@pytest.mark.parametrize(("where", "said"), [((), ""), (["the new one"] * 3000, " in the new one")])
def test_of_many_kinds_that_are_not_read_some_are_shown(capsys, where, said):
    warn_of((Unread(f"model.layers.*.odd{number}", 1, None, "why") for number in range(3000)), where=where)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[19:] == [
        f"warning: not read: 1 x model.layers.*.odd19{said}: why",
        "warning: not read: 2,980 more kinds of names: --json has them all",
    ]


def test_a_layer_that_is_not_there(here, partly_known):
    fails(here("scan", partly_known, "--layers", "7"), "no down projection in layer 7")


def test_diff_says_what_is_not_read_of_which_side(here, partly_known, folder):
    result = here("diff", folder, partly_known, "--json")
    assert result.stderr.count("\n") == 1
    assert "not read: 1 x model.layers.*.extra.bwd of shape [8, 20] in the new one" in result.stderr
    (unread,) = json.loads(result.stdout)["unread"]
    assert (unread["side"], unread["names"], unread["count"], unread["shape"]) == (
        "new", "model.layers.*.extra.bwd", 1, [8, 20],
    )  # fmt: skip
    saved = folder.parent / "saved.json"
    saved.write_text(here("scan", partly_known, "--json").stdout)
    assert json.loads(here("diff", saved, folder, "--json").stdout)["unread"] == [{**unread, "side": "old"}]


def test_diff_says_what_is_not_read_of_which_revisions(here, partly_known, folder, hub):
    for name, files in {"v1": folder, "v2": partly_known, "v3": partly_known}.items():
        hub.add("owner/tiny", files, branch=name)
    result = here("diff", "owner/tiny", "--revisions", "v1,v2,v3", "--json")
    of_revisions = [each["unread"] for each in json.loads(result.stdout)["revisions"]]
    assert [len(each) for each in of_revisions] == [0, 1, 1]
    assert of_revisions[1][0]["names"] == "model.layers.*.extra.bwd"
    assert result.stderr.count("\n") == 1
    assert "1 x model.layers.*.extra.bwd of shape [8, 20] in revision v2 and 1 more: looks like" in result.stderr
