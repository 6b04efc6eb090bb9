"""Where bytes come from: a local folder or the Hugging Face Hub. The only file that touches the network.

Both sources pin what they read (the Hub at one commit), list their files with sizes, and answer
`read(filename, start, stop)`. Nothing is ever executed or unpickled.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from analyzer.errors import SourceError, shown

if TYPE_CHECKING:
    import httpx2

# One word or owner/name, of the characters that the Hub allows.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
MEBIBYTE = 1 << 20
HUB_TIMEOUT_S = 30.0
BODY_TRIES = 3  # nothing in the Hub's client retries a reply that breaks off midway


class Source(Protocol):
    """A model's files at one pinned state."""

    model: str
    """The name that results carry: a Hub id, or a folder's name; never a path of this machine."""
    revision: str | None
    commit: str | None
    sizes: Mapping[str, int]
    """Size in bytes of each file, by its path relative to the model's folder."""
    readers: int
    """How many reads at once are worth it."""
    block_bytes: int
    """How many bytes one read should ask for."""

    def read(self, filename: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to, but not including, `stop`.

        Raises SourceError where they cannot be had exactly.
        """
        ...

    def folder(self, weights: Collection[str]) -> Path:
        """Return a local folder with the weight files named, config and tokenizer, downloading what is missing.

        Raises SourceError where it cannot be downloaded.
        """
        ...


def open_source(
    model: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    model_id: str | None = None,
) -> Source:
    """Return the source for a local folder or a Hub id (`owner/name` or `owner/name@revision`).

    A folder that exists goes before a Hub id of the same name. `model_id` renames a local folder in results.
    Raises SourceError where there is no such model or it cannot be reached.
    """
    if not model.strip():
        raise SourceError("the model's name is empty: give a folder or a Hub id of the form owner/name")
    try:
        path = Path(model).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name longer than paths may be, the home of nobody
        raise SourceError(f"cannot look for a folder {shown(model)}: {shown(error)}") from error
    if is_folder:
        if revision is not None:
            raise SourceError(f"{shown(model)} is a local folder and has no revisions: leave --revision out")
        return FolderSource(path, subfolder=subfolder, model_id=model_id)
    name, _, at_revision = model.partition("@")
    if exists:
        raise SourceError(f"{shown(model)} is a file: give the folder that holds the checkpoint")
    if not HUB_ID.fullmatch(name):
        raise SourceError(f"there is no folder {shown(model)}, and it is not a Hub id of the form owner/name")
    if at_revision and revision is not None and revision != at_revision:
        raise SourceError(f"{shown(model)} and --revision {shown(revision)} name two revisions: give one")
    if model_id is not None and model_id != name:
        raise SourceError(f"--model-id names a local folder; {name} already has its name on the Hub")
    return HubSource(name, revision=revision or at_revision or None, subfolder=subfolder, token=token)


class FolderSource:
    """A checkpoint in a local folder."""

    block_bytes = MEBIBYTE  # stays in a core's cache; larger blocks measured slower

    def __init__(
        self,
        path: Path,
        *,
        subfolder: str | None = None,
        model_id: str | None = None,
        revision: str | None = None,
        commit: str | None = None,
    ) -> None:
        """List the folder's files; `revision` and `commit` are those of a downloaded repository.

        Raises SourceError where the folder cannot be listed.
        """
        resolved = path.resolve()
        self.model = model_id or resolved.name or "model"
        self.revision = revision
        self.commit = commit
        self.readers = min(8, os.cpu_count() or 1)
        self._folder = resolved / subfolder if subfolder else resolved
        if not self._folder.resolve().is_relative_to(resolved):
            raise SourceError(f"--subfolder {shown(subfolder)} leads out of {shown(path)}")
        try:
            self.sizes: Mapping[str, int] = dict(_file_sizes(self._folder))
        except OSError as error:
            raise SourceError(f"cannot list {shown(self._folder)}: {error.strerror}") from error

    def read(self, filename: str, start: int, stop: int) -> bytes:
        """See Source.read."""
        path = self._folder / filename
        try:
            # O_NONBLOCK: opening a FIFO that took a file's place must fail, not wait.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SourceError(f"{shown(path)} is not a regular file")
                data = _read_range(descriptor, start, stop)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SourceError(f"cannot read {shown(path)}: {error.strerror}") from error
        if len(data) != stop - start:
            raise SourceError(f"{shown(path)} ends at byte {start + len(data)}, expected {stop}: it is truncated")
        return data

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        return self._folder


def _file_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the regular files of a folder; a link that leads nowhere, or in a circle, is none."""
    for entry in os.scandir(folder):
        with suppress(OSError):
            if entry.is_file():
                yield entry.name, entry.stat().st_size


def _read_range(descriptor: int, start: int, stop: int) -> bytes:
    """Return what the file has of the range: a read may stop short of it, at 2 GiB on Linux for one."""
    os.lseek(descriptor, start, os.SEEK_SET)
    data = os.read(descriptor, stop - start)
    while len(data) < stop - start and (more := os.read(descriptor, stop - start - len(data))):
        data += more
    return data


class HubSource:
    """A model repository on the Hub, pinned to one commit when it is opened."""

    readers = 8
    block_bytes = 8 * MEBIBYTE  # at 8 readers and 50 ms a round trip, enough to fill a gigabit link

    def __init__(
        self, model: str, *, revision: str | None = None, subfolder: str | None = None, token: str | None = None
    ) -> None:
        """Resolve the revision to a commit and list the files; raises SourceError where the Hub says no."""
        import huggingface_hub

        # The client's own warnings (each retry, say) would break the one-line contract for errors.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self._prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        if self._prefix and not is_plain_path(self._prefix[:-1]):
            raise SourceError(f"--subfolder {shown(subfolder)} is not a plain path inside the repository")
        self.model = model
        self.revision = revision
        self._token = token
        with self._hub_errors():
            api = huggingface_hub.HfApi(token=token)
            info = api.model_info(model, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise SourceError(f"the Hub named no commit for {model}: try again, or give --revision")
        self.commit: str | None = info.sha
        self.sizes: Mapping[str, int] = {
            file.rfilename.removeprefix(self._prefix): file.size
            for file in info.siblings or ()
            if file.rfilename.startswith(self._prefix) and isinstance(file.size, int)
        }

    def read(self, filename: str, start: int, stop: int) -> bytes:
        """See Source.read."""
        for _ in range(BODY_TRIES):
            data = self._read_once(filename, start, stop)
            if len(data) == stop - start:
                return data
        raise SourceError(
            f"{self.model}/{shown(self._prefix + filename)}: asked for {stop - start} bytes, got {len(data)}: try again"
        )

    def _read_once(self, filename: str, start: int, stop: int) -> bytes:
        """Return what one request brings, fewer bytes where the connection breaks off."""
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        path = self._prefix + filename
        data = bytearray()
        with self._hub_errors(path):
            headers = build_hf_headers(token=self._token)
            headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            url = hf_hub_url(self.model, path, revision=self.commit)
            with http_stream_backoff("GET", url, headers=headers, timeout=HUB_TIMEOUT_S) as response:
                hf_raise_for_status(response)
                self._check_reply(response, path, start, stop)
                # Let out of this block, the error of a broken body would have the client ask again behind its back.
                with suppress(httpx2.TransportError):
                    for chunk in response.iter_raw():
                        data += chunk
                        if len(data) > stop - start:
                            break
        return bytes(data)

    def _check_reply(self, response: httpx2.Response, path: str, start: int, stop: int) -> None:
        """Accept only the range that was asked for, of the file and commit that were pinned."""
        expected = f"bytes {start}-{stop - 1}/{self.sizes[path.removeprefix(self._prefix)]}"
        got = response.headers.get("Content-Range")
        if response.status_code != 206 or got != expected:
            raise SourceError(
                f"{self.model}/{shown(path)}: the server did not answer with the range that was asked for "
                f"(status {response.status_code}, {shown(got)} in place of {expected}); a proxy may be in the way"
            )
        first = response.history[0] if response.history else response
        commit = first.headers.get("X-Repo-Commit", self.commit)
        if commit != self.commit:
            raise SourceError(f"{self.model} answered with commit {shown(commit)} in place of {self.commit}")

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        import huggingface_hub

        patterns = [*weights, "*.json", "*.model", "*.txt", "*.jinja"]  # besides weights: config and tokenizer
        with self._hub_errors():
            snapshot = huggingface_hub.snapshot_download(
                self.model,
                revision=self.commit,
                token=self._token,
                allow_patterns=[self._prefix + pattern for pattern in patterns],
                ignore_patterns=None if self._prefix else ["*/*"],
            )
        return Path(snapshot) / self._prefix

    @contextmanager
    def _hub_errors(self, path: str | None = None) -> Iterator[None]:
        """Turn every way the Hub says no into one line."""
        import httpx2
        from huggingface_hub import constants, errors

        name = f"{self.model}@{self.revision}" if self.revision else self.model
        login = "log in with `hf auth login` or pass --token"
        try:
            yield
        except errors.GatedRepoError as error:
            raise SourceError(
                f"{name} is gated: accept its terms at {constants.ENDPOINT}/{self.model}, then {login}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise SourceError(f"{self.model} has no revision {shown(self.revision)} on the Hub") from error
        except errors.RepositoryNotFoundError as error:
            raise SourceError(
                f"there is no folder {name}, and no such model on the Hub (if it is private, {login})"
            ) from error
        except errors.DisabledRepoError as error:
            raise SourceError(f"{name} was disabled on the Hub") from error
        except errors.LocalEntryNotFoundError as error:  # neither downloaded before nor to be had now
            if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
                raise SourceError(f"{name} is not in the Hub's cache, and HF_HUB_OFFLINE is set") from error
            reason = shown(error.__cause__ or error)
            raise SourceError(
                f"cannot download {name} from {constants.ENDPOINT} ({reason}): check the network"
            ) from error
        except errors.EntryNotFoundError as error:
            raise SourceError(f"{name} has no file {shown(path)} at commit {self.commit}") from error
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


def is_plain_path(name: str) -> bool:
    """Tell whether this is a relative path that stays inside its folder, on any system and in any URL."""
    return (
        name.isprintable()
        and not re.search(r"[\\:?#%*]", name)
        and not name.startswith("/")
        and all(part not in ("", ".", "..") for part in name.split("/"))
        and PurePosixPath(name).as_posix() == name
    )
