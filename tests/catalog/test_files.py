"""The catalog's files: stable to the byte, atomic, safe against two writers, and distrusted when read."""

import errno
import json
import multiprocessing
import os
import stat
from importlib import resources
from pathlib import Path

import pytest
from catalogs import METHOD, REPORTED, WEIGHT, entry

from analyzer.base.errors import CatalogError
from analyzer.catalog.documents import read_document
from analyzer.catalog.families import family_of
from analyzer.catalog.files import (
    known_documents,
    read_documents,
    save_entry,
    save_reported,
    validate,
)
from analyzer.catalog.lookup import coordinates_of, lookup, read_catalog


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("meta-llama/Llama-2-7b-hf", "llama-2"),
        ("mistralai/Mistral-7B-v0.1", "mistral"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1"),
        ("Qwen/Qwen2.5-0.5B", "qwen2.5"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
        ("google/gemma-2-9b-it", "gemma-2"),
        ("allenai/OLMo-1B-0724-hf", "olmo"),
        ("openai-community/gpt2-medium", "gpt2"),
        ("bigscience/bloom-7b1", "bloom"),
        ("google-bert/bert-base-uncased", "bert"),
        ("EleutherAI/pythia-410m-deduped", "pythia"),
        ("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2"),
        ("stories260K", "stories"),
        ("SmolLM2-135M-Instruct-Q4_1", "smollm2"),
        ("owner/Foo-7B-GGUF:Q4/Foo-7B-Q4_K_M.gguf", "foo"),
        ("owner/foo-GGUF:x.gguf", "foo"),
        ("me/schema", "schema-model"),
        ("7b-chat", "7b-chat"),
        ("../../etc/passwd", "passwd"),
        ("me/...", "model"),
        ("Größe 1", "gr--e-1"),
    ],
)
def test_family_of_a_model(model, family):
    assert family_of(model) == family


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


def test_an_entry_leaves_what_others_report_alone_and_the_other_way_round(tmp_path):
    save_entry(tmp_path, "x", entry())
    save_reported(tmp_path, "x", [REPORTED])
    save_entry(tmp_path, "x", entry(commit="b" * 40))
    document = read_documents(tmp_path)["x"]
    assert [e["commit"][0] for e in document["entries"]] == ["a", "b"]
    assert document["reported"] == [REPORTED]


def test_a_file_of_version_1_is_read_and_upgraded_when_it_is_written(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"schema_version": 1, "family": "x", "entries": [entry()]}))
    (tmp_path / "schema.json").write_text('{"properties": {"schema_version": {"const": 1}}}')
    before = path.read_bytes()
    assert read_documents(tmp_path)["x"] == {**document(), "entries": [entry()]}
    assert validate(tmp_path) == (1, 1, [])
    assert path.read_bytes() == before
    save_entry(tmp_path, "x", entry(commit="b" * 40))
    written = json.loads(path.read_text())
    assert (written["schema_version"], len(written["entries"]), written["reported"]) == (2, 2, [])
    assert json.loads((tmp_path / "schema.json").read_text())["properties"]["schema_version"]["const"] == 2


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"properties": {"schema_version": {"const": 3}}}'])
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
        monkeypatch.setattr("analyzer.base.atomic.tempfile.mkstemp", full)
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


def _save_many(folder, writer):
    for number in range(5):
        save_entry(folder, "x", entry(f"writer{writer}/model{number}"))
        save_reported(folder, "x", [{**REPORTED, "model": f"writer{writer}/model{number}"}])
        source = {**REPORTED["sources"][0], "name": f"writer {writer}"}
        save_reported(folder, "x", [{**REPORTED, "sources": [source]}])


def test_writers_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_save_many, args=(tmp_path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = read_documents(tmp_path)["x"]
    assert len(content["entries"]) == 15
    assert len(content["reported"]) == 16
    shared = next(item for item in content["reported"] if item["model"] == "me/model-1b")
    assert {source["name"] for source in shared["sources"]} == {"writer 0", "writer 1", "writer 2"}


def document(**changes):
    return {"schema_version": 2, "family": "x", "entries": [entry()], "reported": [], **changes}


BROKEN = {
    "not JSON": ("{", "is not JSON"),
    "not an object": ([], "is not of type 'object'"),
    "deep nesting": ("[" * 100_000, "is not JSON"),
    "duplicate keys": ('{"family": "x", "family": "y"}', "same key twice"),
    "newer schema": (document(schema_version=3), "newer than the 2 of this tool: upgrade the tool"),
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
        r"super_weights: \(1, 2, 16\) has col 16, but the model has 16",
    ),
    "coordinate twice": (document(entries=[entry(super_weights=[WEIGHT, WEIGHT])]), r"\(1, 2, 3\) stands twice"),
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
        r"me/model-1b@a+…: joint: \(1, 2, 3\) stands twice",
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
        r"me/model-1b: reported: \(1, 2, 3\) stands twice",
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
        r"Me/Model-1B: reported: \(1, 8, 3\) has row 8, but the model has 8",
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
    "version 1 with reports": (document(schema_version=1), "schema_version: 2 was expected"),
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


def test_lookup_by_id_name_and_commit(tmp_path):
    save_entry(tmp_path, "x", entry("me/Model-1b"))
    save_entry(tmp_path, "x", entry("me/Model-1b", "b" * 40))
    save_reported(tmp_path, "x", [{**REPORTED, "model": "you/Other-7B-v0.1", "revision": "c" * 40}])
    documents = read_documents(tmp_path)
    assert len(lookup(documents, "me/model-1B")[0]) == 2
    assert len(lookup(documents, "model-1b")[0]) == 2
    assert [e["commit"][0] for _, e in lookup(documents, "model-1b@bbb")[0]] == ["b"]
    assert [item["model"] for _, item in lookup(documents, "OTHER-7b-v0.1@ccc")[1]] == ["you/Other-7B-v0.1"]
    assert read_catalog(tmp_path) == lookup(documents, "model-1b")[0]
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
    for unlike in ("", "xyzzy"):
        with pytest.raises(CatalogError, match=r"no entry for \w* ?\(`superweight catalog list` shows all\)"):
            lookup(documents, unlike)


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


def test_the_repositorys_own_catalog_is_valid_and_says_what_the_weights_are():
    folder = Path(__file__).parents[2] / "catalog"
    assert validate(folder)[2] == []
    (family, sample), *_ = lookup(read_documents(folder), "SmolLM2-135M-Instruct-Q4_1")[0]
    assert family == "smollm2"
    assert "dequantized" in sample["note"]
    ours = resources.files("analyzer.catalog").joinpath("schema.json").read_text("utf-8")
    assert (folder / "schema.json").read_text("utf-8") == ours
