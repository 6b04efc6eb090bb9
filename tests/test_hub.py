"""hub.py, against a real server; each refusal must be one line that names the thing."""

import shutil
from dataclasses import replace

import pytest
from checkpoints import random_downs, refused, write_llama
from hub_server import Reply

from analyzer.hub import HubSource
from analyzer.source import FolderSource, open_source

WEIGHTS = "model.safetensors"


def on(origin, change):
    """Return a tamperer that changes the replies of one origin only."""
    return lambda request, reply: change(reply) if request.origin == origin else reply


def test_the_hub_is_read_exactly(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    data = (folder / WEIGHTS).read_bytes()
    assert source.sizes == {WEIGHTS: len(data), "config.json": (folder / "config.json").stat().st_size}
    assert (source.model, source.revision, source.commit) == ("owner/tiny", None, commit)
    for start, stop in [(0, 1), (5, 77), (len(data) - 1, len(data)), (0, len(data))]:
        assert source.read(WEIGHTS, start, stop) == data[start:stop]
        assert hub.asked("cdn")[-1].range == f"bytes={start}-{stop - 1}"
    assert source.read("config.json", 2, 8) == (folder / "config.json").read_bytes()[2:8]


def test_each_read_costs_one_request_and_its_redirect(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    assert [r.path for r in hub.requests] == ["/api/models/owner/tiny?blobs=true"]
    source.read(WEIGHTS, 0, 8)
    source.read("config.json", 0, 8)
    assert [(r.origin, r.method, r.path.split("?")[0].rpartition("/")[0]) for r in hub.requests[1:]] == [
        ("hub", "GET", f"/owner/tiny/resolve/{commit}"),
        ("cdn", "GET", "/blobs"),
        ("hub", "GET", f"/owner/tiny/resolve/{commit}"),
    ]


def test_the_commit_is_pinned(hub, folder):
    first = hub.add("owner/tiny", folder)
    source = open_source("owner/tiny", revision="main")
    before = (folder / WEIGHTS).read_bytes()
    write_llama(folder, random_downs(seed=1))
    second = hub.add("owner/tiny", folder)
    assert source.read(WEIGHTS, 0, len(before)) == before
    moved = open_source("owner/tiny@main")
    assert (source.commit, moved.commit, moved.revision) == (first, second, "main")
    assert moved.read(WEIGHTS, 0, len(before)) == (folder / WEIGHTS).read_bytes() != before
    assert open_source(f"owner/tiny@{first}").commit == first


def test_branches_with_a_slash(hub, folder):
    hub.add("owner/tiny", folder)
    write_llama(folder, random_downs(seed=1))
    commit = hub.add("owner/tiny", folder, branch="refs/pr/1")
    assert open_source("owner/tiny", revision="refs/pr/1").commit == commit


def test_two_revisions_at_once(hub, folder):
    hub.add("owner/tiny", folder)
    assert "name two revisions" in refused(open_source, "owner/tiny@main", revision="v1")
    assert open_source("owner/tiny@main", revision="main").revision == "main"
    assert "already has its name" in refused(open_source, "owner/tiny", model_id="a/b")


def test_a_folder_goes_before_a_hub_id(hub, folder, tmp_path, monkeypatch):
    hub.add("owner/tiny", folder)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "owner/tiny")
    assert isinstance(open_source("owner/tiny"), FolderSource)
    assert hub.requests == []
    shutil.rmtree("owner")
    assert isinstance(open_source("owner/tiny"), HubSource)


def test_hub_subfolders(hub, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "repo" / "fp16")
    (tmp_path / "repo" / "config.json").write_text("other")
    (tmp_path / "repo" / "fp16" / "fp16.json").write_text("same name")
    hub.add("owner/tiny", tmp_path / "repo")
    source = open_source("owner/tiny", subfolder="fp16/")
    assert set(source.sizes) == {WEIGHTS, "config.json", "fp16.json"}
    assert source.read("config.json", 0, 1) == b"{"
    assert source.folder([WEIGHTS]).joinpath(WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    for subfolder in ["..", "fp16/../..", "/etc/..", "a\\b", "%2e%2e"]:
        assert "not a plain path" in refused(open_source, "owner/tiny", subfolder=subfolder)


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(hub, folder):
    hub.add("owner/secret", folder, token="hf_right")
    source = open_source("owner/secret", token="hf_right")
    source.read(WEIGHTS, 0, 8)
    source.read("config.json", 0, 8)
    assert {r.authorization for r in hub.asked("hub")} == {"Bearer hf_right"}
    assert [r.authorization for r in hub.asked("cdn")] == [None]


def test_the_token_of_the_environment(hub, folder, monkeypatch):
    hub.add("owner/secret", folder, token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert open_source("owner/secret").read("config.json", 0, 1) == b"{"


@pytest.mark.parametrize("token", ["hf_right\n", "hf_räight", "", "hf\x00right"])
def test_a_token_that_cannot_be_sent_is_not_shown(hub, folder, token):
    hub.add("owner/secret", folder, token="hf_right")
    message = refused(open_source, "owner/secret", token=token)
    assert "check --token" in message
    assert "hf_" not in message
    assert hub.requests == []


def test_what_the_hub_says_no_to(hub, folder):
    hub.add("owner/tiny", folder)
    hub.add("owner/secret", folder, token="hf_right")
    for model in ["owner/missing", "owner/secret"]:
        for token in [None, "hf_wrong"]:
            message = refused(open_source, model, token=token)
            assert f"there is no folder {model}, and no such model on the Hub (if it is private, log in" in message
    assert "owner/tiny has no revision v9 on the Hub" in refused(open_source, "owner/tiny@v9")
    assert "not a Hub id" in refused(open_source, "owner/tiny--x")
    source = open_source("owner/tiny")
    assert f"has no file gone.json at commit {source.commit}" in refused(source.read, "gone.json", 0, 8)


def test_gated_models(hub, folder):
    # Anybody may list a gated repository's files, only those who were let in may read them.
    hub.add("owner/gated", folder, token="hf_right", gated=True)
    for token in [None, "hf_wrong"]:
        message = refused(open_source("owner/gated", token=token).read, "config.json", 0, 8)
        assert f"owner/gated is gated: accept its terms at {hub.url}/owner/gated, then log in" in message
        assert "is gated" in refused(open_source("owner/gated", token=token).folder, [WEIGHTS])
    assert open_source("owner/gated", token="hf_right").read("config.json", 0, 1) == b"{"


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "refused access to owner/tiny (HTTP 401)",
        ),
        (403, {}, "refused access to owner/tiny (HTTP 403): log in"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "owner/tiny was disabled on the Hub"),
        (500, {}, "answered HTTP 500 for owner/tiny: try again later"),
        (429, {}, "answered HTTP 429"),
        (200, {"Content-Type": "text/html"}, "a proxy may be in the way"),
    ],
)
def test_other_refusals(hub, folder, status, headers, said):
    hub.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: Reply(status, headers, b"<html>Log in</html>")
    assert said in refused(open_source, "owner/tiny")


