"""hub.py, against a real server; each refusal must be one line that names the thing."""

import email.utils
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from checkpoints import random_downs, refused, write_llama
from hub_server import NOTHING, PASSING_FAULTS, Reply, on, once_a_read, status

from analyzer import hub as hub_module
from analyzer.hub import HubSource
from analyzer.source import FolderSource, open_source

WEIGHTS = "model.safetensors"


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


def test_a_signed_url_is_asked_for_once_and_used_again(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
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
    source = open_source("owner/old", token="hf_right")
    for filename in ("config.json", WEIGHTS):
        for _ in range(2):
            assert source.read(filename, 2, 9) == (folder / filename).read_bytes()[2:9]
    assert {r.authorization for r in hub.asked("hub")} == {"Bearer hf_right"}
    assert [r.authorization for r in hub.asked("cdn")] == [None, None]
    assert len(hub.asked("hub")) == 2 + 2 * 3 + 2


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
    for _ in range(3):
        source.read(WEIGHTS, 0, 8)
        source.read("config.json", 0, 8)
    hub.expire_signed_urls()
    source.read(WEIGHTS, 0, 8)
    assert {r.authorization for r in hub.asked("hub")} == {"Bearer hf_right"}
    assert [r.authorization for r in hub.asked("cdn")] == [None] * 5  # one of them refused


def test_the_token_of_the_environment(hub, folder, monkeypatch):
    hub.add("owner/secret", folder, token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert open_source("owner/secret").read("config.json", 0, 1) == b"{"


def test_the_stored_token(hub, folder, tmp_path, monkeypatch):
    hub.add("owner/secret", folder, token="hf_right")
    (tmp_path / "token").write_text("hf_right\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert open_source("owner/secret").read("config.json", 0, 1) == b"{"
    assert "if it is private" in refused(open_source, "owner/secret", token="hf_wrong")  # goes before the stored one


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
        (404, {}, "answered HTTP 404 for owner/tiny: try again later"),
        (200, {"Content-Type": "text/html"}, "a proxy may be in the way"),
    ],
)
def test_other_refusals(hub, folder, status, headers, said):
    hub.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: Reply(status, headers, b"<html>Log in</html>")
    assert said in refused(open_source, "owner/tiny")
    assert len(hub.requests) == 1


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
    assert message.startswith(f"owner/tiny: cannot reach {hub.url} (")
    assert message.endswith("tried 4 times over 0 s: check the network, then try again")


def test_offline(hub, folder, monkeypatch):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(open_source, "owner/tiny")
    assert "HF_HUB_OFFLINE is set" in refused(source.read, WEIGHTS, 0, 8)
    assert "HF_HUB_OFFLINE is set" in refused(source.folder, [WEIGHTS])


def test_a_file_in_the_local_cache_is_read_from_there(hub, folder):
    from huggingface_hub import hf_hub_download

    hub.add("owner/tiny", folder)
    hf_hub_download("owner/tiny", WEIGHTS)
    hub.forget()
    source = open_source("owner/tiny")
    data = (folder / WEIGHTS).read_bytes()
    assert source.read(WEIGHTS, 3, 99) == data[3:99]
    assert source.read("config.json", 0, 1) == b"{"
    assert [r.path.split("/")[1] for r in hub.requests] == ["api", "owner"]
    assert source.content(WEIGHTS) is None
    # Of another commit, or cut short, it is not this file.
    write_llama(folder, random_downs(seed=1))
    hub.add("owner/tiny", folder)
    assert open_source("owner/tiny").read(WEIGHTS, 3, 99) == (folder / WEIGHTS).read_bytes()[3:99]
    assert len(hub.asked("cdn")) == 1
    cached = source._files[WEIGHTS].cached.resolve()
    cached.write_bytes(data[:-1])
    assert open_source(f"owner/tiny@{source.commit}").read(WEIGHTS, 3, 99) == data[3:99]
    assert len(hub.asked("cdn")) == 2


# Faults that pass


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_what_passes_is_tried_again(hub, folder, fault, origin):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = once_a_read(origin, PASSING_FAULTS[fault])
    for filename in (WEIGHTS, "config.json"):
        data = (folder / filename).read_bytes()
        for start, stop in [(8, 16), (1, len(data))]:
            assert source.read(filename, start, stop) == data[start:stop]


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_what_does_not_pass_is_given_up(hub, folder, fault):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("cdn", PASSING_FAULTS[fault])
    message = refused(source.read, WEIGHTS, 8, 80)
    assert message.startswith("owner/tiny/model.safetensors: ")
    assert message.endswith(
        ("; tried 4 times over 0 s: try again later", "; tried 4 times over 0 s: check the network, then try again")
    )
    assert len(hub.asked("cdn")) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (PASSING_FAULTS["shifted"], "did not answer with the range that was asked for (bytes 9-16/3232 in place of 8-"),
        (lambda reply: reply.with_headers(Content_Range=None), "(none in place of 8-15/3232)"),
        (lambda reply: reply.with_headers(Content_Range="bytes 8-15/*"), "(bytes 8-15/* in place of 8-15/3232)"),
        (lambda reply: reply.with_headers(Content_Range="bytes=8-15/3232"), "(bytes=8-15/3232 in place of 8-15/3232)"),
        (lambda reply: replace(reply, body=reply.body + b"more"), "the server sent more than the 8 bytes"),
        (lambda reply: replace(reply, body=b""), "the server sent only 0 of 8 bytes"),
        (lambda reply: replace(reply, cut=0), "lost the connection to {cdn} (peer closed connection"),
        (lambda reply: replace(reply, cut=NOTHING), "lost the connection to {cdn} (Server disconnected"),
        (status(503), "{cdn} answered HTTP 503"),
        (status(403), "{cdn} answered HTTP 403"),  # of a URL that was just signed
    ],
)
def test_what_is_said_of_it(hub, folder, change, said):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("cdn", change)
    assert said.format(cdn=hub.cdn_url) in refused(source.read, WEIGHTS, 8, 16)
    hub.tamper = lambda request, reply: reply
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_a_body_that_breaks_off_goes_on_where_it_broke(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("cdn", lambda reply: replace(reply, cut=5))
    assert source.read(WEIGHTS, 8, 24) == (folder / WEIGHTS).read_bytes()[8:24]
    assert [r.range for r in hub.asked("cdn")] == ["bytes=8-23", "bytes=13-23", "bytes=18-23", "bytes=23-23"]


def test_a_file_that_changes_in_mid_body_is_not_put_together(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")

    def tamper(request, reply):
        if len(hub.asked("cdn")) == 1:
            return replace(reply, cut=5)
        return replace(reply, body=bytes(len(reply.body))).with_headers(ETag='"another"')

    hub.tamper = lambda request, reply: tamper(request, reply) if request.origin == "cdn" else reply
    assert "changed while it was read (ETag another after " in refused(source.read, WEIGHTS, 8, 24)


@pytest.mark.parametrize("origin", ["hub", "cdn"])
def test_a_connection_that_stalls(hub, folder, monkeypatch, origin):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    for cut in (NOTHING, 0, 5):
        hub.tamper = once_a_read(origin, lambda reply, cut=cut: replace(reply, cut=cut, stall=True))
        assert source.read(WEIGHTS, 8, 24) == (folder / WEIGHTS).read_bytes()[8:24]
        assert source.read("config.json", 8, 24) == (folder / "config.json").read_bytes()[8:24]
    hub.tamper = on("cdn", lambda reply: replace(reply, cut=5, stall=True))
    hub.forget()
    assert f"lost the connection to {hub.cdn_url} (timed out); tried 4" in refused(source.read, WEIGHTS, 8, 80)
    assert len(hub.asked("cdn")) == 4


def test_a_body_that_trickles(hub, folder, monkeypatch):
    monkeypatch.setattr(hub_module, "SLOW_S", 0.05)
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    trickle = lambda reply: replace(reply, drip=0.01)  # noqa: E731
    hub.tamper = once_a_read("cdn", trickle)
    assert source.read(WEIGHTS, 8, 3000) == (folder / WEIGHTS).read_bytes()[8:3000]
    assert len(hub.asked("cdn")) == 2
    hub.tamper = on("cdn", trickle)
    assert "the server sent only" in refused(source.read, WEIGHTS, 8, 3000)
    monkeypatch.setattr(hub_module, "SLOW_BYTES", 1)  # slow, but not as slow as that
    assert source.read(WEIGHTS, 8, 40) == (folder / WEIGHTS).read_bytes()[8:40]


def test_a_body_that_begins_well_and_then_trickles(monkeypatch):
    ticks = iter([0, 10, 40, 50, 80])
    monkeypatch.setattr(hub_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    got = []
    with pytest.raises(hub_module.Passing, match="the server sent only 7 bytes in 40 s"):
        for piece in hub_module.in_time(iter([bytes(9000), bytes(9000), bytes(3), bytes(4), bytes(5)]), 10**6):
            got.append(len(piece))
    assert got == [9000, 9000, 3, 4]


def test_a_reader_with_an_old_url_does_not_forget_a_new_one():
    file = hub_module._RemoteFile(WEIGHTS, 8, None, signed_url="new", reused=True)
    file.distrust("old")
    assert (file.signed_url, file.one_range_only) == ("new", False)
    file.distrust("new")
    assert (file.signed_url, file.one_range_only) == (None, False)


def test_sixteen_readers_that_fail_at_once(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    data = (folder / WEIGHTS).read_bytes()
    hub.uses_of_a_url = 5
    hub.tamper = once_a_read("cdn", PASSING_FAULTS["closed in mid-body"])
    starts = range(0, 3200, 20)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda start: source.read(WEIGHTS, start, start + 20), starts)) == [
            data[start : start + 20] for start in starts
        ]
    hub.tamper = on("cdn", status(503))
    with ThreadPoolExecutor(16) as pool:
        messages = set(pool.map(lambda start: refused(source.read, WEIGHTS, start, start + 20), starts[:16]))
    assert messages == {
        f"owner/tiny/{WEIGHTS}: {hub.cdn_url} answered HTTP 503; tried 4 times over 0 s: try again later"
    }


# Waiting


class Clock:
    """Takes the place of `time` in the module: nobody waits, and what was to be waited is kept."""

    def __init__(self):
        self.slept = []
        self.time, self.monotonic = time.time, time.monotonic

    def sleep(self, seconds):
        self.slept.append(seconds)


@pytest.fixture
def clock(hub, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(hub_module, "time", clock)
    monkeypatch.setattr(hub_module, "PAUSES", (0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
    return clock


def in_seconds(seconds):
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("number", "headers", "slept"),
    [
        (503, {}, [0.5, 1, 2, 4, 8, 16]),
        (503, {"Retry-After": "0"}, [0.5, 1, 2, 4, 8, 16]),
        (503, {"Retry-After": "3"}, [3, 3, 3, 4, 8, 16]),
        (429, {"Retry-After": "40"}, [40] * 6),
        (408, {"Retry-After": in_seconds(-9)}, [0.5, 1, 2, 4, 8, 16]),
        (429, {"RateLimit": '"resolvers";r=0;t=7'}, [7, 7, 7, 7, 8, 16]),
        (429, {"Retry-After": "9", "RateLimit": '"resolvers";r=0;t=7'}, [9, 9, 9, 9, 9, 16]),
        (503, {"RateLimit": '"resolvers";r=100;t=200'}, [0.5, 1, 2, 4, 8, 16]),  # there is no limit in the way
        *(
            (429, {"Retry-After": nonsense}, [0.5, 1, 2, 4, 8, 16])
            for nonsense in ("soon", "-5", "1e3", "", "Wed, 99 Foo 99999 25:61:61 GMT", "Mon, 01 Jan 0000 00:00:00 GMT")
        ),
    ],
)
def test_the_pauses_between_tries(hub, folder, clock, number, headers, slept):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = lambda request, reply: Reply(number, headers, b"busy")
    assert f"; tried 7 times over {sum(slept):.0f} s: try again later" in refused(source.read, WEIGHTS, 8, 16)
    assert clock.slept == slept
    assert len(hub.asked("hub")) == 1 + 7


def test_a_date_to_wait_for(hub, folder, clock):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = once_a_read("cdn", status(503, Retry_After=in_seconds(100)))
    source.read(WEIGHTS, 8, 16)
    assert len(clock.slept) == 1
    assert 95 < clock.slept[0] <= 100


@pytest.mark.parametrize(
    ("headers", "asked", "tries"),
    [
        ({"Retry-After": "301"}, "301", 1),
        ({"Retry-After": "99999999999999999999"}, "999999999", 1),
        ({"RateLimit": '"resolvers";r=0;t=3600'}, "3600", 1),
        ({"Retry-After": "70"}, "70", 5),  # five minutes in all
    ],
)
def test_nobody_waits_forever(hub, folder, clock, headers, asked, tries):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("cdn", lambda reply: Reply(429, headers))
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message == (
        f"owner/tiny/{WEIGHTS}: {hub.cdn_url} answered HTTP 429 and asks to wait {asked} s: try again then"
    )
    assert len(hub.asked("cdn")) == tries
    assert clock.slept == [70] * (tries - 1)


@pytest.mark.parametrize("fault", [fault for fault in PASSING_FAULTS if re.match("reset|closed", fault)])
def test_the_listing_may_break_off(hub, folder, fault):
    hub.add("owner/tiny", folder)
    hub.tamper = once_a_read("hub", PASSING_FAULTS[fault])
    assert open_source("owner/tiny").read("config.json", 0, 1) == b"{"
    hub.tamper = on("hub", PASSING_FAULTS[fault])
    assert refused(open_source, "owner/tiny").startswith(f"owner/tiny: lost the connection to {hub.url} (")


@pytest.mark.parametrize("fault", [fault for fault in PASSING_FAULTS if fault[0] in "45"])
def test_the_listing_is_tried_again(hub, folder, clock, fault):
    hub.add("owner/tiny", folder)
    hub.tamper = once_a_read("hub", PASSING_FAULTS[fault])
    assert open_source("owner/tiny").read("config.json", 0, 1) == b"{"
    hub.forget()
    clock.slept.clear()
    hub.tamper = on("hub", PASSING_FAULTS[fault])
    message = refused(open_source, "owner/tiny")
    assert message == f"owner/tiny: {hub.url} answered HTTP {fault[:3]}; tried 4 times over 4 s: try again later"
    assert clock.slept == [0.5, 1, 2]
    assert len(hub.requests) == 4


# Signed URLs


def test_signed_urls_may_expire_between_reads(hub, folder, clock):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    data = (folder / WEIGHTS).read_bytes()
    source.read(WEIGHTS, 0, 8)
    source.read(WEIGHTS, 0, 8)
    hub.expire_signed_urls()
    hub.forget()
    for _ in range(3):
        assert source.read(WEIGHTS, 8, 16) == data[8:16]
    # One more request to each origin; what comes after has a new URL, and nobody waits for anything.
    assert [r.origin for r in hub.requests] == ["cdn", "hub", "cdn", "cdn", "cdn"]
    assert clock.slept == []


@pytest.mark.parametrize("number", [400, 401, 403, 404, 410])
def test_a_signed_url_may_be_refused_in_many_ways(hub, folder, number):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    source.read(WEIGHTS, 0, 8)
    hub.tamper = once_a_read("cdn", status(number))
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_signed_urls_that_serve_a_single_range(hub, folder, clock):
    hub.bind_range = True
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.forget()
    hub.tamper = once_a_read("cdn", lambda reply: replace(reply, cut=4))
    for start in range(0, 80, 8):
        assert source.read(WEIGHTS, start, start + 8) == (folder / WEIGHTS).read_bytes()[start : start + 8]
    # It is tried only once whether a URL serves another range.
    assert len(hub.asked("hub")) == 2 * 10
    assert len(hub.asked("cdn")) == 2 * 10 + 1


def test_a_url_that_is_refused_when_fresh_is_a_fault_that_may_pass(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = once_a_read("cdn", status(403))
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]
    assert [r.origin for r in hub.requests[1:]] == ["hub", "cdn"] * 2
    hub.tamper = on("cdn", status(403))
    hub.forget()
    assert "answered HTTP 403; tried 4 times" in refused(source.read, WEIGHTS, 8, 16)
    assert len(hub.asked("hub")) == 4


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://127.0.0.1:1/blob?Signature=secret", "cannot reach http://127.0.0.1:1 ("),
        ("ftp://127.0.0.1/blob?Signature=secret", "unsupported protocol 'ftp://'"),
        ("file:///etc/passwd", "unsupported protocol 'file://'"),
        ("/owner/tiny/resolve/{commit}/model.safetensors", "Exceeded maximum allowed redirects"),
        ("http://127.0.0.1:x/", "Invalid URL in location header"),
    ],
)
def test_a_redirect_to_nowhere(hub, folder, location, said):
    commit = hub.add("owner/tiny", folder)
    source = open_source("owner/tiny", token="hf_right")
    hub.tamper = on("hub", lambda reply: reply.with_headers(Location=location.format(commit=commit)))
    message = refused(source.read, WEIGHTS, 8, 16)
    assert said in message
    assert "secret" not in message
    assert "hf_right" not in message


# Replies that no further try would make right


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda reply: Reply(200, {}, b"x" * 100_000), "(HTTP 200): a proxy may be in the way"),
        (lambda reply: replace(reply, status=200), "(HTTP 200): a proxy may be in the way"),
        (
            lambda reply: Reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>"),
            "(HTTP 200, text/html; charset=utf-8): a proxy may be in the way",
        ),
        (
            lambda reply: reply.with_headers(Content_Type="text/html"),
            "(HTTP 206, text/html): a proxy may be in the way",
        ),
        (
            lambda reply: reply.with_headers(Content_Range=reply.headers["Content-Range"].split("/")[0] + "/1"),
            "has 1 bytes, not the {size} of its listing: it changed, scan again",
        ),
        (
            lambda reply: reply.with_headers(ETag='"another"'),
            "changed while it was read (ETag another after {tag}): scan again",
        ),
        (status(416), "has no bytes 8 to 15: it changed since it was listed, scan again"),
    ],
    ids=["another file", "not partial", "HTML", "partial HTML", "another size", "another ETag", "out of range"],
)
def test_another_range(hub, folder, origin, change, said):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    filename = WEIGHTS if origin == "cdn" else "config.json"
    data = (folder / filename).read_bytes()
    assert source.read(filename, 8, 16) == data[8:16]
    tag = hub.tag(data, large=origin == "cdn")
    hub.tamper = on(origin, lambda reply: reply if reply.status == 302 else change(reply))
    hub.forget()
    message = refused(source.read, filename, 8, 16)
    assert message.startswith(f"owner/tiny/{filename}")
    assert said.format(size=len(data), tag=tag) in message
    assert len(hub.asked(origin)) == 1


