"""Are known weights as recorded: held against the tensors as NumPy has them, and against what the Hub was asked for."""

import json

import numpy as np
import pytest
from catalogs import REPORTED, WEIGHT, entry
from checkpoints import LLAMA_DOWN, edited, random_downs, tensor_ranges, write_config, write_llama, write_tensors
from safetensors.numpy import load_file

from analyzer.analyze.integrity import check_known
from analyzer.analyze.report import render_integrity
from analyzer.base.errors import CatalogError, SourceError
from analyzer.catalog.files import save_entry, save_reported

DOWNS = random_downs(layers=3)


def weight(layer, row, col, value=None, **changes):
    value = float(DOWNS[layer][row, col]) if value is None else value
    return {**WEIGHT, "layer": layer, "row": row, "col": col, "value": value, **changes}


def save_weights(folder, commit, *weights, model="owner/tiny"):
    sizes = {"num_layers": 40, "hidden_size": 8, "intermediate_size": 50}
    save_entry(folder, "tiny", entry(model, commit, super_weights=list(weights), **sizes))
    return folder


def states(result):
    return [[found.state for found in each.found] for each in result.weights]


def test_a_folder_is_read_as_it_is(tmp_path):
    write_llama(tmp_path / "tiny", edited(DOWNS, 1, 2, 3, 0.5))
    known = (weight(0, 7, 19), weight(1, 2, 3), weight(2, 1, 30, 1.0), weight(30, 1, 1, 1.0), weight(2, 0, 0))
    save_weights(tmp_path / "catalog", "sha256:" + "a" * 64, *known, model="tiny")
    result = check_known(str(tmp_path / "tiny"), catalog=tmp_path / "catalog")
    assert states(result) == [["same"], ["changed"], ["same"], ["absent"], ["absent"]]
    stored = load_file(tmp_path / "tiny" / "model.safetensors")[LLAMA_DOWN.format(1)]
    changed = result.weights[1]
    assert (
        (changed.recorded, changed.now.value) == (float(DOWNS[1][2, 3]), float(stored[2, 3])) == (changed.recorded, 0.5)
    )
    assert result.differs
    text = " ".join(render_integrity(result).split())
    assert "Not as recorded: of 5 known weights 1 another value, 2 not there." in text


def test_the_hub_is_read_at_the_recorded_commit_and_today_by_single_weights(hub, tmp_path):
    write_llama(tmp_path / "tiny", DOWNS)
    first = hub.add("owner/tiny", tmp_path / "tiny")
    write_llama(tmp_path / "tiny", edited(DOWNS, 1, 2, 3, 0.5))
    today = hub.add("owner/tiny", tmp_path / "tiny")
    save_weights(tmp_path / "catalog", first, weight(0, 7, 19), weight(1, 2, 3))
    result = check_known("owner/tiny", catalog=tmp_path / "catalog")
    assert states(result) == [["same", "same"], ["same", "changed"]]
    assert [found.commit for found in result.weights[1].found] == [first, today]
    assert result.weights[1].now.value == 0.5
    starts = {name: ends[0] for name, ends in tensor_ranges(tmp_path / "tiny" / "model.safetensors").items()}
    places = [starts[LLAMA_DOWN.format(layer)] + 2 * at for layer, at in ((0, 7 * 20 + 19), (1, 2 * 20 + 3))]
    data = min(starts.values())
    asked = [request.range for request in hub.asked("cdn") if int(request.range[6:].split("-")[0]) >= data]
    assert sorted(asked) == sorted([f"bytes={place}-{place + 1}" for place in places] * 2)
    assert result.bytes_read == sum(hub.body_bytes.values())

    pinned = check_known("owner/tiny", revision=first, catalog=tmp_path / "catalog")
    assert states(pinned) == [["same"], ["same"]]
    assert not pinned.differs


def test_a_commit_that_is_gone_is_said_and_no_difference(hub, tmp_path):
    write_llama(tmp_path / "tiny", DOWNS)
    hub.add("owner/tiny", tmp_path / "tiny")
    save_weights(tmp_path / "catalog", "b" * 40, weight(0, 7, 19))
    result = check_known("owner/tiny", catalog=tmp_path / "catalog")
    assert states(result) == [["unreadable", "same"]]
    assert not result.differs
    (why,) = result.unreadable
    assert "b" * 12 in why
    with pytest.raises(SourceError):
        check_known("owner/none", catalog=tmp_path / "catalog")


