"""Looking a model up: by id, name and commit, for its entries and its coordinates."""

from pathlib import Path

import pytest
from catalogs import REPORTED, WEIGHT, entry

from analyzer.base.errors import CatalogError
from analyzer.catalog.files import (
    known_documents,
    read_documents,
    save_entry,
    save_reported,
)
from analyzer.catalog.lookup import coordinates_of, lookup, read_catalog


def test_lookup_by_id_name_and_commit(tmp_path):
    save_entry(tmp_path, "x", entry("me/Model-1b"))
    save_entry(tmp_path, "x", entry("me/Model-1b", "b" * 40))
    save_reported(tmp_path, "x", [{**REPORTED, "model": "you/Other-7B-v0.1", "revision": "c" * 40}])
    documents = read_documents(tmp_path)
    assert len(lookup(documents, "me/model-1B")[0]) == 2
    assert len(lookup(documents, "model-1b")[0]) == 2
    assert [e["commit"][0] for _, e in lookup(documents, "model-1b@bbb")[0]] == ["b"]
    assert [item["model"] for _, item in lookup(documents, "OTHER-7b-v0.1@ccc")[1]] == ["you/Other-7B-v0.1"]
    assert read_catalog(tmp_path) == read_catalog(str(tmp_path)) == lookup(documents, "model-1b")[0]
    for near, meant in [
        ("mode-1b", "me/Model-1b"),
        ("other-7b", "you/Other-7B-v0.1"),
        ("she/other-7b-v1", "you/Other"),
    ]:
        with pytest.raises(CatalogError, match=f"no entry for {near}: did you mean {meant}"):
            lookup(documents, near)
    with pytest.raises(CatalogError, match=r"has me/Model-1b, but nothing at ddd: it has a{12}, b{12}$"):
        lookup(documents, "model-1b@ddd")
    for commit in "ef":
        save_entry(tmp_path, "x", entry("me/Model-1b", f"sha256:{commit * 64}"))
    save_reported(tmp_path, "x", [{**REPORTED, "model": "me/unpinned"}])
    documents = read_documents(tmp_path)
    with pytest.raises(CatalogError, match=r"nothing at ddd: it has a{12}, b{12}, e{12} and 1 more$"):
        lookup(documents, "model-1b@ddd")
    with pytest.raises(CatalogError, match=r"has me/unpinned, but nothing at ddd: what it has names no revision$"):
        lookup(documents, "unpinned@ddd")
    with pytest.raises(CatalogError, match=r"no entry for xyzzy \(`superweight catalog list` shows all\)"):
        lookup(documents, "xyzzy")
    with pytest.raises(CatalogError, match="the model's name is empty: `superweight catalog list` shows all"):
        lookup(documents, "")


def test_coordinates_of_a_model_for_a_quantizer(tmp_path):
    coincident = {**WEIGHT, "col": 5, "status": "coincident", "effect": "inert"}
    save_entry(tmp_path, "x", entry(super_weights=[WEIGHT, coincident]))
    row = {**REPORTED, "revision": "main", "col": None, "value": None}
    none = {**row, "revision": "v2", "layer": None, "row": None, "standing": "none_reported", "reason": "none found"}
    save_reported(tmp_path, "x", [row, none, REPORTED])
    verified, reported, reported_row = coordinates_of("MODEL-1b", folder=tmp_path)
    assert (verified.layer, verified.row, verified.col, verified.value) == (1, 2, 3, 4.5)
    assert (verified.standing, verified.effect, verified.commit, verified.sources) == (
        "verified", "critical", "a" * 40, ("t 1",),
    )  # fmt: skip
    assert (reported.standing, reported.effect, reported.commit, reported.sources) == (
        "reported", None, None, ("A paper",),
    )  # fmt: skip
    assert (reported_row.commit, reported_row.col, reported_row.model_type) == ("main", None, "llama")
    with pytest.raises(CatalogError, match="did you mean me/model-1b"):
        coordinates_of("model-2b", folder=tmp_path)


def test_without_a_folder_the_record_that_comes_with_the_tool_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = read_documents(Path(__file__).parents[2] / "catalog")
    assert known_documents(None) == record
    assert coordinates_of("mistralai/Mistral-7B-v0.1")[0].standing == "reported"
    with pytest.raises(CatalogError, match="no catalog folder"):
        known_documents(tmp_path / "catalog")
    sizes = {"num_layers": 32, "hidden_size": 4096, "intermediate_size": 14336}
    # What is in the current folder's catalog goes together with it, and nothing of either is lost.
    save_entry(tmp_path / "catalog", "mistral", entry(model="mistralai/Mistral-7B-v0.1", **sizes))
    theirs = record["mistral"]["reported"][0]
    source = {**theirs["sources"][0], "name": "Mine"}
    save_reported(tmp_path / "catalog", "mistral", [{**theirs, "sources": [source]}, {**theirs, "row": 7}])
    save_entry(tmp_path / "catalog", "own", entry(model="me/own"))
    known = known_documents(None)
    assert known.keys() == {*record, "own"}
    assert [each["model"] for each in known["mistral"]["entries"]] == ["mistralai/Mistral-7B-v0.1"]
    reported = known["mistral"]["reported"]
    assert len(reported) == len(record["mistral"]["reported"]) + 1
    merged = next(item for item in reported if (item["row"], item["col"]) == (theirs["row"], theirs["col"]))
    assert {each["name"] for each in merged["sources"]} == {"Mine", *(each["name"] for each in theirs["sources"])}
    assert known_documents(tmp_path / "catalog") == read_documents(tmp_path / "catalog")
