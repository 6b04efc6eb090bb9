"""What goes wrong between the stand-in Hub and its clients: changes of replies, for `hub.tamper`."""

import re
import threading
from dataclasses import replace
from urllib.parse import urlsplit

from hub_server import NOTHING, Reply


def shift(reply):
    """Answer with the range one byte further on."""
    if reply.status != 206:
        return reply
    first, last, size = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers["Content-Range"]).groups()
    return reply.with_headers(Content_Range=f"bytes {int(first) + 1}-{int(last) + 1}/{size}")


def halve(reply):
    """Answer with the first half of the range, and say so."""
    if reply.status != 206:
        return reply
    first, _, size = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers["Content-Range"]).groups()
    body = reply.body[: len(reply.body) // 2]
    return replace(reply, body=body).with_headers(Content_Range=f"bytes {first}-{int(first) + len(body) - 1}/{size}")


def status(number, **headers):
    """Return a change into a reply of this status."""
    return lambda reply: Reply(number, {name.replace("_", "-"): value for name, value in headers.items()}, b"{}")


# What a network does to replies that may well be right the next time.
PASSING_FAULTS = {
    "reset before the headers": lambda reply: replace(reply, cut=NOTHING, reset=True),
    "closed before the headers": lambda reply: replace(reply, cut=NOTHING),
    "closed after the headers": lambda reply: replace(reply, cut=0),
    "reset in mid-body": lambda reply: replace(reply, cut=len(reply.body) // 2, reset=True),
    "closed in mid-body": lambda reply: replace(reply, cut=len(reply.body) // 2),
    "short, though whole": lambda reply: replace(reply, body=reply.body[: len(reply.body) // 2]),
    "short, and says so": halve,
    "long": lambda reply: replace(reply, body=reply.body + b"more"),
    "shifted": shift,
    **{str(number): status(number) for number in (408, 425, 429, 500, 502, 503, 504)},
    **{f"{number} with Retry-After": status(number, Retry_After="0") for number in (408, 425, 429, 500, 502, 503, 504)},
    "429 until a date": status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 with RateLimit": status(
        429, RateLimit='"resolvers";r=0;t=0', RateLimit_Policy='"fixed window";"resolvers";q=3000;w=300'
    ),
}
OTHER_RANGES = ("shifted", "short, and says so")  # of them, those that are none where they come twice


def on(origin, change):
    """Return a tamperer that changes the replies of one origin only."""
    return lambda request, reply: change(reply) if request.origin == origin else reply


def once_a_read(origin, change):
    """Return a tamperer that changes the first reply of one origin to each read, and lets all others be."""
    seen, looking = set(), threading.Lock()

    def tamper(request, reply):
        read = read_of(request)
        with looking:
            first = request.origin == origin and read not in seen
            seen.add(read)
        return change(reply) if first else reply

    return tamper


def read_of(request):
    """Return what tells a read: the file and the last byte, which stays the same when one goes on in the middle."""
    return urlsplit(request.path).path, (request.range or "").rpartition("-")[2]