def test_etags_may_be_weak(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    source.read(WEIGHTS, 8, 16)
    hub.tamper = on("cdn", lambda reply: reply.with_headers(ETag=f"W/{reply.headers['ETag']}"))
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_a_file_that_is_not_that_of_the_listing(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Linked_Etag=f'"{"f" * 64}"'))
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message.startswith("owner/tiny/model.safetensors is not the file of its listing (sha256 ffffffffffff… in ")
    assert [r.origin for r in hub.requests] == ["hub", "hub", "cdn"]
    # What is no hash of the content only has to stay the same.
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Linked_Etag='"storage-7"'))
    source = open_source("owner/tiny")
    source.read(WEIGHTS, 8, 16)
    hub.expire_signed_urls()
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Linked_Etag='"storage-8"'))
    assert "changed while it was read (ETag storage-8 after storage-7)" in refused(source.read, WEIGHTS, 8, 16)


def test_another_commit(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Repo_Commit="f" * 40))
    for filename in [WEIGHTS, "config.json"]:
        assert f"was answered with commit {'f' * 40} in place of {source.commit}" in refused(
            source.read, filename, 0, 8
        )
    assert len(hub.asked("hub")) == 1 + 2


def test_another_commit_further_on(hub, folder):
    hub.add("owner/tiny", folder)
    hub.renamed["owner/old"] = "owner/tiny"
    source = open_source("owner/old")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Repo_Commit="f" * 40) if reply.status == 302 else reply)
    assert f"was answered with commit {'f' * 40}" in refused(source.read, WEIGHTS, 0, 8)


def test_a_range_past_the_end(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    size = source.sizes[WEIGHTS]
    assert f"has no bytes {size} to {size + 7}" in refused(source.read, WEIGHTS, size, size + 8)
    assert "did not answer with the range" in refused(source.read, WEIGHTS, size - 4, size + 4)


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize(
    "reply",
    [Reply(404, {"Content-Length": "1000000000"}, b"[", stall=True), Reply(404, {}, b"[]"), Reply(404, {}, b"\xff")],
    ids=["endless", "a list", "no text"],
)
def test_the_body_of_a_refusal_is_not_looked_at(hub, folder, origin, reply):
    hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    hub.tamper = on(origin, lambda _: reply)
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message == "the Hub answered HTTP 404 for owner/tiny, file model.safetensors: try again later"


def test_a_listed_file_that_is_not_there(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_source("owner/tiny")
    del hub.repositories["owner/tiny"].history[commit][WEIGHTS]
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message == f"owner/tiny has no file {WEIGHTS} at commit {commit}, though it lists one: try again later"
    assert len(hub.asked("hub")) == 2


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
