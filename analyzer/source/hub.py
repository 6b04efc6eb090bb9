"""The Hub as a source: ranged reads at a pinned commit."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from analyzer.base.errors import SourceError, shown
from analyzer.source.folder import FolderSource, read_file
from analyzer.source.patience import PASSING, Passing, in_time, origin_of, patiently
from analyzer.source.refusals import hub_errors
from analyzer.source.replies import check_reply, without_body
from analyzer.source.signed_urls import HubFile, SignedUrlRefused
from analyzer.source.source import MEBIBYTE, Source, is_plain_path

if TYPE_CHECKING:
    pass


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
            info = patiently(list_files, model, pauses=3)
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
            name: HubFile(self._prefix + name, self.sizes[name], sibling.lfs.sha256 if sibling.lfs else None)
            for name, sibling in files.items()
        }
        for file in self._files.values():
            file.cached = self._in_cache(file)

    def read(self, filename: str, start: int, stop: int) -> bytes | bytearray:
        """See Source.read. What is in the Hub's local cache is read from there."""
        file = self._files.get(filename) or HubFile(self._prefix + filename, stop, None)
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
            patiently(go_on, f"{self.model}/{shown(file.path)}")
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

    def _in_cache(self, file: HubFile) -> Path | None:
        """Return where the Hub's local cache has the file, whole."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.model, file.path, revision=self.commit)
        if isinstance(path, str) and Path(path).is_file() and Path(path).stat().st_size == file.size:
            return Path(path)
        return None

    def _pieces(self, file: HubFile, start: int, stop: int, signed_url: str | None) -> Iterator[bytes]:
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
            elsewhere = bool(signed_url) or origin_of(response.url) != origin_of([*response.history, response][0].url)
            if status in PASSING or (elsewhere and status == 403):
                raise Passing.of_status(response)
            if status == 416:
                raise SourceError(
                    f"{self.model}/{shown(file.path)} has no bytes {start} to {stop - 1}: it changed since it was "
                    "listed, scan again"
                )
            hf_raise_for_status(without_body(response))
            check_reply(f"{self.model}/{shown(file.path)}", self.commit, response, file, start, stop)
            if signed_url:
                file.reused = True
            elif elsewhere and not file.one_range_only:
                file.signed_url = str(response.url)
            yield from in_time(response.iter_raw(), stop - start)
