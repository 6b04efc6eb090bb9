"""Which reply is taken for the range that was asked for; anything else never becomes a result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analyzer.base.errors import SourceError, shown
from analyzer.source.patience import Passing, origin_of
from analyzer.source.signed_urls import HubFile

if TYPE_CHECKING:
    import httpx2


def check_reply(name: str, commit: str | None, response: httpx2.Response, file: HubFile, start: int, stop: int) -> None:
    """Accept only bytes `start` to `stop` (exclusive) of the file and commit that were pinned.

    `name` is what errors call the file. Raises SourceError where the reply is of another file, commit or kind,
    Passing where the range is another one.
    """
    hops = [*response.history, response]
    for hop in hops:
        got_commit = hop.headers.get("X-Repo-Commit", commit)
        if got_commit != commit:
            raise SourceError(f"{name} was answered with commit {shown(got_commit)} in place of {commit}: scan again")
    kind = response.headers.get("Content-Type", "")
    if response.status_code != 206 or kind.startswith("text/html"):
        raise SourceError(
            f"{name}: the server did not answer with the range that was asked for (HTTP {response.status_code}"
            f"{', ' + shown(kind, 40) if kind else ''}): a proxy may be in the way"
        )
    got = response.headers.get("Content-Range", "none")
    total = got.rpartition("/")[2]
    if total.isascii() and total.isdigit() and total != str(file.size):
        raise SourceError(
            f"{name} has {shown(total, 20)} bytes, not the {file.size} of its listing: it changed, scan again"
        )
    if got != f"bytes {start}-{stop - 1}/{file.size}":
        raise Passing(
            f"the server did not answer with the range that was asked for ({shown(got, 60)} in place of "
            f"{start}-{stop - 1}/{file.size})"
        )
    linked = next((hop.headers["X-Linked-Etag"] for hop in hops if "X-Linked-Etag" in hop.headers), None)
    if file.sha256 and linked and re.fullmatch(r"[0-9a-f]{64}", _opaque(linked)) and _opaque(linked) != file.sha256:
        raise SourceError(
            f"{name} is not the file of its listing (sha256 {_opaque(linked)[:12]}… in place of "
            f"{file.sha256[:12]}…): it changed, scan again"
        )
    for origin, tag in ((origin_of(response.url), response.headers.get("ETag")), ("linked", linked)):
        known = file.tags.setdefault(origin, _opaque(tag)) if tag else None
        if tag and known != _opaque(tag):
            raise SourceError(
                f"{name} changed while it was read (ETag {shown(_opaque(tag))} after {shown(known)}): scan again"
            )


def without_body(response: httpx2.Response) -> httpx2.Response:
    """Return a reply without its body, which may be anything and endless: what it says is in the headers."""
    import httpx2

    headers = {name: value for name, value in response.headers.items() if name.startswith("x-error-")}
    return httpx2.Response(response.status_code, headers=headers, request=response.request)


def _opaque(tag: str) -> str:
    """Return what an ETag says, whether it is weak or not."""
    return tag.removeprefix("W/").strip('"')
