"""The Hugging Face Hub as a source: ranged reads at a pinned commit. The only file that touches the network."""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
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

    # Measured on a link with 50 ms a round trip: enough in flight for 10 Gbit/s.
    readers = 16
    block_bytes = 8 * MEBIBYTE

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
                    raise Passing(f"HTTP {error.response.status_code}", _asked_to_wait(error.response)) from error
                raise

        with hub_errors(model, revision):
            info = self._patiently(list_files, PAUSES[:3])
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

        def go_on() -> None:
            nonlocal got
            for piece in self._pieces(file, start + got, stop):
                data[got : got + len(piece)] = piece
                got += len(piece)
            if got < len(data):
                raise Passing(f"asked for {len(data)} bytes, got {got}")

        with hub_errors(self.model, self.revision, path=file.path, commit=self.commit):
            self._patiently(go_on, PAUSES, file.path)
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

    def _patiently(self, attempt: Callable[[], T], pauses: tuple[float, ...], path: str = "") -> T:
        """Return what `attempt` returns, tried again after each passing fault until pauses or patience run out."""
        import httpx2

        name = f"{self.model}/{shown(path)}" if path else self.model
        waited = 0.0
        for pause in (*pauses, None):
            try:
                return attempt()
            except Passing as error:
                fault, asked = error, error.wait_s
                if error.at_once:
                    continue
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                if pause is None:
                    raise
                fault, asked = Passing(str(error) or type(error).__name__), 0.0
            if asked + waited > MAX_WAIT_S:
                raise SourceError(f"{name}: {fault}: the server asks to wait {asked:.0f} s; try again then") from fault
            if pause is None:
                break
            time.sleep(max(pause, asked))
            waited += max(pause, asked)
        raise SourceError(f"{name}: {fault}, {len(pauses) + 1} times over {waited:.0f} s: try again later") from fault

    def _pieces(self, file: _RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        """Yield what one request brings of a range, perhaps not all; raises where the reply is not the range."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        signed = file.signed_url
        if signed is None:
            url = hf_hub_url(self.model, file.path, revision=self.commit)
            headers |= build_hf_headers(token=self._token)
        else:
            url = signed
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            status = response.status_code
            redirected = signed is not None or (
                bool(response.history)
                and response.url.host + str(response.url.port)
                != response.history[0].url.host + str(response.history[0].url.port)
            )
            if signed is not None and status in (400, 401, 403, 404, 410):
                file.distrust(signed)
                raise Passing(f"the signed URL answered HTTP {status}", at_once=True)
            if status in PASSING or (redirected and status == 403):
                raise Passing(f"HTTP {status}", _asked_to_wait(response))
            hf_raise_for_status(response)
            self._check_reply(response, file, start, stop)
            if redirected:
                file.trust(str(response.url), reused=signed is not None)
            yield from _in_time(response.iter_raw(), stop - start)

    def _check_reply(self, response: httpx2.Response, file: _RemoteFile, start: int, stop: int) -> None:
        """Accept only the range that was asked for, of the file and commit that were pinned."""
        name = f"{self.model}/{shown(file.path)}"
        first = response.history[0] if response.history else response
        commit = first.headers.get("X-Repo-Commit", self.commit)
        if commit != self.commit:
            raise SourceError(f"{self.model} answered with commit {shown(commit)} in place of {self.commit}")
        got = response.headers.get("Content-Range")
        expected = f"bytes {start}-{stop - 1}/{file.size}"
        if response.status_code != 206:
            raise SourceError(
                f"{name}: the server did not answer with the range that was asked for (status {response.status_code} "
                f"in place of 206): a proxy may be in the way"
            )
        total = (got or "").rpartition("/")[2]
        if total.isascii() and total.isdigit() and int(total) != file.size:
            raise SourceError(f"{name} has {total} bytes, not the {file.size} of its listing: it changed, scan again")
        if got != expected:
            raise Passing(
                f"the server did not answer with the range that was asked for ({shown(got)} in place of {expected})"
            )
        tags = [(str(response.url.host), response.headers.get("ETag"))]
        if response.history:
            tags.append(("linked", first.headers.get("X-Linked-Etag")))
        for origin, tag in tags:
            known = file.tags.setdefault(origin, tag) if tag else tag
            if known != tag:
                raise SourceError(
                    f"{name} changed while it was read (ETag {shown(tag)} after {shown(known)}): scan again"
                )
        linked = (first.headers.get("X-Linked-Etag") or "").removeprefix("W/").strip('"')
        if file.sha256 and re.fullmatch(r"[0-9a-f]{64}", linked) and linked != file.sha256:
            raise SourceError(f"{name} is not the file of its listing (sha256 {linked[:12]}…): it changed, scan again")


class Passing(Exception):  # noqa: N818 - never leaves this file
    """A fault that may be over soon; `wait_s` is what the server asks to wait, `at_once` that there is no need to."""

    def __init__(self, what: str, wait_s: float = 0.0, *, at_once: bool = False) -> None:
        super().__init__(what)
        self.wait_s = wait_s
        self.at_once = at_once


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
    _reused: bool = False
    _one_range_only: bool = False

    def trust(self, url: str, *, reused: bool) -> None:
        self._reused |= reused
        if not self._one_range_only:
            self.signed_url = url

    def distrust(self, url: str) -> None:
        """Forget a URL that was refused; one refused before it ever served twice is bound to a single range."""
        if self.signed_url == url:
            self.signed_url = None
        self._one_range_only |= not self._reused


def _in_time(pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    """Pass a body on, as long as it does not trickle or grow beyond what was asked for."""
    got, since, mark = 0, 0, time.monotonic()
    for piece in pieces:
        got, since = got + len(piece), since + len(piece)
        if got > most:
            raise Passing(f"got more than the {most} bytes that were asked for")
        yield piece
        now = time.monotonic()
        if now - mark > SLOW_S:
            if since < SLOW_BYTES:
                raise Passing(f"only {since} bytes came in {now - mark:.0f} s")
            since, mark = 0, now


def _asked_to_wait(response: httpx2.Response) -> float:
    """Return the seconds that a server asks to wait before the next try, by Retry-After or its rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = response.headers.get("Retry-After", "")
    if asked.isascii() and asked.isdigit():
        return float(asked[:9])
    date = email.utils.parsedate_tz(asked)
    if date is not None:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return float(limit.reset_in_seconds) if limit is not None else 0.0


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
            raise SourceError(f"{name} is not in the Hub's cache, and HF_HUB_OFFLINE is set") from error
        reason = shown(error.__cause__ or error)
        raise SourceError(f"cannot download {name} from {constants.ENDPOINT} ({reason}): check the network") from error
    except errors.EntryNotFoundError as error:
        raise SourceError(f"{name} has no file {shown(path)} at commit {commit}") from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(f"cannot reach the Hub for {name}: HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SourceError(f"the Hub refused access to {name} (HTTP {status}): {login}") from error
        raise SourceError(f"the Hub answered HTTP {status} for {name}: try again later") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{shown(name)} is not a Hub id of the form owner/name") from error
    except (httpx2.LocalProtocolError, UnicodeEncodeError) as error:  # whose messages hold the token
        raise SourceError("the token has characters that no token has: check --token, or HF_TOKEN") from error
    except httpx2.HTTPError as error:
        reason = shown(error) or type(error).__name__
        raise SourceError(f"cannot reach {constants.ENDPOINT} for {name} ({reason}): check the network") from error
    except OSError as error:
        raise SourceError(f"cannot download {name}: {shown(error)}") from error
    except (ValueError, TypeError, KeyError) as error:  # what the client's parser lets out
        raise SourceError(
            f"{constants.ENDPOINT} did not answer for {name} as the Hub does: a proxy may be in the way"
        ) from error
