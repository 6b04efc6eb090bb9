"""Which replies are taken for what was asked for, and which no further try would make right."""

import json
import re
from dataclasses import replace

import pytest
from checkpoints import refused
from hub_faults import PASSING_FAULTS, on, once_a_read, status
from hub_server import Reply

from analyzer.base.errors import SourceError
from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"

# Replies that are surely right


@pytest.mark.parametrize("origin", ["hub", "cdn"])
def test_a_total_may_be_left_open(hub, folder, origin):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")

    def leave_open(reply):
        given = reply.headers.get("Content-Range")
        return reply.with_headers(Content_Range=re.sub(r"/\d+", "/*", given)) if given else reply

    hub.tamper = on(origin, leave_open)
    for filename in (WEIGHTS, "config.json"):
        data = (folder / filename).read_bytes()
        for start, stop in [(8, 16), (0, len(data)), (len(data) - 1, len(data))]:
            assert source.read(filename, start, stop) == data[start:stop]


def test_an_open_total_does_not_excuse_another_length(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on(
        "cdn", lambda reply: replace(reply, body=reply.body[:-1]).with_headers(Content_Range="bytes 8-15/*")
    )
    assert "owner/tiny/model.safetensors: the server " in refused(source.read, WEIGHTS, 8, 16)


def whole(data, **headers):
    """Return a change into the reply of a server that knows no ranges: the whole file."""
    return lambda reply: Reply(200, {name.replace("_", "-"): value for name, value in headers.items()}, data)


def test_all_of_a_file_is_what_was_asked_for(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    data = (folder / "config.json").read_bytes()
    hub.tamper = on("hub", whole(data, Content_Type="application/json"))
    assert source.read("config.json", 0, len(data)) == data
    for start, stop in [(0, 8), (1, len(data))]:
        message = refused(source.read, "config.json", start, stop)
        assert "did not answer with the range that was asked for (HTTP 200, application/json)" in message
    assert len(hub.asked("hub")) == 1 + 3


def test_a_whole_file_that_breaks_off_is_begun_anew(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    data = (folder / "config.json").read_bytes()
    cut = once_a_read("hub", lambda reply: replace(reply, cut=7))
    hub.tamper = lambda request, reply: cut(request, whole(data)(reply))
    assert source.read("config.json", 0, len(data)) == data
    assert [r.range for r in hub.asked("hub")[1:]] == [f"bytes=0-{len(data) - 1}"] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: whole(data + b" "), "has {more} bytes, not the {size} of its listing: it changed, scan again"),
        (lambda data: whole(data[1:]), "has {less} bytes, not the {size} of its listing: it changed, scan again"),
        (lambda data: whole(data, Content_Encoding="gzip"), "(HTTP 200): a proxy may be in the way"),
        (lambda data: whole(data, Content_Type="text/html"), "(HTTP 200, text/html): a proxy may be in the way"),
    ],
    ids=["longer", "shorter", "packed", "a web page"],
)
def test_all_of_another_file_is_not(hub, folder, change, said):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    data = (folder / "config.json").read_bytes()
    hub.tamper = on("hub", change(data))
    sizes = {"size": len(data), "more": len(data) + 1, "less": len(data) - 1}
    assert said.format(**sizes) in refused(source.read, "config.json", 0, len(data))
    assert len(hub.asked("hub")) == 2


# Listings without sizes, as some mirrors give them


def without_sizes(request, reply, **size):
    """Take all that is known of the files out of a listing."""
    if not request.path.startswith("/api/"):
        return reply
    listing = json.loads(reply.body)
    listing["siblings"] = [{"rfilename": sibling["rfilename"], **size} for sibling in listing["siblings"]]
    return Reply(200, {}, json.dumps(listing).encode())


