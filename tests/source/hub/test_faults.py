"""hub.py when the network or the Hub fails: what is tried again, what is waited for, what is given up in one line."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from checkpoints import refused
from hub_faults import OTHER_RANGES, PASSING_FAULTS, on, once_a_read, status
from hub_server import NOTHING

from analyzer.source.hub import patience
from analyzer.source.opening import open_model

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


@pytest.mark.parametrize("fault", [fault for fault in PASSING_FAULTS if fault not in OTHER_RANGES])
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


@pytest.mark.parametrize("fault", OTHER_RANGES)
def test_the_same_other_range_twice_is_no_passing_fault(hub, folder, fault):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    hub.tamper = on("cdn", PASSING_FAULTS[fault])
    message = refused(source.read, WEIGHTS, 8, 80)
    assert message.startswith("owner/tiny/model.safetensors: the server did not answer with the range that was asked")
    assert message.endswith("; tried 2 times over 0 s: a proxy may be in the way")
    assert len(hub.asked("cdn")) == 2


def test_other_ranges_that_differ_are_tried_again(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")

    def tamper(request, reply):
        count = len(hub.asked("cdn"))
        if request.origin != "cdn" or count > 3:
            return reply
        return reply.with_headers(Content_Range=f"bytes {count}-{count + 7}/3232")

    hub.tamper = tamper
    assert source.read(WEIGHTS, 8, 16) == (folder / WEIGHTS).read_bytes()[8:16]
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
