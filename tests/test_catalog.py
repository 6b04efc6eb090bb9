"""The catalog's files: stable to the byte, atomic, safe against two writers, and distrusted when read."""

import errno
import json
import multiprocessing
import os
import stat
from importlib import resources
from pathlib import Path

import pytest

from analyzer.catalog import family_of, find, read_catalog, read_file, save_entry, validate
from analyzer.errors import CatalogError

WEIGHT = {
    "layer": 1, "expert": None, "row": 2, "col": 3, "value": 4.5, "share": 0.9, "static_rank": 1,
    "status": "confirmed", "effect": "critical", "activation_collapse": 0.9, "loss": 1.0, "loss_zeroed": 2.0,
    "control_loss_max": 1.0, "loss_tokens": 10,
}  # fmt: skip
METHOD = {
    "tool": "t", "version": "1", "prompt": "p", "text_sha256": "0" * 64, "dtype": "float32", "device": "cpu",
    "thresholds": {"share": 0.25},
}  # fmt: skip


def entry(model="me/model-1b", commit="a" * 40, **changes):
    base = {
        "model": model, "commit": commit, "note": None, "model_type": "llama", "num_layers": 4, "hidden_size": 8,
        "intermediate_size": 16, "method": METHOD, "verdict": "found", "super_activations": [],
        "super_weights": [WEIGHT], "joint": None, "outliers": [],
    }  # fmt: skip
    return {**base, **changes}


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
        ("google-bert/bert-base-uncased", "bert"),
        ("EleutherAI/pythia-410m-deduped", "pythia"),
        ("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2"),
        ("stories260K", "stories"),
        ("SmolLM2-135M-Instruct-Q4_1", "smollm2"),
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
    assert [(e["model"], e["commit"][0]) for e in read_file(path)] == [("a/x", "a"), ("a/x", "c"), ("b/x", "b")]
    assert read_file(path)[0] == entry("a/x", "a" * 40)
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
    (only,) = read_file(path)
    assert only["verdict"] == "none"


def test_one_record_stands_on_one_line(tmp_path):
    text = save_entry(tmp_path, "x", entry()).read_text()
    (line,) = [line for line in text.splitlines() if '"static_rank"' in line]
    assert json.loads(line) == WEIGHT


def test_the_schema_comes_along(tmp_path):
    save_entry(tmp_path, "x", entry())
    ours = resources.files("analyzer").joinpath("data", "catalog.schema.json").read_text("utf-8")
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
        monkeypatch.setattr("analyzer.catalog.tempfile.mkstemp", full)
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


def test_writers_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_save_many, args=(tmp_path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_file(tmp_path / "x.json")) == 15


def document(**changes):
    return {"schema_version": 1, "family": "x", "entries": [entry()], **changes}


BROKEN = {
    "not JSON": ("{", "is not JSON"),
    "not an object": ([], "is not of type 'object'"),
    "deep nesting": ("[" * 100_000, "is not JSON"),
    "duplicate keys": ('{"family": "x", "family": "y"}', "same key twice"),
    "newer schema": (document(schema_version=2), "newer than the 1 of this tool: upgrade the tool"),
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
    "hostile name": (document(entries=[entry(model="\x1b[2J")]), r"\\x1b\[2J: model"),
    "too large": ('{"schema_version": 1e999, "family": "x", "entries": []}', "1e999 is too large a number"),
    "infinite": ('{"schema_version": 1, "family": "x", "entries": Infinity}', "Infinity is not a JSON number"),
}


@pytest.mark.parametrize(("content", "fault"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_refused_and_left_alone(tmp_path, content, fault):
    path = tmp_path / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    before = path.read_bytes()
    for use in (lambda: read_file(path), lambda: save_entry(tmp_path, "x", entry())):
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


def test_find_by_id_name_and_commit(tmp_path):
    save_entry(tmp_path, "x", entry("me/Model-1b"))
    save_entry(tmp_path, "x", entry("me/Model-1b", "b" * 40))
    entries = read_catalog(tmp_path)
    assert len(find(entries, "me/model-1B")) == 2
    assert len(find(entries, "model-1b")) == 2
    assert [e["commit"][0] for _, e in find(entries, "model-1b@bbb")] == ["b"]
    with pytest.raises(CatalogError, match="no entry for mode-1b; near it: me/Model-1b"):
        find(entries, "mode-1b")


def test_the_repositorys_own_catalog_is_valid_and_says_what_the_weights_are():
    folder = Path(__file__).parent.parent / "catalog"
    assert validate(folder)[2] == []
    ((family, sample),) = find(read_catalog(folder), "SmolLM2-135M-Instruct-Q4_1")
    assert family == "smollm2"
    assert "dequantized" in sample["note"]
    ours = resources.files("analyzer").joinpath("data", "catalog.schema.json").read_text("utf-8")
    assert (folder / "schema.json").read_text("utf-8") == ours
