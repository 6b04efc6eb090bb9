"""The Hub as a source: ranged reads at a pinned commit. With repository.py, all that touches the network."""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from analyzer.errors import SourceError, shown
from analyzer.source import MEBIBYTE, FolderSource, Source, is_plain_path, read_file

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

# Seconds to wait before each further try; the client's own retries cover neither bodies nor the listing of files.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
MAX_WAIT_S = 300.0  # what a server may ask us to wait; its rate limits are counted over five minutes
SLOW_S, SLOW_BYTES = 30.0, 4096  # a body that brings less than so many bytes in so many seconds has stalled
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be other ones soon


def open_hub(model: str, *, revision: str | None, subfolder: str | None, token: str | None) -> Source:
    """Return the source for a model on the Hub or, where HF_HUB_OFFLINE is set, in the Hub's local cache.

    Raises SourceError where there is no such model, or it cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import constants

    # The client's own warnings (each retry, say) would break the one-line contract for errors.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not constants.HF_HUB_OFFLINE:
        return HubSource(model, revision=revision, subfolder=subfolder, token=token)
    with hub_errors(model, revision):
        snapshot = Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns="config.json"))
    return FolderSource(snapshot, subfolder=subfolder, model_id=model, revision=revision, commit=snapshot.name)


class HubSource:
    """A model repository on the Hub, pinned to one commit when it is opened."""

    # Measured with 50 ms a round trip: they fill a link of 4 Gbit/s, and the process stays under 330 MB.
    readers = 16
    block_bytes = 6 * MEBIBYTE

    def __init__(
        self, model: str, *, revision: str | None = None, subfolder: str | None = None, token: str | None = None
    ) -> None:
        """Resolve the revision to a commit and list the files; raises SourceError where the Hub says no."""
        import huggingface_hub
        from huggingface_hub import constants

        self._prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        if self._prefix and not is_plain_path(self._prefix[:-1]):
            raise SourceError(f"--subfolder {shown(subfolder)} is not a plain path inside the repository")
        self.model = model
        self.revision = revision
        self._token = token
        api = huggingface_hub.HfApi(token=token)

        def list_files() -> huggingface_hub.ModelInfo:
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            try:
                return api.model_info(model, revision=revision, files_metadata=True, timeout=timeout)
            except huggingface_hub.errors.HfHubHTTPError as error:
                if error.response.status_code in PASSING:
                    raise Passing.of_status(error.response) from error
                raise

        with hub_errors(model, revision):
            info = patiently(list_files, PAUSES[:3], model)
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise SourceError(f"the Hub named no commit for {model}: try again, or give --revision")
        self.commit: str | None = info.sha
        files = {
            sibling.rfilename.removeprefix(self._prefix): sibling
            for sibling in info.siblings or ()
            if sibling.rfilename.startswith(self._prefix) and isinstance(sibling.size, int)
        }
        self.sizes: Mapping[str, int] = {name: sibling.size or 0 for name, sibling in files.items()}
        self._files = {
            name: _RemoteFile(self._prefix + name, self.sizes[name], sibling.lfs.sha256 if sibling.lfs else None)
            for name, sibling in files.items()
        }
        for file in self._files.values():
            file.cached = self._in_cache(file)

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """See Source.read. What is in the Hub's local cache is read from there."""
        file = self._files.get(filename) or _RemoteFile(self._prefix + filename, stop, None)
        if file.cached is not None:
            return read_file(file.cached, start, stop)
        data = bytearray(stop - start)
        got = 0

        def fetch(url: str | None) -> None:
            nonlocal got
            for piece in self._pieces(file, start + got, stop, url):
                data[got : got + len(piece)] = piece
                got += len(piece)
            if got < len(data):
                raise Passing(f"the server sent only {got} of {len(data)} bytes")

        def go_on() -> None:
            url = file.signed_url
            try:
                fetch(url)
            except SignedUrlRefused:
                file.distrust(url)
                fetch(None)

        with hub_errors(self.model, self.revision, path=file.path, commit=self.commit):
            patiently(go_on, PAUSES, f"{self.model}/{shown(file.path)}")
        return data

    def content(self, filename: str) -> str | None:
        """See Source.content; null too for what is read from the local cache, whose bytes nobody has checked."""
        file = self._files[filename]
        return None if file.cached or file.sha256 is None else f"sha256:{file.sha256}"

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        import huggingface_hub

        patterns = [*weights, "*.json", "*.model", "*.txt", "*.jinja"]  # besides weights: config and tokenizer
        with hub_errors(self.model, self.revision, commit=self.commit):
            snapshot = huggingface_hub.snapshot_download(
                self.model,
                revision=self.commit,
                token=self._token,
                allow_patterns=[self._prefix + pattern for pattern in patterns],
                ignore_patterns=None if self._prefix else ["*/*"],
            )
        return Path(snapshot) / self._prefix

    def _in_cache(self, file: _RemoteFile) -> Path | None:
        """Return where the Hub's local cache has the file, whole."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.model, file.path, revision=self.commit)
        if isinstance(path, str) and Path(path).is_file() and Path(path).stat().st_size == file.size:
            return Path(path)
        return None

    def _pieces(self, file: _RemoteFile, start: int, stop: int, signed_url: str | None) -> Iterator[bytes]:
        """Yield what one request brings of a range, perhaps not all; raises where the reply is not the range.

        The request goes to the signed URL or, without one, to the Hub.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if signed_url is None:
            headers |= build_hf_headers(token=self._token)  # a signed URL must never get the token
        url = signed_url or hf_hub_url(self.model, file.path, revision=self.commit)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            status = response.status_code
            if signed_url and status in (400, 401, 403, 404, 410):
                raise SignedUrlRefused
            elsewhere = bool(signed_url) or _origin(response.url) != _origin([*response.history, response][0].url)
            if status in PASSING or (elsewhere and status == 403):
                raise Passing.of_status(response)
            if status == 416:
                raise SourceError(
                    f"{self.model}/{shown(file.path)} has no bytes {start} to {stop - 1}: it changed since it was "
                    "listed, scan again"
                )
            hf_raise_for_status(without_body(response))
            self._check_reply(response, file, start, stop)
            if signed_url:
                file.reused = True
            elif elsewhere and not file.one_range_only:
                file.signed_url = str(response.url)
            yield from in_time(response.iter_raw(), stop - start)

    def _check_reply(self, response: httpx2.Response, file: _RemoteFile, start: int, stop: int) -> None:
        """Accept only the range that was asked for, of the file and commit that were pinned."""
        name = f"{self.model}/{shown(file.path)}"
        hops = [*response.history, response]
        for hop in hops:
            commit = hop.headers.get("X-Repo-Commit", self.commit)
            if commit != self.commit:
                raise SourceError(
                    f"{name} was answered with commit {shown(commit)} in place of {self.commit}: scan again"
                )
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
        for origin, tag in ((_origin(response.url), response.headers.get("ETag")), ("linked", linked)):
            known = file.tags.setdefault(origin, _opaque(tag)) if tag else None
            if tag and known != _opaque(tag):
                raise SourceError(
                    f"{name} changed while it was read (ETag {shown(_opaque(tag))} after {shown(known)}): scan again"
                )


