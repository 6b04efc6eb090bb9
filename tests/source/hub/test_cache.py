"""cache.py: models in the Hub's cache, without a network or given as the cache's own folder."""

import shutil

import pytest
from checkpoints import random_downs, refused, write_llama
from huggingface_hub import constants, hf_hub_download, snapshot_download

from analyzer.source.hub.cache import cache_folder
from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def offline(hub, monkeypatch):
    """Cut the network, when called."""

    def cut():
        hub.forget()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    yield cut
    assert not constants.HF_HUB_OFFLINE or hub.requests == []


@pytest.fixture
def versions(hub, folder):
    """Two commits of owner/tiny in the cache, downloaded by their hashes: no branch is known."""
    commits = []
    for seed in range(2):
        write_llama(folder, random_downs(seed=seed))
        commits.append(hub.add("owner/tiny", folder))
        snapshot_download("owner/tiny", revision=commits[-1])
    assert not (cache_folder("owner/tiny") / "refs").exists()
    return commits


def test_without_a_network_a_branch_is_known_from_the_download(hub, folder, offline):
    commit = hub.add("owner/tiny", folder)
    hub.add("owner/tiny", folder, branch="refs/pr/1")
    snapshot_download("owner/tiny")
    snapshot_download("owner/tiny", revision="refs/pr/1")
    offline()
    for revision in (None, "main", "refs/pr/1", commit, commit[:7]):
        source = open_model("owner/tiny", revision=revision)
        assert (source.model, source.revision, source.commit) == ("owner/tiny", revision, commit)
        assert source.read(WEIGHTS, 3, 9) == (folder / WEIGHTS).read_bytes()[3:9]
        assert source.notes == ()
    assert open_model(f"owner/tiny@{commit[:4]}").commit == commit


def test_what_is_not_in_the_cache(hub, folder, offline):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    offline()
    assert refused(open_model, "owner/tiny") == (
        "there is no folder owner/tiny, nor such a model in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or "
        "download the model first"
    )
    assert "not a Hub id" in refused(open_model, "owner/tiny--x")
    assert "HF_HUB_OFFLINE is set" in refused(source.read, WEIGHTS, 0, 8)
    assert "HF_HUB_OFFLINE is set" in refused(source.folder, [WEIGHTS])


def test_the_only_commit_that_the_cache_has(hub, folder, offline):
    commit = hub.add("owner/tiny", folder)
    snapshot_download("owner/tiny", revision=commit)
    offline()
    source = open_model("owner/tiny")
    assert (source.revision, source.commit) == (None, commit)
    assert source.notes == (f"commit {commit} is read: the Hub's cache of the model has no other",)
    # A revision that was asked for is never another one.
    assert refused(open_model, "owner/tiny@v1") == (
        f"the Hub's cache of owner/tiny has no revision v1, only {commit}: give one of them as --revision"
    )
    assert "has no revision main" in refused(open_model, "owner/tiny", revision="main")


def test_one_of_several_commits_must_be_named(versions, offline):
    offline()
    for revision in [None, "../../x", "ab", "0" * 40, "v1"]:
        message = refused(open_model, "owner/tiny", revision=revision)
        assert message.endswith(f", only {', '.join(sorted(versions))}: give one of them as --revision")
    assert "has no main branch, only" in refused(open_model, "owner/tiny")
    for commit in versions:
        assert open_model("owner/tiny", revision=commit[:8]).commit == commit


def test_a_branch_whose_commit_was_not_downloaded(hub, folder, versions, offline):
    refs = cache_folder("owner/tiny") / "refs"
    refs.mkdir()
    (refs / "main").write_text("f" * 40)
    offline()
    assert "has no main branch, only" in refused(open_model, "owner/tiny")
    (refs / "main").write_text(versions[0])
    assert open_model("owner/tiny").commit == versions[0]


def test_very_many_commits_are_not_all_listed(offline):
    for number in range(9):
        (cache_folder("owner/tiny") / "snapshots" / f"{number:040x}").mkdir(parents=True)
    offline()
    message = refused(open_model, "owner/tiny")
    assert f"{4:040x} and 4 more: give one" in message
    assert f"{5:040x}" not in message


@pytest.mark.parametrize("cut", [True, False], ids=["offline", "online"])
def test_the_folder_of_the_cache(hub, folder, tmp_path, offline, cut):
    commit = hub.add("owner/tiny", folder)
    snapshot_download("owner/tiny")
    if cut:
        offline()
    path = cache_folder("owner/tiny")
    for model, revision in [(path, None), (f"{path}/", "main"), (path, commit[:6])]:
        source = open_model(str(model), revision=revision)
        assert (source.model, source.revision, source.commit) == ("owner/tiny", revision, commit)
        assert set(source.sizes) == {WEIGHTS, "config.json"}
        assert source.read(WEIGHTS, 3, 9) == (folder / WEIGHTS).read_bytes()[3:9]
    assert open_model(str(path), model_id="me/mine").model == "me/mine"
    (tmp_path / "link").symlink_to(path)
    assert open_model(str(tmp_path / "link")).model == "owner/tiny"
    assert "owner/tiny has no revision v1" in refused(open_model, str(path), revision="v1")
    shutil.rmtree(path / "snapshots" / commit)
    assert refused(open_model, str(path)).endswith("has no snapshot: download the model again")


def test_a_folder_of_the_cache_without_an_owner(hub, folder):
    hub.add("owner/tiny", folder)
    snapshot_download("owner/tiny")
    shutil.copytree(cache_folder("owner/tiny"), folder.parent / "models--gpt2", symlinks=True)
    assert open_model(str(folder.parent / "models--gpt2")).model == "gpt2"


@pytest.mark.parametrize("name", ["models", "models--owner--tiny--x", "datasets--owner--tiny", "owner--tiny"])
def test_other_folders_are_what_they_are(folder, name):
    (folder / "snapshots" / ("f" * 40)).mkdir(parents=True)
    folder = folder.rename(folder.parent / name)
    assert open_model(str(folder)).model == name
    assert open_model(str(folder)).commit is None


def test_a_model_folder_that_is_only_named_so(folder):
    folder = folder.rename(folder.parent / "models--owner--tiny")
    source = open_model(str(folder))
    assert (source.model, set(source.sizes)) == ("models--owner--tiny", {WEIGHTS, "config.json"})


def test_subfolders_in_the_cache(hub, folder, tmp_path, offline):
    shutil.copytree(folder, tmp_path / "repository" / "fp16")
    hub.add("owner/tiny", tmp_path / "repository")
    hf_hub_download("owner/tiny", "fp16/config.json")
    offline()
    assert set(open_model("owner/tiny", subfolder="fp16").sizes) == {"config.json"}
    assert set(open_model(str(cache_folder("owner/tiny")), subfolder="fp16").sizes) == {"config.json"}
