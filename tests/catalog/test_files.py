"""The catalog's files: stable to the byte, atomic, safe against two writers, and distrusted when read."""

import errno
import json
import multiprocessing
import os
import stat
from importlib import resources
from pathlib import Path

import pytest
from catalogs import METHOD, REPORTED, WEIGHT, entry, save_many

from analyzer.base.errors import CatalogError
from analyzer.catalog.documents import read_document
from analyzer.catalog.files import (
    read_documents,
    save_entries,
    save_entry,
    save_reported,
    validate,
)
from analyzer.catalog.lookup import lookup, read_catalog


def test_entry_is_written_sorted_and_read_back(tmp_path):
    for model, commit in [("b/x", "b" * 40), ("a/x", "c" * 40), ("a/x", "a" * 40)]:
        path = save_entry(tmp_path / "catalog", "x", entry(model, commit))
    assert path == tmp_path / "catalog" / "x.json"
    assert [(e["model"], e["commit"][0]) for e in read_document(path)["entries"]] == [
        ("a/x", "a"),
        ("a/x", "c"),
        ("b/x", "b"),
    ]
    assert read_document(path)["entries"][0] == entry("a/x", "a" * 40)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_same_analysis_again_leaves_the_file_alone(tmp_path):
    path = save_entry(tmp_path, "x", entry())
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    save_entry(tmp_path, "x", entry())
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "schema.json", "x.json"]


def test_a_new_analysis_of_a_commit_replaces_the_old(tmp_path):
    save_entry(tmp_path, "x", entry())
    path = save_entry(tmp_path, "x", entry(verdict="none", super_weights=[]))
    (only,) = read_document(path)["entries"]
    assert only["verdict"] == "none"


def test_a_newer_tools_analysis_replaces_an_older_ones_and_keeps_its_note(tmp_path):
    save_entry(tmp_path, "x", entry(note="From the author."))
    method = {**METHOD, "version": "2", "thresholds": {"share": 0.5}}
    (only,) = read_document(save_entry(tmp_path, "x", entry(method=method)))["entries"]
    assert (only["note"], only["method"]) == ("From the author.", method)


@pytest.mark.parametrize("change", [{"prompt": "q"}, {"text_sha256": "1" * 64}, {"dtype": "bfloat16"}, {"tool": "u"}])
def test_an_analysis_made_in_another_way_stands_beside(tmp_path, change):
    first, second = entry(), entry(method={**METHOD, **change}, verdict="none", super_weights=[])
    one = save_entry(tmp_path / "1", "x", first)
    save_entry(tmp_path / "1", "x", second)
    save_entry(tmp_path / "2", "x", second)
    other = save_entry(tmp_path / "2", "x", first)
    assert len(read_document(one)["entries"]) == 2
    assert one.read_bytes() == other.read_bytes()


def test_entries_in_one_write_are_as_one_by_one_and_newer_ones_may_stay(tmp_path):
    def made(commit, version, note=None):
        return entry(commit=commit * 40, note=note, method={**METHOD, "version": version})

    old = [made("a", "0.10.0", "Mine."), made("b", "0.9.0")]
    new = [made("a", "0.9.0"), made("b", "0.10.0"), made("c", "0.9.0"), made("c", "0.10.0"), made("c", "0.1.0")]
    for each in (*old, *new):
        save_entry(tmp_path / "one", "x", each)
    assert save_entries(tmp_path / "all", "x", [*old, *new]) == 7
    assert (tmp_path / "one" / "x.json").read_bytes() == (tmp_path / "all" / "x.json").read_bytes()
    assert save_entries(tmp_path / "newer", "x", [*old, *new], keep_newer=True) == 5
    (document,) = read_documents(tmp_path / "newer").values()
    assert [(each["method"]["version"], each["note"]) for each in document["entries"]] == [
        *(("0.10.0", "Mine."), ("0.10.0", None), ("0.10.0", None)),
    ]


