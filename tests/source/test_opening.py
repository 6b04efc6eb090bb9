"""What a model's name stands for: a folder, a model on the Hub, or neither; of a file see test_single_file.py."""

import shutil

from checkpoints import refused

from analyzer.source.folder import FolderSource
from analyzer.source.hub.hub import HubSource
from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


def test_the_name_in_results_is_never_a_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert open_model(".").model == "tiny"
    assert open_model(f"{folder}/").model == "tiny"
    assert open_model(str(folder), model_id="owner/name").model == "owner/name"


def test_the_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_model("~/tiny").model == "tiny"


def test_what_is_neither_a_folder_nor_a_hub_id(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "is a file: give the folder" in refused(open_model, WEIGHTS)
    assert "is a file: give the folder" in refused(open_model, str(folder / WEIGHTS))
    for model in ["/no/such/folder", "a/b/c", "https://huggingface.co/a/b", "../x", "a b", "-x", "a/", "ä/b", "a\0b"]:
        assert "is not a Hub id of the form owner/name" in refused(open_model, model)
    for model in ["a" * 5000, "~nobody-of-that-name/x"]:
        assert "cannot look for a folder" in refused(open_model, model)
    assert "a local folder and has no revisions" in refused(open_model, ".", revision="main")


def test_two_revisions_at_once(hub, folder):
    hub.add("owner/tiny", folder)
    assert "name two revisions" in refused(open_model, "owner/tiny@main", revision="v1")
    assert open_model("owner/tiny@main", revision="main").revision == "main"
    assert "already has its name" in refused(open_model, "owner/tiny", model_id="a/b")


def test_a_folder_goes_before_a_hub_id(hub, folder, tmp_path, monkeypatch):
    hub.add("owner/tiny", folder)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "owner/tiny")
    assert isinstance(open_model("owner/tiny"), FolderSource)
    assert hub.requests == []
    shutil.rmtree("owner")
    assert isinstance(open_model("owner/tiny"), HubSource)
