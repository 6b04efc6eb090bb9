"""What may pass is tried again: which faults, how often, how long a server may ask to wait."""

from __future__ import annotations

import email.utils
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from analyzer.base.errors import NetworkError, shown

if TYPE_CHECKING:
    import httpx2


T = TypeVar("T")

# Seconds to wait before each further try; the client's own retries cover neither bodies nor the listing of files.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
MAX_WAIT_S = 300.0  # what a server may ask us to wait; its rate limits are counted over five minutes
SLOW_S, SLOW_BYTES = 30.0, 4096  # a body that brings less than so many bytes in so many seconds has stalled
SAID = 80  # printable characters of a refusal that are shown
REFUSALS = 3  # how often a URL may be refused that was signed just before
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be other ones soon


class Passing(Exception):  # noqa: N818 - never leaves this file
    """A fault that may be over soon; `wait_s` is what the server asks to wait, `tries` after how many it is no more.

    With `stays` it is none either where the next try tells the same.
    """

    def __init__(
        self,
        what: str,
        wait_s: float = 0.0,
        *,
        advice: str = "try again later",
        tries: int | None = None,
        stays: bool = False,
    ) -> None:
        super().__init__(what)
        self.wait_s = wait_s
        self.advice = advice
        self.tries = tries
        self.stays = stays

    @classmethod
    def of_status(cls, response: httpx2.Response) -> Passing:
        """Return the fault that a reply tells by its status."""
        return cls(f"{origin_of(response.url)} answered HTTP {response.status_code}", _asked_to_wait(response))

    @classmethod
    def of_refusal(cls, response: httpx2.Response) -> Passing:
        """Return the fault that a URL signed just now was refused, with the reply's own words."""
        said = said_by(response)
        what = f"{origin_of(response.url)} refused it (HTTP {response.status_code}{': ' + said if said else ''})"
        return cls(what, tries=REFUSALS)

    @classmethod
    def of_network(cls, error: httpx2.TransportError) -> Passing:
        """Return the fault that no reply came, or only a part of one."""
        import httpx2

        never = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        what = "cannot reach" if never else "lost the connection to"
        reason = shown(error) or type(error).__name__
        return cls(f"{what} {origin_of(error.request.url)} ({reason})", advice="check the network, then try again")


def patiently(attempt: Callable[[], T], name: str, *, pauses: int | None = None) -> T:
    """Return what `attempt` returns, tried again after each passing fault until pauses or patience run out.

    `pauses` is how many of PAUSES there are, by default all. Raises NetworkError that begins with `name`.
    """
    import httpx2

    waited = asked = 0.0
    fault = Passing("")
    for tries, pause in enumerate((*PAUSES[:pauses], None), start=1):
        before = str(fault)
        try:
            return attempt()
        except Passing as error:
            fault = error
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            if distrusted := certificate_fault(error):
                raise NetworkError(f"{name}: {origin_of(error.request.url)} {distrusted}") from error
            fault = Passing.of_network(error)
        if tries == fault.tries or (fault.stays and str(fault) == before):
            break
        asked += fault.wait_s
        if asked > MAX_WAIT_S:
            raise NetworkError(f"{name}: {fault} and asks to wait {fault.wait_s:.0f} s: try again then") from fault
        if pause is not None:
            time.sleep(max(pause, fault.wait_s))
            waited += max(pause, fault.wait_s)
    raise NetworkError(f"{name}: {fault}; tried {tries} times over {waited:.0f} s: {fault.advice}") from fault


def in_time(pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    """Pass a body on, as long as it does not trickle or grow beyond what was asked for."""
    got, since, mark = 0, 0, time.monotonic()
    for piece in pieces:
        got, since = got + len(piece), since + len(piece)
        if got > most:
            raise Passing(f"the server sent more than the {most} bytes that were asked for")
        yield piece
        now = time.monotonic()
        if now - mark > SLOW_S:
            if since < SLOW_BYTES and got < most:
                raise Passing(f"the server sent only {since} bytes in {now - mark:.0f} s")
            since, mark = 0, now


def first_words(text: str) -> str:
    """Return what a refusal says of itself: its first printable characters, without markup."""
    words = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    return "".join(c for c in words if c.isprintable())[:SAID] if re.search(r"\w", words) else ""


def said_by(response: httpx2.Response) -> str:
    """Return the first words of a reply. Only what comes first of its body is waited for: it may be endless."""
    import httpx2

    said = response.headers.get("X-Error-Message", "")
    with suppress(httpx2.HTTPError, httpx2.StreamError):
        said = said or next(response.iter_raw(), b"").decode("utf-8", "replace")
    return first_words(said)


def certificate_fault(error: BaseException | None) -> str | None:
    """Return what to say where a server's certificate is not trusted, the cause of this error; else null."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    ignored = next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)), None)
    return (
        f"has a certificate that is not trusted ({shown(error.verify_message)}): set SSL_CERT_FILE to a file with your "
        f"network's certificates{f' ({ignored} is not looked at)' if ignored else ''}"
    )


def origin_of(url: httpx2.URL) -> str:
    """Return a URL's scheme, host and port."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _asked_to_wait(response: httpx2.Response) -> float:
    """Return the seconds that a server asks to wait before the next try, by Retry-After or its rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = response.headers.get("Retry-After", "")
    if asked.isascii() and asked.isdigit():
        return float(asked[:9])
    with suppress(ValueError, OverflowError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return float(limit.reset_in_seconds) if limit is not None else 0.0