def test_what_others_report_is_rounded_and_rows_are_no_weights(tmp_path):
    write_llama(tmp_path / "tiny", DOWNS)
    value = float(DOWNS[1][2, 3])
    item = {**REPORTED, "model": "tiny", "layer": 1, "row": 2, "col": 3, "sources": REPORTED["sources"]}
    reported = [
        {**item, "value": float(f"{value:.3g}")},
        {**item, "col": 4, "value": float(DOWNS[1][2, 4]) * 1.01},
        {**item, "col": 5, "value": None},
        {**item, "col": None, "value": None},
    ]
    save_reported(tmp_path / "catalog", "tiny", reported)
    result = check_known(str(tmp_path / "tiny"), catalog=tmp_path / "catalog")
    assert value != float(f"{value:.3g}")
    assert (states(result), result.rows) == ([["same"], ["changed"], ["unrecorded"]], 1)
    assert result.weights[2].now.value == float(DOWNS[1][2, 5])

    save_reported(tmp_path / "rows", "tiny", [reported[3]])
    with pytest.raises(CatalogError, match="knows no single weight of tiny"):
        check_known(str(tmp_path / "tiny"), catalog=tmp_path / "rows")


def test_what_is_stored_in_a_way_that_is_not_read_is_not_called_absent(tmp_path):
    write_llama(tmp_path / "tiny", DOWNS)
    tensors = load_file(tmp_path / "tiny" / "model.safetensors")
    name = LLAMA_DOWN.format(1).removesuffix(".weight")
    del tensors[f"{name}.weight"]
    tensors |= {f"{name}.codebooks": np.zeros((1, 16, 1, 8), np.float16), f"{name}.codes": np.zeros((8, 20), np.int8)}
    write_tensors(tmp_path / "tiny", tensors)
    save_weights(tmp_path / "catalog", "sha256:" + "a" * 64, weight(0, 7, 19), weight(1, 2, 3), model="tiny")
    result = check_known(str(tmp_path / "tiny"), catalog=tmp_path / "catalog")
    assert states(result) == [["same"], ["unreadable"]]
    assert "aqlm" in result.unreadable[0]
    assert "Not all could be read: of 2 known weights 1 cannot be read." in render_integrity(result)


def test_a_weight_that_names_no_tower_is_of_the_language(tmp_path):
    names = ("model.language_model.layers.{}.mlp.down_proj.weight", "model.vision_tower.layers.{}.mlp.down_proj.weight")
    vision = random_downs(seed=1)
    tensors = {names[0].format(layer): down for layer, down in enumerate(DOWNS)}
    tensors |= {names[1].format(layer): down for layer, down in enumerate(vision)}
    write_tensors(tmp_path / "tiny", tensors)
    write_config(tmp_path / "tiny", model_type="x", text_config={"hidden_size": 8, "num_hidden_layers": 3})
    known = weight(0, 7, 19), weight(0, 7, 19, float(vision[0][7, 19]), tower="vision")
    save_weights(tmp_path / "catalog", "sha256:" + "a" * 64, *known, model="tiny")
    result = check_known(str(tmp_path / "tiny"), catalog=tmp_path / "catalog")
    assert states(result) == [["same"], ["same"]]
    assert {each.tower for each in result.weights} == {None, "vision"}


def test_statuses_and_what_is_printed(here, tmp_path):
    write_llama(tmp_path / "tiny", DOWNS)
    command = ["catalog", "check", tmp_path / "tiny", "--catalog", tmp_path / "catalog"]
    save_weights(tmp_path / "catalog", "sha256:" + "a" * 64, weight(0, 7, 19), model="tiny")
    same = here(*command)
    assert (same.returncode, same.stderr) == (0, "")
    assert "As recorded: 1 known weight." in same.stdout
    write_llama(tmp_path / "tiny", edited(DOWNS, 0, 7, 19, 2.0))
    changed = here(*command, "--json")
    assert (changed.returncode, changed.stderr) == (3, "")
    told = json.loads(changed.stdout)
    assert (told["differs"], told["weights"][0]["recorded"]) == (True, float(DOWNS[0][7, 19]))
    assert told["weights"][0]["now"] == {"commit": None, "state": "changed", "value": 2.0, "why": None}
    assert here("catalog", "check", tmp_path / "nowhere").returncode == 1