def test_a_file_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    save_entry(tmp_path, "x", entry())
    before = (tmp_path / "x.json").read_bytes()
    monkeypatch.setattr("analyzer.catalog.documents.MAX_FILE_BYTES", len(before))
    with pytest.raises(CatalogError, match=r"put a part of its models into another catalog"):
        save_entry(tmp_path, "x", entry("you/another"))
    assert (tmp_path / "x.json").read_bytes() == before


def test_an_entry_leaves_what_others_report_alone_and_the_other_way_round(tmp_path):
    save_entry(tmp_path, "x", entry())
    save_reported(tmp_path, "x", [REPORTED])
    save_entry(tmp_path, "x", entry(commit="b" * 40))
    document = read_documents(tmp_path)["x"]
    assert [e["commit"][0] for e in document["entries"]] == ["a", "b"]
    assert document["reported"] == [REPORTED]


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"properties": {"schema_version": {"const": 5}}}'])
def test_a_schema_that_is_not_an_older_one_of_ours_is_left_alone(tmp_path, text):
    (tmp_path / "schema.json").write_text(text)
    save_entry(tmp_path, "x", entry())
    assert (tmp_path / "schema.json").read_text() == text


def test_one_record_stands_on_one_line(tmp_path):
    text = save_entry(tmp_path, "x", entry()).read_text()
    (line,) = [line for line in text.splitlines() if '"static_rank"' in line]
    assert json.loads(line) == WEIGHT


def test_the_schema_comes_along(tmp_path):
    save_entry(tmp_path, "x", entry())
    ours = resources.files("analyzer.catalog").joinpath("schema.json").read_text("utf-8")
    assert (tmp_path / "schema.json").read_text("utf-8") == ours


@pytest.mark.parametrize("family", ["", "schema", "../x", "A", "a/b", ".x", "x" * 65])
def test_a_family_that_cannot_name_a_file(tmp_path, family):
    with pytest.raises(CatalogError, match="cannot name a family"):
        save_entry(tmp_path, family, entry())


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, failing):
    path = save_entry(tmp_path, "x", entry())
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        monkeypatch.setattr("analyzer.base.atomic.secrets.token_hex", full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CatalogError, match="No space left on device; what was there is unchanged"):
        save_entry(tmp_path, "x", entry(verdict="none", super_weights=[]))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_an_interrupt_while_writing_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = save_entry(tmp_path, "x", entry())
    before = path.read_bytes()

    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_entry(tmp_path, "x", entry(verdict="none", super_weights=[]))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "schema.json", "x.json"]


def test_writers_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=save_many, args=(tmp_path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    content = read_documents(tmp_path)["x"]
    assert len(content["entries"]) == 15
    assert len(content["reported"]) == 16
    shared = next(item for item in content["reported"] if item["model"] == "me/model-1b")
    assert {source["name"] for source in shared["sources"]} == {"writer 0", "writer 1", "writer 2"}


def test_validate_counts_what_is_right_and_names_what_is_wrong(tmp_path):
    save_entry(tmp_path, "x", entry())
    save_entry(tmp_path, "y", entry())
    assert validate(tmp_path) == (2, 2, [])
    (tmp_path / "y.json").write_text("{}")
    files, entries, problems = validate(tmp_path)
    assert (files, entries) == (2, 1)
    assert all("y.json" in problem for problem in problems)


def test_no_catalog_folder(tmp_path):
    with pytest.raises(CatalogError, match="there is no catalog folder"):
        read_catalog(tmp_path / "nowhere")


def test_a_pipe_in_the_catalog_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(CatalogError, match="is not a regular file"):
        read_catalog(tmp_path)


def test_the_repositorys_own_catalog_is_valid_and_says_what_the_weights_are():
    folder = Path(__file__).parents[2] / "catalog"
    assert validate(folder)[2] == []
    (family, sample), *_ = lookup(read_documents(folder), "SmolLM2-135M-Instruct-Q4_1")[0]
    assert family == "smollm2"
    assert "dequantized" in sample["note"]
    ours = resources.files("analyzer.catalog").joinpath("schema.json").read_text("utf-8")
    assert (folder / "schema.json").read_text("utf-8") == ours