@pytest.mark.parametrize("body", [b"[]", b"{}", b"null", b'{"id": "owner/tiny", "siblings": [{}]}'])
def test_json_that_is_not_a_model(hub, body):
    hub.tamper = lambda request, reply: Reply(200, {}, body)
    assert "did not answer for owner/tiny as the Hub does" in refused(open_source, "owner/tiny")


@pytest.mark.parametrize("sha", ["null", '""', '"main"', '"../x"'])
def test_no_commit(hub, sha):
    hub.tamper = lambda request, reply: Reply(200, {}, b'{"id": "owner/tiny", "sha": %s}' % sha.encode())
    assert "the Hub named no commit for owner/tiny" in refused(open_source, "owner/tiny")


def test_no_network(hub):
    hub.stop()
    message = refused(open_source, "owner/tiny")
    assert f"cannot reach {hub.url} for owner/tiny" in message
    assert "check the network" in message


def test_offline(hub, folder, monkeypatch):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(open_source, "owner/tiny")
    assert "HF_HUB_OFFLINE is set" in refused(source.read, WEIGHTS, 0, 8)
    assert "HF_HUB_OFFLINE is set" in refused(source.folder, [WEIGHTS])


# Replies that are not what was asked for


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize(
    "change",
    [
        lambda reply: replace(reply.with_headers(Content_Range=None), status=200),
        lambda reply: Reply(200, {}, b"x" * 100_000),
        lambda reply: reply.with_headers(Content_Range="bytes 9-17/100"),
        lambda reply: reply.with_headers(Content_Range=reply.headers["Content-Range"].split("/")[0] + "/1"),
        lambda reply: reply.with_headers(Content_Range=None),
        lambda reply: reply.with_headers(Content_Range="bytes 8-15/*"),
        lambda reply: replace(reply, status=200),
    ],
    ids=["whole file", "another file", "shifted", "another size", "no range named", "no size named", "not partial"],
)
def test_another_range(hub, folder, origin, change):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    filename = WEIGHTS if origin == "cdn" else "config.json"
    assert source.read(filename, 8, 16) == (folder / filename).read_bytes()[8:16]
    hub.tamper = on(origin, lambda reply: reply if reply.status == 302 else change(reply))
    assert "did not answer with the range that was asked for" in refused(source.read, filename, 8, 16)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda reply: replace(reply, cut=5), 5),  # the connection breaks off
        (lambda reply: replace(reply, cut=0), 0),
        (lambda reply: replace(reply, body=reply.body[:5]), 5),  # a shorter body, but a whole one
        (lambda reply: replace(reply, body=reply.body + b"more"), 12),
    ],
)
def test_a_body_of_another_length(hub, folder, change, got):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("cdn", change)
    assert f"asked for 8 bytes, got {got}: try again" in refused(source.read, WEIGHTS, 8, 16)
    assert len(hub.asked("cdn")) == 3  # tried as often, and no more


