"""A comparison from the command line."""

import json
import re

import pytest
from checkpoints import random_downs, write_config, write_llama, write_tensors
from commands import fails
from safetensors.numpy import load_file


def test_diff_of_a_model_with_itself_and_with_a_saved_result(here, spiked, tmp_path):
    saved = tmp_path / "saved.json"
    saved.write_text(here("scan", spiked, "--json").stdout)
    for one, other in [(spiked, spiked), (spiked, saved), (saved, spiked)]:
        result = here("diff", one, other)
        assert result.returncode == 0
        assert re.search(r"No differences between the (outliers|down projections) of the two", result.stdout)


def test_diff_shows_what_changed(here, spiked, tmp_path):
    downs = random_downs(layers=3)
    downs[1][2, 3] = 1.5
    downs[2][7, 19] = -2.0
    write_llama(tmp_path / "next", downs)
    result = here("diff", spiked, tmp_path / "next", "--top", 1, "--json")
    changed = json.loads(result.stdout)
    assert changed["identical"] is False
    largest = max(range(8 * 20), key=lambda place: abs(float(downs[2].flat[place])) if place != 7 * 20 + 19 else 0)
    assert [(c["kind"], c["layer"], c["row"], c["col"]) for c in changed["outliers"]] == [
        ("appeared", 2, 7, 19),
        ("vanished", 2, *divmod(largest, 20)),  # layer 1, with the larger weight, is the same in both
    ]
    assert changed["outliers"][0]["old"] == {"rank": None, "value": float(random_downs(layers=3)[2][7, 19])}
    assert changed["outliers"][1]["new"] == {"rank": None, "value": float(downs[2].flat[largest])}
    assert (changed["super_weights"], changed["super_weights_from"]) == ([], None)
    assert "1 appeared, 1 vanished." in here("diff", spiked, tmp_path / "next", "--top", 1).stdout


def test_diff_with_a_result_of_a_larger_model(here, spiked, tmp_path):
    outlier = {"rank": 1, "layer": 0, "expert": None, "row": 4000, "col": 1, "value": 3.0}
    (tmp_path / "other.json").write_text(json.dumps({"outliers": [outlier]}))
    fails(here("diff", tmp_path / "other.json", spiked), "tiny has no weight 0,4000,1")


def test_all_tensors_and_the_exit_status(here, spiked, tmp_path):
    tensors = load_file(spiked / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1
    write_tensors(tmp_path / "next", tensors)
    write_config(tmp_path / "next", **json.loads((spiked / "config.json").read_text()))
    two = ["diff", spiked, tmp_path / "next"]
    told = here(*two, "--all-tensors", "--json")
    changed = json.loads(told.stdout)
    assert (told.returncode, changed["identical"]) == (0, False)
    (one,) = (tensor for tensor in changed["tensors"] if tensor["state"] != "same")
    assert (one["name"], one["unchanged"]) == ("model.layers.1.mlp.up_proj.weight", 159 / 160)
    assert changed["unexpected"] == [one["name"]]
    assert here(*two, "--all-tensors", "--exit-code").returncode == 3
    assert here(*two, "--all-tensors", "--expect", "*.up_proj.weight").returncode == 0
    assert here(*two, "--all-tensors", "--expect", "*.down_proj.weight").returncode == 3
    fails(here(*two, "--all-tensors", "--expect", "*.no_proj.weight"), "names no tensor of either")
    assert here(*two, "--exit-code").returncode == 0  # the down projections alone are the same
    downs = random_downs(layers=3)
    write_llama(tmp_path / "other", downs)
    assert here("diff", spiked, tmp_path / "other", "--exit-code").returncode == 3
    assert here(*two, "--all-tensors", "--csv").stdout.startswith("name,state,expected,")


def test_what_was_not_read_is_not_called_the_same(here, partly_known):
    two = ["diff", partly_known, partly_known, "--exit-code"]
    told = here(*two)
    assert told.returncode == 1
    assert "error: what was not read may differ: give --all-tensors" in told.stderr
    assert here(*two, "--all-tensors").returncode == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ["a", "b", "--expect", "x"],
        ["a", "--revisions", "x,y", "--exit-code"],
        ["a", "--revisions", "x,y", "--all-tensors"],
        ["a", "--revisions", "x,y", "--verify"],
        ["a", "b", "--verify", "--all-tensors"],
        ["a", "b", "--device", "cpu"],
        ["a", "b", "--all-tensors", "--top", "3"],
        ["a", "b", "--verify", "--no-cache"],
    ],
)
def test_options_that_do_not_go_together(here, wrong):
    assert here("diff", *wrong).returncode == 2
