"""Which reply is taken for the range that was asked for; anything else never becomes a result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analyzer.base.errors import NetworkError, shown
from analyzer.source.hub.patience import PASSING, Passing, origin_of, said_by
from analyzer.source.hub.signed_urls import HubFile

if TYPE_CHECKING:
    import httpx2


def check_status(response: httpx2.Response) -> None:
    """Let through a reply that is no refusal, or tells at least the size of the file (HTTP 416).

    Raises Passing for what may be over soon, and what the Hub's client makes of any other refusal.
    """
    from huggingface_hub.utils import hf_raise_for_status

    status = response.status_code
    if status in PASSING:
        raise Passing.of_status(response)
    if 400 <= status != 416:
        if is_elsewhere(response) and "X-Error-Code" not in response.headers:  # no Hub, but a CDN
            raise Passing.of_refusal(response)
        hf_raise_for_status(without_body(response))


def is_elsewhere(response: httpx2.Response) -> bool:
    """Tell whether a reply comes from another origin than was asked."""
    return origin_of([*response.history, response][0].url) != origin_of(response.url)


def check_reply(name: str, commit: str | None, response: httpx2.Response, file: HubFile, start: int, stop: int) -> None:
    """Accept only bytes `start` to `stop` (exclusive) of the file and commit that were pinned.

    `name` is what errors call the file. Raises NetworkError where the reply is of another file, commit or kind,
    Passing where the range is another one.
    """
    hops = [*response.history, response]
    for hop in hops:
        got_commit = hop.headers.get("X-Repo-Commit", commit)
        if got_commit != commit:
            raise NetworkError(f"{name} was answered with commit {shown(got_commit)} in place of {commit}: scan again")
    _check_range(name, response, start, stop, file.size)
    linked = next((hop.headers["X-Linked-Etag"] for hop in hops if "X-Linked-Etag" in hop.headers), None)
    if file.sha256 and linked and re.fullmatch(r"[0-9a-f]{64}", _opaque(linked)) and _opaque(linked) != file.sha256:
        raise NetworkError(
            f"{name} is not the file of its listing (sha256 {_opaque(linked)[:12]}… in place of "
            f"{file.sha256[:12]}…): it changed, scan again"
        )
    for origin, tag in ((origin_of(response.url), response.headers.get("ETag")), ("linked", linked)):
        known = file.tags.setdefault(origin, _opaque(tag)) if tag else None
        if tag and known != _opaque(tag):
            raise NetworkError(
                f"{name} changed while it was read (ETag {shown(_opaque(tag))} after {shown(known)}): scan again"
            )


def total_size(name: str, response: httpx2.Response) -> int:
    """Return the size of a whole file as a reply to a request for a range of it tells; else raises NetworkError.

    `name` is what the error calls the file.
    """
    total = _total(response)
    if not re.fullmatch(r"\d{1,18}", total, re.ASCII):
        raise NetworkError(
            f"{name}: neither the listing nor the server's reply tells how many bytes it has: a proxy may be in the way"
        )
    return int(total)


def without_body(response: httpx2.Response) -> httpx2.Response:
    """Return a reply without its body, which may be anything and endless; a refusal keeps the first words of it."""
    import httpx2

    headers = {name: value for name, value in response.headers.items() if name.startswith("x-error-")}
    said = {"error": said_by(response)} if response.is_error else None
    return httpx2.Response(response.status_code, headers=headers, json=said, request=response.request)


def _check_range(name: str, response: httpx2.Response, start: int, stop: int, size: int | None) -> None:
    """Accept a reply whose body is this range: it says so, or it is the whole file, all of which was asked for."""
    if response.status_code == 416:
        raise NetworkError(f"{name} has no bytes {start} to {stop - 1}: it changed since it was listed, scan again")
    whole = response.status_code == 200 and (start, stop) == (0, size)
    kind = response.headers.get("Content-Type", "")
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    if not (whole or response.status_code == 206) or packed or kind.startswith("text/html"):
        raise NetworkError(
            f"{name}: the server did not answer with the range that was asked for (HTTP {response.status_code}"
            f"{', ' + shown(kind, 40) if kind else ''}): a proxy may be in the way"
        )
    got, total = response.headers.get("Content-Range"), _total(response)
    if not whole and got is None:
        raise NetworkError(
            f"{name}: the server answered HTTP 206 and did not say with which range (no Content-Range): "
            "a proxy may be in the way"
        )
    if total.isascii() and total.isdigit() and total != str(size):
        raise NetworkError(
            f"{name} has {shown(total, 20)} bytes, not the {size} of its listing: it changed, scan again"
        )
    if not whole and got not in (f"bytes {start}-{stop - 1}/{size}", f"bytes {start}-{stop - 1}/*"):
        raise Passing(
            f"the server did not answer with the range that was asked for ({shown(got, 60)} in place of "
            f"{start}-{stop - 1}/{size})",
            advice="a proxy may be in the way",
            stays=True,
        )


def _total(response: httpx2.Response) -> str:
    """Return what a reply says is the size of the whole file; "*" or nothing where it does not say."""
    if response.status_code == 200:
        return str(response.headers.get("Content-Length", ""))
    return str(response.headers.get("Content-Range", "").rpartition("/")[2])


def _opaque(tag: str) -> str:
    """Return what an ETag says, whether it is weak or not."""
    return tag.removeprefix("W/").strip('"')
