"""A dataset repository on the Hub that is written to: its head, its files, one commit; each refusal in one line."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyzer.base.errors import SourceError, shown
from analyzer.source.hub.patience import PASSING, Passing, in_time, patiently
from analyzer.source.hub.refusals import hub_errors
from analyzer.source.hub.replies import without_body
from analyzer.source.streaming import interruptible

if TYPE_CHECKING:
    import huggingface_hub


COMMIT_S, SLOWEST_RATE = 120.0, 50_000  # how long a commit may take, and the bytes a second that add to it
ANSWER_S = 60.0  # how long the Hub may think about a request; its client would wait for ever


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it: its hash is git's or, where it is kept outside of git, that of its content."""

    size: int
    git_sha1: str | None
    sha256: str | None

    def holds(self, data: bytes) -> bool:
        """Tell whether the file has this content, by the hash that the Hub lists."""
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == self.git_sha1


class Repository:
    """A dataset repository on the Hub, at the commit that was its head when it was looked at."""

    def __init__(self, repo_id: str, token: str | None) -> None:
        import huggingface_hub
        from huggingface_hub import constants

        self._id = repo_id
        self._token = token and token.strip()
        self._api = huggingface_hub.HfApi(token=self._token)
        self.files: dict[str, RemoteFile] = {}
        self.name = f"datasets/{repo_id}"
        self.url = f"{constants.ENDPOINT}/{self.name}"
        self.head: str | None = None
        self.public = False

    def look(self) -> bool:
        """Learn the head commit and its files; false where there is no such repository, or none to be seen."""
        from huggingface_hub import errors

        def ask() -> huggingface_hub.DatasetInfo | None:
            try:
                return self._api.dataset_info(self._id, files_metadata=True, timeout=ANSWER_S)
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return None
            except errors.HfHubHTTPError as error:
                if error.response.status_code in PASSING:
                    raise Passing.of_status(error.response) from error
                raise

        with _refusals(self.name):
            info = patiently(ask, self.name, pauses=3)
        if info is None:
            return False
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise SourceError(f"the Hub named no commit for {self.name}: try again later")
        self.head, self.public = info.sha, info.private is False
        self.files = {
            sibling.rfilename: RemoteFile(
                sibling.size or 0, sibling.blob_id, sibling.lfs.sha256 if sibling.lfs else None
            )
            for sibling in info.siblings or ()
        }
        return True

    def fetch(self, path: str) -> bytes:
        """Return a file's content at the head commit, checked against the hash of its listing."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        file = self.files[path]
        url = hf_hub_url(self._id, path, repo_type="dataset", revision=self.head)
        headers = {"Accept-Encoding": "identity", **build_hf_headers(token=self._token)}

        def get() -> bytes:
            with get_session().stream("GET", url, headers=headers) as response:
                if response.status_code in PASSING:
                    raise Passing.of_status(response)
                hf_raise_for_status(without_body(response))
                return b"".join(in_time(response.iter_raw(), file.size))

        with hub_errors(self.name, None, path=path, commit=self.head, token=self._token):
            data = patiently(get, f"{self.name}/{shown(path, 80)}", pauses=3)
        if not file.holds(data):
            raise SourceError(
                f"{self.name}/{shown(path, 80)} is not the file of its listing: a proxy may be in the way, try again"
            )
        return data

    def check_token(self) -> None:
        """Raise SourceError where there is no token to write with."""
        from huggingface_hub.utils import get_token_to_send

        with hub_errors(self.name, None):
            if get_token_to_send(self._token):
                return
        raise SourceError(
            f"writing to {self.name} needs a token: log in with `hf auth login` or pass --token (--dry-run shows what "
            "would change without one)"
        )

    def create(self, private: bool) -> None:
        """Create the repository on the Hub, and look at it."""
        with _refusals(self.name, writing=True):
            self._api.create_repo(self._id, repo_type="dataset", private=private or None)
        if not self.look():
            raise SourceError(f"{self.name} was created, but the Hub does not show it yet: run it again")

    def commit(self, upload: Mapping[str, bytes], delete: Sequence[str], message: str) -> huggingface_hub.CommitInfo:
        """Make one commit on top of the head; it fails where there is another commit by now."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, constants

        # A file object, since a small file goes by plain HTTP then, by which errors can be told, in place of hf_xet.
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationAdd(path, io.BytesIO(data)) for path, data in upload.items()),
            *(CommitOperationDelete(path, is_folder=False) for path in delete),
        ]
        within_s = COMMIT_S + sum(map(len, upload.values())) / SLOWEST_RATE
        with _refusals(self.name, writing=True):
            try:
                return interruptible(
                    lambda: self._api.create_commit(
                        self._id, operations, commit_message=message, repo_type="dataset", parent_commit=self.head
                    ),
                    within_s=within_s,
                )
            except TimeoutError as error:
                raise SourceError(
                    f"{constants.ENDPOINT} did not take the files for {self.name} within {within_s:.0f} s: look "
                    "whether they are there, then run it again"
                ) from error


