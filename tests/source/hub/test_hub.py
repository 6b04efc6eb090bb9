"""hub.py, against a real server: what is read, what is pinned, what is downloaded."""

import shutil

import pytest
from checkpoints import random_downs, refused, write_llama
from hub_server import Reply

from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


def test_the_hub_is_read_exactly(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    data = (folder / WEIGHTS).read_bytes()
    assert source.sizes == {WEIGHTS: len(data), "config.json": (folder / "config.json").stat().st_size}
    assert (source.model, source.revision, source.commit) == ("owner/tiny", None, commit)
    for start, stop in [(0, 1), (5, 77), (len(data) - 1, len(data)), (0, len(data))]:
        assert source.read(WEIGHTS, start, stop) == data[start:stop]
        assert hub.asked("cdn")[-1].range == f"bytes={start}-{stop - 1}"
    assert source.read("config.json", 2, 8) == (folder / "config.json").read_bytes()[2:8]


def test_a_signed_url_is_asked_for_once_and_used_again(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    assert [r.path for r in hub.requests] == ["/api/models/owner/tiny?blobs=true"]
    for _ in range(3):
        source.read(WEIGHTS, 0, 8)
        source.read("config.json", 0, 8)
    assert [(r.origin, r.method, r.path.split("?")[0].rpartition("/")[0]) for r in hub.requests[1:]] == [
        ("hub", "GET", f"/owner/tiny/resolve/{commit}"),
        ("cdn", "GET", "/blobs"),
        ("hub", "GET", f"/owner/tiny/resolve/{commit}"),
        *2 * [("cdn", "GET", "/blobs"), ("hub", "GET", f"/owner/tiny/resolve/{commit}")],
    ]


def test_redirects_on_the_hub_itself(hub, folder):
    # A repository that moved, and small files behind a cache: neither is a signed URL, both need the token.
    hub.add("owner/new", folder, token="hf_right")
    hub.renamed["owner/old"] = "owner/new"
    hub.small_files_elsewhere = True
    source = open_model("owner/old", token="hf_right")
    for filename in ("config.json", WEIGHTS):
        for _ in range(2):
            assert source.read(filename, 2, 9) == (folder / filename).read_bytes()[2:9]
    assert {r.authorization for r in hub.asked("hub")} == {"Bearer hf_right"}
    assert [r.authorization for r in hub.asked("cdn")] == [None, None]
    # The listing is sent on to the new name, which is asked from then on.
    assert len(hub.asked("hub")) == 2 + 2 * 2 + 1


def test_a_repository_that_was_renamed(hub, folder):
    commit = hub.add("owner/new", folder)
    hub.renamed["owner/old"] = "owner/new"
    source = open_model("owner/old@main")
    assert (source.model, source.revision, source.commit) == ("owner/new", "main", commit)
    assert source.notes == ("owner/old is now called owner/new",)
    hub.forget()
    assert source.folder([WEIGHTS]).joinpath(WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert not [request for request in hub.requests if "owner/old" in request.path]
    assert open_model("owner/new").notes == ()
    assert "owner/new@main has no file gone.json at commit" in refused(source.read, "gone.json", 0, 8)


def test_what_was_downloaded_under_an_old_name_is_not_downloaded_again(hub, folder):
    from huggingface_hub import snapshot_download

    hub.add("owner/old", folder)
    snapshot_download("owner/old")
    hub.repositories["owner/new"] = hub.repositories.pop("owner/old")
    hub.renamed["owner/old"] = "owner/new"
    hub.forget()
    source = open_model("owner/old")
    assert source.model == "owner/new"
    assert source.folder([WEIGHTS]).joinpath(WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert source.read(WEIGHTS, 3, 9) == (folder / WEIGHTS).read_bytes()[3:9]
    assert hub.asked("cdn") == []


@pytest.mark.parametrize("name", ["7", '"../x"', '"a/b/c"', "null"])
def test_a_name_that_is_none_is_not_taken(hub, folder, name):
    commit = hub.add("owner/tiny", folder)
    listing = b'{"id": %s, "sha": "%s", "siblings": [{"rfilename": "a", "size": 1}]}' % (name.encode(), commit.encode())
    hub.tamper = lambda request, reply: Reply(200, {}, listing)
    assert open_model("owner/tiny").model == "owner/tiny"


def test_the_commit_is_pinned(hub, folder):
    first = hub.add("owner/tiny", folder)
    source = open_model("owner/tiny", revision="main")
    before = (folder / WEIGHTS).read_bytes()
    write_llama(folder, random_downs(seed=1))
    second = hub.add("owner/tiny", folder)
    assert source.read(WEIGHTS, 0, len(before)) == before
    moved = open_model("owner/tiny@main")
    assert (source.commit, moved.commit, moved.revision) == (first, second, "main")
    assert moved.read(WEIGHTS, 0, len(before)) == (folder / WEIGHTS).read_bytes() != before
    assert open_model(f"owner/tiny@{first}").commit == first


def test_branches_with_a_slash(hub, folder):
    hub.add("owner/tiny", folder)
    write_llama(folder, random_downs(seed=1))
    commit = hub.add("owner/tiny", folder, branch="refs/pr/1")
    assert open_model("owner/tiny", revision="refs/pr/1").commit == commit


def test_hub_subfolders(hub, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "repo" / "fp16")
    (tmp_path / "repo" / "config.json").write_text("other")
    (tmp_path / "repo" / "fp16" / "fp16.json").write_text("same name")
    hub.add("owner/tiny", tmp_path / "repo")
    source = open_model("owner/tiny", subfolder="fp16/")
    assert set(source.sizes) == {WEIGHTS, "config.json", "fp16.json"}
    assert source.read("config.json", 0, 1) == b"{"
    assert source.folder([WEIGHTS]).joinpath(WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    for subfolder in ["..", "fp16/../..", "/etc/..", "a\\b", "%2e%2e"]:
        assert "not a plain path" in refused(open_model, "owner/tiny", subfolder=subfolder)


def test_a_file_in_the_local_cache_is_read_from_there(hub, folder):
    from huggingface_hub import hf_hub_download

    hub.add("owner/tiny", folder)
    hf_hub_download("owner/tiny", WEIGHTS)
    hub.forget()
    source = open_model("owner/tiny")
    data = (folder / WEIGHTS).read_bytes()
    assert source.read(WEIGHTS, 3, 99) == data[3:99]
    assert source.read("config.json", 0, 1) == b"{"
    assert [r.path.split("/")[1] for r in hub.requests] == ["api", "owner"]
    assert source.content(WEIGHTS) is None
    # Of another commit, or cut short, it is not this file.
    write_llama(folder, random_downs(seed=1))
    hub.add("owner/tiny", folder)
    assert open_model("owner/tiny").read(WEIGHTS, 3, 99) == (folder / WEIGHTS).read_bytes()[3:99]
    assert len(hub.asked("cdn")) == 1
    cached = source._files[WEIGHTS].cached.resolve()
    cached.write_bytes(data[:-1])
    assert open_model(f"owner/tiny@{source.commit}").read(WEIGHTS, 3, 99) == data[3:99]
    assert len(hub.asked("cdn")) == 2


# Downloads


def test_a_download_has_what_a_model_needs_and_nothing_else(hub, folder):
    for name in ["tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "evil.py", "flax.msgpack"]:
        (folder / name).write_text(name)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    commit = hub.add("owner/tiny", folder)
    downloaded = open_model("owner/tiny").folder([WEIGHTS])
    expected = {WEIGHTS, "config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"}
    assert {path.name for path in downloaded.iterdir()} == expected
    assert {path.name: path.read_bytes() for path in downloaded.iterdir()} == {
        name: (folder / name).read_bytes() for name in expected
    }
    assert downloaded.name == commit
    assert [r.authorization for r in hub.asked("cdn")] == [None]


def test_a_download_has_the_shards_of_subfolders_that_were_asked_for(hub, folder):
    for name in ["shards/a[1].safetensors", "shards/b.safetensors", "shards/config.json"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    hub.add("owner/tiny", folder)
    downloaded = open_model("owner/tiny").folder(["shards/a[1].safetensors"])
    found = {path.relative_to(downloaded).as_posix() for path in downloaded.rglob("*") if path.is_file()}
    assert found == {"config.json", "shards/a[1].safetensors"}


def test_a_download_is_of_the_pinned_commit(hub, folder):
    hub.add("owner/secret", folder, token="hf_right")
    source = open_model("owner/secret", token="hf_right")
    before = (folder / WEIGHTS).read_bytes()
    write_llama(folder, random_downs(seed=1))
    hub.add("owner/secret", folder)
    downloaded = source.folder([WEIGHTS])
    assert downloaded.name == source.commit
    assert downloaded.joinpath(WEIGHTS).read_bytes() == before


def test_a_second_download_comes_from_the_cache(hub, folder):
    hub.add("owner/tiny", folder)
    first = open_model("owner/tiny").folder([WEIGHTS])
    hub.requests.clear()
    assert open_model("owner/tiny").folder([WEIGHTS]) == first
    assert hub.asked("cdn") == []
