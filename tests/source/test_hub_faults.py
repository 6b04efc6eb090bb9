"""hub.py when the network or the Hub fails: what is tried again, what is waited for, what is given up in one line."""

import email.utils
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from checkpoints import refused
from hub_server import NOTHING, PASSING_FAULTS, Reply, on, once_a_read, status

from analyzer.source import patience
from analyzer.source.opening import open_model
from analyzer.source.signed_urls import HubFile

WEIGHTS = "model.safetensors"

# Faults that pass


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_what_passes_is_tried_again(hub, folder, fault, origin):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = once_a_read(origin, PASSING_FAULTS[fault])
    for filename in (WEIGHTS, "config.json"):
        data = (folder / filename).read_bytes()
        for start, stop in [(8, 16), (1, len(data))]:
            assert source.read(filename, start, stop) == data[start:stop]


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_what_does_not_pass_is_given_up(hub, folder, fault):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
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
        (lambda reply: reply.with_headers(Content_Range="bytes 8-16/*"), "(bytes 8-16/* in place of 8-15/3232)"),
        (lambda reply: reply.with_headers(Content_Range="bytes=8-15/3232"), "(bytes=8-15/3232 in place of 8-15/3232)"),
        (lambda reply: replace(reply, body=reply.body + b"more"), "the server sent more than the 8 bytes"),
        (lambda reply: replace(reply, body=b""), "the server sent only 0 of 8 bytes"),
        (lambda reply: replace(reply, cut=0), "lost the connection to {cdn} (peer closed connection"),
        (lambda reply: replace(reply, cut=NOTHING), "lost the connection to {cdn} (Server disconnected"),
        (status(503), "{cdn} answered HTTP 503"),
        (status(403), "{cdn} refused it (HTTP 403); tried 3 times"),  # of a URL that was just signed
    ],
)
def test_what_is_said_of_it(hub, folder, change, said):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on("cdn", change)
    assert said.format(cdn=hub.cdn_url) in refused(source.read, WEIGHTS, 8, 16)
    hub.tamper = lambda request, reply: reply
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]


def test_a_body_that_breaks_off_goes_on_where_it_broke(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on("cdn", lambda reply: replace(reply, cut=5))
    assert source.read(WEIGHTS, 8, 24) == (folder / WEIGHTS).read_bytes()[8:24]
    assert [r.range for r in hub.asked("cdn")] == ["bytes=8-23", "bytes=13-23", "bytes=18-23", "bytes=23-23"]


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
def test_a_connection_that_stalls(hub, folder, monkeypatch, origin):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    for cut in (NOTHING, 0, 5):
        hub.tamper = once_a_read(origin, lambda reply, cut=cut: replace(reply, cut=cut, stall=True))
        assert source.read(WEIGHTS, 8, 24) == (folder / WEIGHTS).read_bytes()[8:24]
        assert source.read("config.json", 8, 24) == (folder / "config.json").read_bytes()[8:24]
    hub.tamper = on("cdn", lambda reply: replace(reply, cut=5, stall=True))
    hub.forget()
    assert f"lost the connection to {hub.cdn_url} (timed out); tried 4" in refused(source.read, WEIGHTS, 8, 80)
    assert len(hub.asked("cdn")) == 4


def test_a_body_that_trickles(hub, folder, monkeypatch):
    monkeypatch.setattr(patience, "SLOW_S", 0.05)
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    trickle = lambda reply: replace(reply, drip=0.01)  # noqa: E731
    hub.tamper = once_a_read("cdn", trickle)
    assert source.read(WEIGHTS, 8, 3000) == (folder / WEIGHTS).read_bytes()[8:3000]
    assert len(hub.asked("cdn")) == 2
    hub.tamper = on("cdn", trickle)
    assert "the server sent only" in refused(source.read, WEIGHTS, 8, 3000)
    monkeypatch.setattr(patience, "SLOW_BYTES", 1)  # slow, but not as slow as that
    assert source.read(WEIGHTS, 8, 40) == (folder / WEIGHTS).read_bytes()[8:40]


def test_a_body_that_begins_well_and_then_trickles(monkeypatch):
    ticks = iter([0, 10, 40, 50, 80])
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    got = []
    with pytest.raises(patience.Passing, match="the server sent only 7 bytes in 40 s"):
        for piece in patience.in_time(iter([bytes(9000), bytes(9000), bytes(3), bytes(4), bytes(5)]), 10**6):
            got.append(len(piece))
    assert got == [9000, 9000, 3, 4]


def test_a_reader_with_an_old_url_does_not_forget_a_new_one():
    file = HubFile(WEIGHTS, 8, None, signed_url="new", reused=True)
    file.distrust("old")
    assert (file.signed_url, file.one_range_only) == ("new", False)
    file.distrust("new")
    assert (file.signed_url, file.one_range_only) == (None, False)


def test_sixteen_readers_that_fail_at_once(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
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
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(patience, "PAUSES", (0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
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
    source = open_model("owner/tiny")
    hub.tamper = lambda request, reply: Reply(number, headers, b"busy")
    assert f"; tried 7 times over {sum(slept):.0f} s: try again later" in refused(source.read, WEIGHTS, 8, 16)
    assert clock.slept == slept
    assert len(hub.asked("hub")) == 1 + 7


def test_a_date_to_wait_for(hub, folder, clock):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
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
    source = open_model("owner/tiny")
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
    assert open_model("owner/tiny").read("config.json", 0, 1) == b"{"
    hub.tamper = on("hub", PASSING_FAULTS[fault])
    assert f"the Hub cannot be asked for it: lost the connection to {hub.url} (" in refused(open_model, "owner/tiny")


@pytest.mark.parametrize("fault", [fault for fault in PASSING_FAULTS if fault[0] in "45"])
def test_the_listing_is_tried_again(hub, folder, clock, fault):
    hub.add("owner/tiny", folder)
    hub.tamper = once_a_read("hub", PASSING_FAULTS[fault])
    assert open_model("owner/tiny").read("config.json", 0, 1) == b"{"
    hub.forget()
    clock.slept.clear()
    hub.tamper = on("hub", PASSING_FAULTS[fault])
    message = refused(open_model, "owner/tiny")
    assert message == (
        f"there is no folder owner/tiny, and the Hub cannot be asked for it: {hub.url} answered HTTP {fault[:3]}; "
        "tried 4 times over 4 s: try again later"
    )
    assert clock.slept == [0.5, 1, 2]
    assert len(hub.requests) == 4


# Signed URLs


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
