"""Replies that are not what was asked for, which no further try would make right."""

from dataclasses import replace

import pytest
from checkpoints import refused
from hub_server import Reply, on, status

from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


def test_a_file_that_changes_in_mid_body_is_not_put_together(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")

    def tamper(request, reply):
        if len(hub.asked("cdn")) == 1:
            return replace(reply, cut=5)
        return replace(reply, body=bytes(len(reply.body))).with_headers(ETag='"another"')

    hub.tamper = lambda request, reply: tamper(request, reply) if request.origin == "cdn" else reply
    assert "changed while it was read (ETag another after " in refused(source.read, WEIGHTS, 8, 24)


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
def test_the_body_of_a_refusal_is_not_looked_at(hub, folder, origin, reply):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on(origin, lambda _: reply)
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message == "the Hub answered HTTP 404 for owner/tiny, file model.safetensors: try again later"


def test_a_listed_file_that_is_not_there(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    del hub.repositories["owner/tiny"].history[commit][WEIGHTS]
    message = refused(source.read, WEIGHTS, 8, 16)
    assert message == f"owner/tiny has no file {WEIGHTS} at commit {commit}, though it lists one: try again later"
    assert len(hub.asked("hub")) == 2