def test_sizes_that_are_not_listed_are_asked_for(hub, folder):
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("abc")
    hub.add("owner/tiny", folder)
    hub.tamper = without_sizes
    source = open_model("owner/tiny")
    assert len(hub.requests) == 1  # nobody pays for what is not wanted
    assert set(source.sizes) == {path.name for path in folder.iterdir()}
    assert len(hub.requests) == 1
    for path in folder.iterdir():
        assert source.sizes[path.name] == path.stat().st_size
        assert source.sizes[path.name] == path.stat().st_size
        assert path.name in source.sizes
    assert len(hub.asked("hub")) == 1 + 4
    assert {r.range for r in hub.requests[1:]} == {"bytes=0-7"}
    assert "gone.json" not in source.sizes
    data = (folder / WEIGHTS).read_bytes()
    assert source.read(WEIGHTS, 8, len(data)) == data[8:]
    assert "has no bytes" in refused(source.read, WEIGHTS, len(data), len(data) + 1)


@pytest.mark.parametrize("size", [-1, None, "7", 7.5])
def test_sizes_that_are_none(hub, folder, size):
    hub.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: without_sizes(request, reply, size=size)
    assert open_model("owner/tiny").sizes[WEIGHTS] == (folder / WEIGHTS).stat().st_size


def test_a_file_may_be_read_before_its_size_was_asked_for(hub, folder):
    hub.add("owner/tiny", folder)
    hub.tamper = without_sizes
    source = open_model("owner/tiny")
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]
    assert [r.range for r in hub.asked("cdn")] == ["bytes=0-7", "bytes=8-15"]


def test_sizes_of_a_server_that_knows_no_ranges(hub, folder):
    hub.add("owner/tiny", folder)
    data = (folder / "config.json").read_bytes()
    ranges_ignored = whole(data)
    hub.tamper = lambda request, reply: (
        ranges_ignored(reply) if request.path.endswith("config.json") else without_sizes(request, reply)
    )
    source = open_model("owner/tiny")
    assert source.sizes["config.json"] == len(data)
    assert source.read("config.json", 0, len(data)) == data


def test_sizes_that_nobody_tells(hub, folder):
    hub.add("owner/tiny", folder)
    tell_none = on("cdn", lambda reply: reply.with_headers(Content_Range="bytes 0-7/*"))
    hub.tamper = lambda request, reply: without_sizes(request, tell_none(request, reply))
    source = open_model("owner/tiny")
    with pytest.raises(SourceError, match=r"neither the listing nor the server's reply tells how many bytes it has"):
        source.sizes[WEIGHTS]


def test_sizes_are_asked_for_patiently(hub, folder):
    hub.add("owner/tiny", folder)
    fail_once = once_a_read("cdn", PASSING_FAULTS["closed before the headers"])
    hub.tamper = lambda request, reply: without_sizes(request, fail_once(request, reply))
    assert open_model("owner/tiny").sizes[WEIGHTS] == (folder / WEIGHTS).stat().st_size


def test_a_cached_file_has_its_size_from_there(hub, folder):
    from huggingface_hub import hf_hub_download

    hub.add("owner/tiny", folder)
    hf_hub_download("owner/tiny", WEIGHTS)
    hub.forget()
    hub.tamper = without_sizes
    assert open_model("owner/tiny").sizes[WEIGHTS] == (folder / WEIGHTS).stat().st_size
    assert len(hub.requests) == 1


def test_a_listing_without_files(hub, folder):
    commit = hub.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: Reply(200, {}, b'{"id": "owner/tiny", "sha": "%s"}' % commit.encode())
    assert "the Hub did not list the files of owner/tiny" in refused(open_model, "owner/tiny")


# Refusals


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>", ": AccessDenied"),
        (b"Sorry,\tthe \x1b[31mrange\x1b[0m is too far out", ": Sorry, the [31mrange[0m is too far out"),
        ("Accès refusé ".encode() + b"x" * 10**6, ": Accès refusé " + "x" * 67),
        (b'{"error": "no"}', ': {"error": "no"}'),
        (b"{}", ""),
        (b"", ""),
        (b"\xff\xfe", ""),
    ],
    ids=["XML", "control characters", "long", "JSON", "nothing in JSON", "nothing", "no text"],
)
def test_a_refusal_in_its_own_words(hub, folder, origin, body, said):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on(origin, lambda reply: Reply(403, {}, body))
    message = refused(source.read, WEIGHTS, 8, 16)
    assert f"(HTTP 403{said})" in message
    assert "log in" not in message  # the listing was allowed
    if origin == "cdn":
        assert message == (
            f"owner/tiny/{WEIGHTS}: {hub.cdn_url} refused it (HTTP 403{said}); tried 3 times over 0 s: try again later"
        )
    else:
        assert message == (
            f"the Hub refused owner/tiny, file {WEIGHTS} (HTTP 403{said}), though it lists the model: try again later"
        )
        assert len(hub.requests) == 2


