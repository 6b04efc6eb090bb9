"""Files of a catalog that are broken, hostile or newer than the tool."""

import json
from pathlib import Path

import pytest
from catalogs import METHOD, REPORTED, WEIGHT, entry

from analyzer.base.errors import CatalogError
from analyzer.catalog.documents import SCHEMA_VERSION, read_document
from analyzer.catalog.files import (
    read_documents,
    save_entry,
    validate,
)


def document(**changes):
    return {"schema_version": SCHEMA_VERSION, "family": "x", "entries": [entry()], "reported": [], **changes}


MASSIVE = {
    "channel": 7, "magnitude": 9.0, "prompts": 3, "carrying": 2, "everywhere": 0, "layers": [1, 2],
    "magnitudes": [9.0, 8.0],
}  # fmt: skip
BROKEN = {
    "not JSON": ("{", "is not JSON"),
    "not an object": ([], "is not of type 'object'"),
    "deep nesting": ("[" * 100_000, "is not JSON"),
    "duplicate keys": ('{"family": "x", "family": "y"}', "same key twice"),
    "newer schema": (document(schema_version=6), "newer than the 5 of this tool: upgrade the tool"),
    "another family": (document(family="y"), "family: is y, but the file is named x.json"),
    "no entries": ({"schema_version": 1, "family": "x"}, "'entries' is a required property"),
    "missing field": (document(entries=[{"model": "me/m"}]), r"me/m: 'commit' is a required property"),
    "bad commit": (document(entries=[entry(commit="main")]), "me/model-1b: commit: 'main' does not match"),
    "twice": (document(entries=[entry(), entry()]), "me/model-1b@a+…: stands twice"),
    "negative index": (
        document(entries=[entry(super_weights=[{**WEIGHT, "row": -1}])]),
        "me/model-1b: super_weights: 0: row: -1 is less than the minimum",
    ),
    "index too large": (
        document(entries=[entry(super_weights=[{**WEIGHT, "col": 16}])]),
        r"super_weights: 1,2,16 has col 16, but the model has 16",
    ),
    "coordinate twice": (document(entries=[entry(super_weights=[WEIGHT, WEIGHT])]), r"1,2,3 stands twice"),
    "unknown status": (
        document(entries=[entry(super_weights=[{**WEIGHT, "status": "sure"}])]),
        "super_weights: 0: status: 'sure' is not one of",
    ),
    "joint twice": (
        document(
            entries=[
                entry(joint={"loss_zeroed": 1.0, "coordinates": [{"layer": 1, "expert": None, "row": 2, "col": 3}] * 2})
            ]
        ),
        r"me/model-1b@a+…: joint: 1,2,3 stands twice",
    ),
    "channel too large": (
        document(
            entries=[
                entry(
                    super_activations=[
                        {
                            "layer": 1,
                            "channel": 8,
                            "position": 0,
                            "token": "a",
                            "value": 1.0,
                            "median_ratio": 1.0,
                            "last_layer": 3,
                        }
                    ]
                )
            ]
        ),
        "super_activations: has channel 8, but the model has 8",
    ),
    "massive channel too large": (
        document(entries=[entry(massive_channels=[{**MASSIVE, "channel": 8}])]),
        "massive_channels: has channel 8, but the model has 8",
    ),
    "massive channel of no layer": (
        document(entries=[entry(massive_channels=[{**MASSIVE, "layers": [1, 4]}])]),
        "massive_channels: has layer 4, but the model has 4",
    ),
    "massive channel without its magnitudes": (
        document(entries=[entry(massive_channels=[{**MASSIVE, "magnitudes": [1.0]}])]),
        "massive_channels: 7 has 2 layers, but 1 magnitudes",
    ),
    "index of another type": (
        document(entries=[entry(super_weights=[{**WEIGHT, "row": 2.0}])]),
        "super_weights: 0: row: 2.0 is not of type 'integer'",
    ),
    "index beyond any model": (
        document(reported=[{**REPORTED, "model": "me/other", "col": 10**30}]),
        "me/other: reported 0: col: 10+ is greater than the maximum",
    ),
    "reported twice": (
        document(reported=[REPORTED, {**REPORTED, "value": None}]),
        r"me/model-1b: reported: 1,2,3 stands twice",
    ),
    "reported as verified": (
        document(reported=[{**REPORTED, "standing": "verified"}]),
        "me/model-1b: reported 0: standing: 'verified' is not one of",
    ),
    "disputed without a reason": (
        document(reported=[{**REPORTED, "standing": "disputed"}]),
        "me/model-1b: reported 0: reason: None is not of type 'string'",
    ),
    "none reported, with a layer": (
        document(reported=[{**REPORTED, "standing": "none_reported", "reason": "none found"}]),
        "me/model-1b: reported 0: (col|layer|row|value): ",
    ),
    "reported without a layer": (
        document(reported=[{**REPORTED, "layer": None}]),
        "me/model-1b: reported 0: layer: None is not of type 'integer'",
    ),
    "negative reported index": (
        document(reported=[{**REPORTED, "col": -1}]),
        "me/model-1b: reported 0: col: -1 is less than the minimum",
    ),
    "reported index too large": (
        document(reported=[{**REPORTED, "model": "Me/Model-1B", "row": 8}]),
        r"Me/Model-1B: reported: 1,8,3 has row 8, but the model has 8",
    ),
    "reported without a source": (
        document(reported=[{**REPORTED, "sources": []}]),
        r"me/model-1b: reported 0: sources: \[\] ",
    ),
    "script for a URL": (
        document(reported=[{**REPORTED, "sources": [{**REPORTED["sources"][0], "url": "javascript:alert(1)"}]}]),
        "me/model-1b: reported 0: sources: 0: url: 'javascript:alert",
    ),
    "text turned around": (
        document(reported=[{**REPORTED, "model": "me/\u202emodel"}]),
        r"me/\\u202emodel: reported 0: model: 'me/\\.*u202emodel' has control or invisible characters",
    ),
    "line end after a commit": (document(entries=[entry(commit="a" * 40 + "\n")]), "me/model-1b: commit: "),
    "line end after a name": (document(entries=[entry(model="me/m\n")]), r"has control or invisible characters"),
    "version 1 with reports": (document(schema_version=1), "schema_version: 5 was expected"),
    "hostile name": (document(entries=[entry(model="\x1b[2J")]), r"\\x1b\[2J: model"),
    "too large": ('{"schema_version": 1e999, "family": "x", "entries": []}', "1e999 is too large a number"),
    "infinite": ('{"schema_version": 1, "family": "x", "entries": Infinity}', "Infinity is not a JSON number"),
}