class SignedUrlRefused(Exception):  # noqa: N818 - never leaves this file
    """A signed URL that served before does not serve now."""


class Passing(Exception):  # noqa: N818 - never leaves this file
    """A fault that may be over soon; `wait_s` is what the server asks to wait."""

    def __init__(self, what: str, wait_s: float = 0.0, *, advice: str = "try again later") -> None:
        super().__init__(what)
        self.wait_s = wait_s
        self.advice = advice

    @classmethod
    def of_status(cls, response: httpx2.Response) -> Passing:
        """Return the fault that a reply tells by its status."""
        return cls(f"{_origin(response.url)} answered HTTP {response.status_code}", _asked_to_wait(response))

    @classmethod
    def of_network(cls, error: httpx2.TransportError) -> Passing:
        """Return the fault that no reply came, or only a part of one."""
        import httpx2

        never = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        what = "cannot reach" if never else "lost the connection to"
        reason = shown(error) or type(error).__name__
        return cls(f"{what} {_origin(error.request.url)} ({reason})", advice="check the network, then try again")


def patiently(attempt: Callable[[], T], pauses: tuple[float, ...], name: str) -> T:
    """Return what `attempt` returns, tried again after each passing fault until pauses or patience run out."""
    import httpx2

    waited = asked = 0.0
    for pause in (*pauses, None):
        try:
            return attempt()
        except Passing as error:
            fault = error
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            fault = Passing.of_network(error)
        asked += fault.wait_s
        if asked > MAX_WAIT_S:
            raise SourceError(f"{name}: {fault} and asks to wait {fault.wait_s:.0f} s: try again then") from fault
        if pause is not None:
            time.sleep(max(pause, fault.wait_s))
            waited += max(pause, fault.wait_s)
    tries = f"tried {len(pauses) + 1} times over {waited:.0f} s"
    raise SourceError(f"{name}: {fault}; {tries}: {fault.advice}") from fault