def test_a_refusal_that_says_nothing_for_long(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on("cdn", lambda reply: Reply(403, {"Content-Length": "100"}, cut=0, stall=True))
    assert "refused it (HTTP 403); tried 3 times" in refused(source.read, WEIGHTS, 8, 16)


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
        (
            lambda reply: reply.with_headers(Content_Range=None),
            ": the server answered HTTP 206 and did not say with which range (no Content-Range): a proxy may be in the",
        ),
        (lambda reply: reply.with_headers(Content_Encoding="gzip"), "(HTTP 206): a proxy may be in the way"),
    ],
    ids=[
        "another file",
        "not partial",
        "HTML",
        "partial HTML",
        "another size",
        "another ETag",
        "out of range",
        "no range named",
        "packed",
    ],
)
def test_another_range(hub, folder, origin, change, said):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
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
    source = open_model("owner/tiny")
    source.read(WEIGHTS, 8, 16)
    hub.tamper = on("cdn", lambda reply: reply.with_headers(ETag=f"W/{reply.headers['ETag']}"))
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_a_file_that_is_not_that_of_the_listing(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Linked_Etag=f'"{"f" * 64}"'))
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message.startswith("owner/tiny/model.safetensors is not the file of its listing (sha256 ffffffffffff… in ")
    assert [r.origin for r in hub.requests] == ["hub", "hub", "cdn"]
    # What is no hash of the content only has to stay the same.
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Linked_Etag='"storage-7"'))
    source = open_model("owner/tiny")
    source.read(WEIGHTS, 8, 16)
    hub.expire_signed_urls()
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Linked_Etag='"storage-8"'))
    assert "changed while it was read (ETag storage-8 after storage-7)" in refused(source.read, WEIGHTS, 8, 16)


def test_another_commit(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Repo_Commit="f" * 40))
    for filename in [WEIGHTS, "config.json"]:
        assert f"was answered with commit {'f' * 40} in place of {source.commit}" in refused(
            source.read, filename, 0, 8
        )
    assert len(hub.asked("hub")) == 1 + 2


def test_another_commit_further_on(hub, folder):
    hub.add("owner/tiny", folder)
    hub.renamed["owner/old"] = "owner/tiny"
    source = open_model("owner/old")
    hub.tamper = on("hub", lambda reply: reply.with_headers(X_Repo_Commit="f" * 40) if reply.status == 302 else reply)
    assert f"was answered with commit {'f' * 40}" in refused(source.read, WEIGHTS, 0, 8)


def test_a_range_past_the_end(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    size = source.sizes[WEIGHTS]
    assert f"has no bytes {size} to {size + 7}" in refused(source.read, WEIGHTS, size, size + 8)
    assert "did not answer with the range" in refused(source.read, WEIGHTS, size - 4, size + 4)


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize(
    "reply",
    [Reply(404, {"Content-Length": "1000000000"}, b"[", stall=True), Reply(404, {}, b"[]"), Reply(404, {}, b"\xff")],
    ids=["endless", "a list", "no text"],
)
def test_a_refusal_is_not_waited_for_to_the_end(hub, folder, origin, reply):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on(origin, lambda _: reply)
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message in (
        "the Hub answered HTTP 404 for owner/tiny, file model.safetensors: try again later",
        f"owner/tiny/model.safetensors: {hub.cdn_url} refused it (HTTP 404); tried 3 times over 0 s: try again later",
    )


def test_a_listed_file_that_is_not_there(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    del hub.repositories["owner/tiny"].history[commit][WEIGHTS]
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message == f"owner/tiny has no file {WEIGHTS} at commit {commit}, though it lists one: try again later"
    assert len(hub.asked("hub")) == 2
