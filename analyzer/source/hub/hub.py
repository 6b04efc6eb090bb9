"""The Hub as a source: ranged reads at a pinned commit."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analyzer.base.errors import GoneError, NetworkError, SourceError, shown
from analyzer.source.hub.cache import cache_folder, open_cached
from analyzer.source.hub.patience import PASSING, Passing, in_time, patiently
from analyzer.source.hub.refusals import hub_errors
from analyzer.source.hub.replies import check_reply, check_status, is_elsewhere, total_size
from analyzer.source.hub.signed_urls import HubFile, SignedUrlRefused
from analyzer.source.local_files import LocalFiles
from analyzer.source.sizes import Sizes
from analyzer.source.source import HUB_ID, MEBIBYTE, Source, is_plain_path
from analyzer.source.streaming import interruptible

if TYPE_CHECKING:
    import httpx2
    import huggingface_hub


def open_hub(model: str, *, revision: str | None, subfolder: str | None, token: str | None) -> Source:
    """Return the source for a model on the Hub or, where HF_HUB_OFFLINE is set, in the Hub's local cache.

    Raises SourceError where there is no such model, or it cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    # The client's own warnings (each retry, say) would break the one-line contract for errors.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not constants.HF_HUB_OFFLINE:
        return HubSource(model, revision=revision, subfolder=subfolder, token=token)
    with hub_errors(model, revision):
        validate_repo_id(model)
    source = open_cached(cache_folder(model), model, revision=revision, subfolder=subfolder)
    if source is None:
        raise GoneError(
            f"there is no folder {model}, nor such a model in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or "
            "download the model first"
        )
    return source