def test_a_body_that_breaks_off_is_asked_for_again(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("cdn", lambda reply: replace(reply, cut=5) if len(hub.asked("cdn")) == 1 else reply)
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]
    assert [r.range for r in hub.asked("cdn")] == ["bytes=8-15"] * 2


def test_a_busy_hub_is_asked_again(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    busy = Reply(503, {"Retry-After": "0"}, b"busy")
    hub.tamper = on("cdn", lambda reply: busy if len(hub.asked("cdn")) == 1 else reply)
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_another_commit(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Repo_Commit="f" * 40))
    for filename in [WEIGHTS, "config.json"]:
        assert f"answered with commit {'f' * 40} in place of {source.commit}" in refused(source.read, filename, 0, 8)


def test_a_range_past_the_end(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    size = source.sizes[WEIGHTS]
    assert "HTTP 416" in refused(source.read, WEIGHTS, size, size + 8)
    assert "did not answer with the range" in refused(source.read, WEIGHTS, size - 4, size + 4)


def test_signed_urls_may_expire_between_reads(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    source.read(WEIGHTS, 0, 8)
    hub.expire_signed_urls()
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


# Downloads


def test_a_download_has_what_a_model_needs_and_nothing_else(hub, folder):
    for name in ["tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "evil.py", "flax.msgpack"]:
        (folder / name).write_text(name)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    commit = hub.add("owner/tiny", folder)
    downloaded = open_source("owner/tiny").folder([WEIGHTS])
    expected = {WEIGHTS, "config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"}
    assert {path.name for path in downloaded.iterdir()} == expected
    assert {path.name: path.read_bytes() for path in downloaded.iterdir()} == {
        name: (folder / name).read_bytes() for name in expected
    }
    assert downloaded.name == commit
    assert [r.authorization for r in hub.asked("cdn")] == [None]


def test_a_download_is_of_the_pinned_commit(hub, folder):
    hub.add("owner/secret", folder, token="hf_right")
    source = open_source("owner/secret", token="hf_right")
    before = (folder / WEIGHTS).read_bytes()
    write_llama(folder, random_downs(seed=1))
    hub.add("owner/secret", folder)
    downloaded = source.folder([WEIGHTS])
    assert downloaded.name == source.commit
    assert downloaded.joinpath(WEIGHTS).read_bytes() == before


def test_a_second_download_comes_from_the_cache(hub, folder):
    hub.add("owner/tiny", folder)
    first = open_source("owner/tiny").folder([WEIGHTS])
    hub.requests.clear()
    assert open_source("owner/tiny").folder([WEIGHTS]) == first
    assert hub.asked("cdn") == []
