"""Signed URLs that expire, are bound to a range, or lead nowhere."""

from dataclasses import replace

import pytest
from checkpoints import refused
from hub_faults import on, once_a_read, status

from analyzer.source.hub.signed_urls import HubFile
from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


def test_a_reader_with_an_old_url_does_not_forget_a_new_one():
    file = HubFile(WEIGHTS, 8, None, signed_url="new", reused=True)
    file.distrust("old")
    assert (file.signed_url, file.one_range_only) == ("new", False)
    file.distrust("new")
    assert (file.signed_url, file.one_range_only) == (None, False)


def test_signed_urls_may_expire_between_reads(hub, folder, clock):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
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
    source = open_model("owner/tiny")
    source.read(WEIGHTS, 0, 8)
    hub.tamper = once_a_read("cdn", status(number))
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_signed_urls_that_serve_a_single_range(hub, folder, clock):
    hub.bind_range = True
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.forget()
    hub.tamper = once_a_read("cdn", lambda reply: replace(reply, cut=4))
    for start in range(0, 80, 8):
        assert source.read(WEIGHTS, start, start + 8) == (folder / WEIGHTS).read_bytes()[start : start + 8]
    # It is tried only once whether a URL serves another range.
    assert len(hub.asked("hub")) == 2 * 10
    assert len(hub.asked("cdn")) == 2 * 10 + 1


def test_a_url_that_is_refused_when_fresh_is_a_fault_that_may_pass(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = once_a_read("cdn", status(403))
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]
    assert [r.origin for r in hub.requests[1:]] == ["hub", "cdn"] * 2
    hub.tamper = on("cdn", status(403))
    hub.forget()
    assert "refused it (HTTP 403); tried 3 times" in refused(source.read, WEIGHTS, 8, 16)
    assert len(hub.asked("hub")) == 3


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
    source = open_model("owner/tiny", token="hf_right")
    hub.tamper = on("hub", lambda reply: reply.with_headers(Location=location.format(commit=commit)))
    message = refused(source.read, WEIGHTS, 8, 16)
    assert said in message
    assert "secret" not in message
    assert "hf_right" not in message