@pytest.mark.parametrize(("content", "fault"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_refused_and_left_alone(tmp_path, content, fault):
    path = tmp_path / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    before = path.read_bytes()
    for use in (lambda: read_document(path)["entries"], lambda: save_entry(tmp_path, "x", entry())):
        with pytest.raises(CatalogError, match=fault) as caught:
            use()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert path.read_bytes() == before
    files, _, problems = validate(tmp_path)
    assert files == 1
    assert problems


def entry_of_2():
    """An entry as version 2 had it."""
    old = {key: value for key, value in entry().items() if key != "unread"}
    return {**old, "method": {key: value for key, value in METHOD.items() if key != "settings"}}


def test_a_file_of_version_2_is_upgraded_and_a_default_analysis_takes_its_place(tmp_path):
    """The sample model's entry as version 2 wrote it: of its settings all were the default ones."""
    old = (Path(__file__).parent / "smollm2-schema-2.json").read_text()
    (tmp_path / "smollm2.json").write_text(old)
    assert json.loads(old)["schema_version"] == 2
    (before,) = read_documents(tmp_path)["smollm2"]["entries"]
    assert (before["method"]["settings"], before["unread"]) == ("default", [])
    newer = {**before["method"], "version": "9", "prompt": "another default prompt", "top": 30}
    save_entry(tmp_path, "smollm2", {**before, "method": newer, "note": None})
    (entry_now,) = read_documents(tmp_path)["smollm2"]["entries"]
    assert (entry_now["method"]["version"], entry_now["note"]) == ("9", before["note"])
    save_entry(tmp_path, "smollm2", {**before, "method": {**newer, "settings": "custom"}})
    save_entry(tmp_path, "smollm2", {**before, "method": {**newer, "dtype": "bfloat16"}})
    written = json.loads((tmp_path / "smollm2.json").read_text())
    assert (written["schema_version"], len(written["entries"])) == (5, 3)


def test_weights_of_two_towers_or_mlps_stand_side_by_side(tmp_path):
    places = [{}, {"tower": "vision"}, {"tower": "vision", "mlp": 1}, {"mlp": 0}]
    path = save_entry(tmp_path, "x", entry(super_weights=[{**WEIGHT, **place} for place in places]))
    kept = read_document(path)["entries"][0]["super_weights"]
    assert [{key: weight.get(key) for key in place} for weight, place in zip(kept, places, strict=True)] == places
    with pytest.raises(CatalogError, match=r"vision:1\.1,2,3 stands twice"):
        save_entry(tmp_path, "x", entry(super_weights=[{**WEIGHT, **places[2]}] * 2))


def test_channels_of_several_streams_go_beyond_the_hidden_size(tmp_path):
    activation = {
        "layer": 1, "channel": 31, "position": 0, "token": "A", "value": 9.0, "median_ratio": 200.0, "last_layer": 3,
    }  # fmt: skip
    save_entry(tmp_path, "x", entry(streams=4, super_activations=[activation]))
    for channel, streams in ((32, {"streams": 4}), (8, {})):
        changed = [{**activation, "channel": channel}]
        with pytest.raises(CatalogError, match=f"has channel {channel}, but the model has {32 if streams else 8}"):
            save_entry(tmp_path, "x", entry(super_activations=changed, **streams))


def test_a_file_of_version_1_is_read_and_upgraded_when_it_is_written(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"schema_version": 1, "family": "x", "entries": [entry_of_2()]}))
    (tmp_path / "schema.json").write_text('{"properties": {"schema_version": {"const": 1}}}')
    before = path.read_bytes()
    assert read_documents(tmp_path)["x"] == {**document(), "entries": [entry()]}
    assert validate(tmp_path) == (1, 1, [])
    assert path.read_bytes() == before
    save_entry(tmp_path, "x", entry(commit="b" * 40))
    written = json.loads(path.read_text())
    assert (written["schema_version"], len(written["entries"]), written["reported"]) == (5, 2, [])
    assert json.loads((tmp_path / "schema.json").read_text())["properties"]["schema_version"]["const"] == 5