@contextmanager
def quiet_client() -> Iterator[None]:
    """Let the Hub's client neither warn nor wait for ever."""
    from huggingface_hub.utils import get_session

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    session = get_session()
    before, session.timeout = session.timeout, ANSWER_S
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        session.timeout = before


@contextmanager
def _refusals(name: str, *, writing: bool = False) -> Iterator[None]:
    """Turn every way the Hub says no to somebody who wants to write into one line; see hub_errors for the rest."""
    import httpx2
    from huggingface_hub import constants, errors

    with hub_errors(name, None):
        try:
            yield
        except (errors.GatedRepoError, errors.DisabledRepoError):
            raise
        except errors.HfHubHTTPError as error:
            if line := _refusal(error, name, writing):
                raise SourceError(line) from error
            raise
        except httpx2.TransportError as error:
            if not writing or isinstance(error, httpx2.LocalProtocolError | httpx2.ConnectError):
                raise
            raise SourceError(_broken(name, error)) from error
        except RuntimeError as error:  # what the client makes of an upload that fails
            cause = error.__cause__
            if isinstance(cause, errors.HfHubHTTPError):
                reason = f"{constants.ENDPOINT}'s storage answered HTTP {cause.response.status_code}"
                raise SourceError(f"cannot upload a file to {name} ({reason}): run it again") from error
            raise SourceError(_broken(name, cause or error)) from error
        except ValueError as error:
            if str(error).startswith(("Invalid metadata in README.md", "LFS batch API returned errors")):
                raise SourceError(f"the Hub refuses the files for {name}: {shown(error)}") from error
            raise


def _refusal(error: huggingface_hub.errors.HfHubHTTPError, name: str, writing: bool) -> str | None:
    from huggingface_hub import constants, errors

    status = error.response.status_code
    said = shown(error.response.headers.get("X-Error-Message", ""), 120).rstrip(".")
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub does not accept this token for {name}: log in with `hf auth login`, or pass another --token"
    if not writing:
        return None
    if status == 403:
        return (
            f"this token may not write to {name}{f' ({said})' if said else ''}: use one with write access, see "
            f"{constants.ENDPOINT}/settings/tokens, or another --repo-id"
        )
    if status == 409:
        return f"{name} exists, but this token cannot see it, or somebody creates it right now: run it again"
    if status == 412:
        return f"somebody else has written to {name} meanwhile, and nothing was changed: run it again"
    if status == 400:
        return f"the Hub refuses the files for {name} ({said or 'HTTP 400'})"
    return None


def _broken(name: str, error: BaseException) -> str:
    from huggingface_hub import constants

    reason = shown(error) or type(error).__name__
    return (
        f"lost the connection to {constants.ENDPOINT} while writing to {name} ({reason}): run it again, it uploads "
        "only what is not there yet"
    )
