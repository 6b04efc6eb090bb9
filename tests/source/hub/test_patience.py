"""How often a passing fault is tried again, and how long anybody waits."""

import email.utils
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from checkpoints import refused
from hub_faults import on, once_a_read, status
from hub_server import Reply

from analyzer.source.hub import patience
from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


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