class HubSource:
    """A model repository on the Hub, pinned to one commit when it is opened."""

    # Measured with 50 ms a round trip: they fill a link of 4 Gbit/s, and the process stays under 330 MB.
    readers = 16
    block_bytes = 6 * MEBIBYTE

    def __init__(
        self, model: str, *, revision: str | None = None, subfolder: str | None = None, token: str | None = None
    ) -> None:
        """Resolve the revision to a commit and list the files; raises SourceError where the Hub says no."""
        self._prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        if self._prefix and not is_plain_path(self._prefix[:-1]):
            raise SourceError(f"--subfolder {shown(subfolder)} is not a plain path inside the repository")
        self.revision = revision
        self._token = token and token.strip()
        self._refusals = partial(hub_errors, model, revision, token=self._token)
        with self._refusals():
            info = self._list(model)
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise NetworkError(f"the Hub named no commit for {model}: try again, or give --revision")
        if info.siblings is None:
            raise NetworkError(f"the Hub did not list the files of {model}: a proxy may be in the way")
        self.commit: str | None = info.sha
        self.model = info.id if isinstance(info.id, str) and HUB_ID.fullmatch(info.id) else model
        self.notes: tuple[str, ...] = (f"{model} is now called {self.model}",) if self.model != model else ()
        # What was downloaded under an old name is in the cache under that one, and not under the new.
        self._repository = model if (cache_folder(model) / "snapshots" / info.sha).is_dir() else self.model
        self._refusals = partial(hub_errors, self.model, revision, token=self._token, commit=self.commit)
        self._files = {
            sibling.rfilename.removeprefix(self._prefix): HubFile(
                sibling.rfilename,
                sibling.size if isinstance(sibling.size, int) and sibling.size >= 0 else None,
                sibling.lfs.sha256 if sibling.lfs else None,
            )
            for sibling in info.siblings
            if sibling.rfilename.startswith(self._prefix)
        }
        self._local = LocalFiles()
        for file in self._files.values():
            file.cached = self._in_cache(file)
        self.sizes: Mapping[str, int] = Sizes({name: file.size for name, file in self._files.items()}, self._measure)

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """See Source.read. What is in the Hub's local cache is read from there."""
        file = self._files.get(filename) or HubFile(self._prefix + filename, stop, None)
        if file.cached is not None:
            return self._local.read(file.cached, start, stop)
        if file.size is None:
            file.size = self.sizes[filename]
        data = bytearray(stop - start)
        got = 0

        def fetch(url: str | None) -> None:
            nonlocal got
            got = 0 if file.ranges_ignored else got
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

        with self._refusals(path=file.path):
            patiently(go_on, self._name(file))
        return data

    def content(self, filename: str) -> str | None:
        """See Source.content; null too for what is read from the local cache, whose bytes nobody has checked."""
        file = self._files[filename]
        return None if file.cached or file.sha256 is None else f"sha256:{file.sha256}"

    def folder(self, weights: Collection[str]) -> Path:
        """See Source.folder."""
        import huggingface_hub

        beside = (".json", ".model", ".txt", ".jinja")  # config and tokenizer
        wanted = [*weights, *(name for name in self._files if "/" not in name and name.endswith(beside))]
        with self._refusals():
            snapshot = interruptible(
                lambda: huggingface_hub.snapshot_download(
                    self._repository,
                    revision=self.commit,
                    token=self._token,
                    allow_patterns=[glob.escape(self._prefix + name) for name in wanted],
                )
            )
        return Path(snapshot) / self._prefix

    def check_unchanged(self) -> None:
        """See Source.check_unchanged: of a pinned commit, what is in the Hub's local cache could change."""
        self._local.check()

    def _list(self, model: str) -> huggingface_hub.ModelInfo:
        """Return what the Hub tells of a model, its files among it."""
        import huggingface_hub
        from huggingface_hub import constants

        api = huggingface_hub.HfApi(token=self._token)

        def ask() -> huggingface_hub.ModelInfo:
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            try:
                return api.model_info(model, revision=self.revision, files_metadata=True, timeout=timeout)
            except huggingface_hub.errors.HfHubHTTPError as error:
                if error.response.status_code in PASSING:
                    raise Passing.of_status(error.response) from error
                raise

        return patiently(ask, f"there is no folder {model}, and the Hub cannot be asked for it", pauses=3)

    def _name(self, file: HubFile) -> str:
        """Return what errors call a file."""
        return f"{self.model}/{shown(file.path)}"

    def _in_cache(self, file: HubFile) -> Path | None:
        """Return where the Hub's local cache has the file, whole."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._repository, file.path, revision=self.commit)
        if not isinstance(path, str) or not Path(path).is_file():
            return None
        return Path(path) if file.size in (None, Path(path).stat().st_size) else None

    def _measure(self, filename: str) -> int | None:
        """Return the size of a file whose size was not listed; null for a file that was not listed at all."""
        file = self._files.get(filename)
        if file is None:
            return None
        if file.cached is not None:
            return file.cached.stat().st_size

        def ask() -> int:
            with self._asked(file, 0, 8, None) as response:
                return total_size(self._name(file), response)

        with self._refusals(path=file.path):
            return patiently(ask, self._name(file))

    def _pieces(self, file: HubFile, start: int, stop: int, signed_url: str | None) -> Iterator[bytes]:
        """Yield what one request brings of a range, perhaps not all; raises where the reply is not the range."""
        with self._asked(file, start, stop, signed_url) as response:
            check_reply(self._name(file), self.commit, response, file, start, stop)
            file.ranges_ignored = response.status_code == 200
            if signed_url:
                file.reused = True
            elif is_elsewhere(response) and not file.one_range_only:
                file.signed_url = str(response.url)
            yield from in_time(response.iter_raw(), stop - start)

    @contextmanager
    def _asked(self, file: HubFile, start: int, stop: int, signed_url: str | None) -> Iterator[httpx2.Response]:
        """Yield the reply to a request for a range, of the signed URL or, without one, of the Hub.

        Raises what the Hub's client makes of a refusal, or Passing or SignedUrlRefused.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if signed_url is None:
            headers |= build_hf_headers(token=self._token)  # a signed URL must never get the token
        url = signed_url or hf_hub_url(self._repository, file.path, revision=self.commit)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if signed_url and 400 <= response.status_code < 500 and response.status_code not in (*PASSING, 416):
                raise SignedUrlRefused
            check_status(response)
            yield response