@dataclass
class _RemoteFile:
    """What is known of one file; several threads may look and change, and the worst of it is one request more."""

    path: str
    size: int
    sha256: str | None
    cached: Path | None = None
    """Where the Hub's local cache has it."""
    signed_url: str | None = None
    """A URL that the Hub redirected to: until it expires, it saves asking the Hub for each range."""
    tags: dict[str, str | None] = field(default_factory=dict)
    reused: bool = False
    """A signed URL served more than once."""
    one_range_only: bool = False

    def distrust(self, url: str | None) -> None:
        """Forget a signed URL that was refused; one that never served twice is bound to a single range."""
        if self.signed_url == url:
            self.signed_url = None
        if not self.reused:
            self.one_range_only = True


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


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _opaque(tag: str) -> str:
    """Return what an ETag says, whether it is weak or not."""
    return tag.removeprefix("W/").strip('"')


def without_body(response: httpx2.Response) -> httpx2.Response:
    """Return a reply without its body, which may be anything and endless: what it says is in the headers."""
    import httpx2

    headers = {name: value for name, value in response.headers.items() if name.startswith("x-error-")}
    return httpx2.Response(response.status_code, headers=headers, request=response.request)


@contextmanager
def hub_errors(
    model: str, revision: str | None, *, path: str | None = None, commit: str | None = None
) -> Iterator[None]:
    """Turn every way the Hub says no into one line."""
    import httpx2
    from huggingface_hub import constants, errors

    name = f"{model}@{revision}" if revision else model
    login = "log in with `hf auth login` or pass --token"
    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(f"{name} is gated: accept its terms at {constants.ENDPOINT}/{model}, then {login}") from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{model} has no revision {shown(revision)} on the Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"there is no folder {name}, and no such model on the Hub (if it is private, {login})"
        ) from error
    except errors.DisabledRepoError as error:
        raise SourceError(f"{name} was disabled on the Hub") from error
    except errors.LocalEntryNotFoundError as error:  # neither downloaded before nor to be had now
        if constants.HF_HUB_OFFLINE:
            raise SourceError(
                f"{name} is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or download the model first"
            ) from error
        reason = shown(error.__cause__ or error)
        raise SourceError(f"cannot download {name} from {constants.ENDPOINT} ({reason}): check the network") from error
    except errors.EntryNotFoundError as error:
        raise SourceError(
            f"{name} has no file {shown(path)} at commit {commit}, though it lists one: try again later"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(f"cannot reach the Hub for {name}: HF_HUB_OFFLINE is set, unset it") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SourceError(f"the Hub refused access to {name} (HTTP {status}): {login}") from error
        thing = f"{name}, file {shown(path)}" if path else name
        raise SourceError(f"the Hub answered HTTP {status} for {thing}: try again later") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{shown(name)} is not a Hub id of the form owner/name") from error
    except (httpx2.LocalProtocolError, UnicodeEncodeError) as error:  # whose messages hold the token
        raise SourceError("the token has characters that no token has: check --token, or HF_TOKEN") from error
    except httpx2.HTTPError as error:
        reason = shown(error) or type(error).__name__
        raise SourceError(f"cannot reach {constants.ENDPOINT} for {name} ({reason}): check the network") from error
    except OSError as error:
        raise SourceError(f"cannot download {name}: {shown(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # what the client's parser lets out
        raise SourceError(
            f"{constants.ENDPOINT} did not answer for {name} as the Hub does: a proxy may be in the way"
        ) from error
