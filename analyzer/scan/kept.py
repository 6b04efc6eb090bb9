"""What finished scans of single tensors found, kept on the disk, so that no byte of the Hub is read twice.

An entry's key is everything that makes it true: the content hash of the files, the places of the tensors in them, how
they are encoded, what the config says of that, and the method. So another revision or a fork that shares a file shares
its entries, and an entry can never be out of date. Local folders have no such hash and are as fast to scan as to hash:
they are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from analyzer.base.atomic import write_whole
from analyzer.base.config import model_types, quantization
from analyzer.base.errors import SourceError, shown
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.numbers.matrices import Matrix, Part
from analyzer.scan.outliers import TensorSummary

METHOD = 2  # raise it when the same bytes give another result
MAX_TOP = 1000  # more weights than that are quicker read again than kept for every tensor
MAX_ENTRY_BYTES = 1_000_000
DIRECTORY = "SUPERWEIGHT_CACHE"
BLOCKS = "blocks"  # folder of what kept_blocks.py keeps


def cache_folder() -> Path:
    """Return the folder of the entries: under $SUPERWEIGHT_CACHE, or under the user's cache.

    Raises SourceError where that names the home of nobody.
    """
    chosen = os.environ.get(DIRECTORY)
    try:
        return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("superweight")) / "scans"
    except RuntimeError as error:
        raise SourceError(f"{DIRECTORY} is {shown(chosen)}, which is no folder ({error}): set another") from error


def describe(
    checkpoint: Checkpoint,
    score: str,
    matrix: Matrix,
    parts: Iterable[Part],
    content: Callable[[str], str | None] | None = None,
) -> str | None:
    """Return the key of one tensor's result, as text; null where a file of it has no content hash.

    `parts` is all that the result depends on; `content` tells a file's hash in place of the checkpoint's source.
    """
    config = checkpoint.config
    content = content or checkpoint.source.content
    places = []
    for part in parts:
        tensor = checkpoint.tensors[part.tensor]
        digest = content(tensor.filename)
        if digest is None:
            return None
        start = tensor.record.start
        places.append([digest, start + part.start, start + part.stop, part.dtype, list(part.shape)])
    how = [repr(matrix.encoding), list(matrix.shape), matrix.transposed]
    # The same tensors are another model where the config says so: its norms multiply by 1 + weight, say.
    return json.dumps([METHOD, score, how, sorted(model_types(config)), quantization(config), places], sort_keys=True)


class ResultCache:
    """Entries in a folder, one file each; a damaged one, or one that cannot be read or written, is as good as none."""

    def __init__(self, folder: Path) -> None:
        """Use the folder, which need not be there yet."""
        self.folder = folder

    def load(self, key: str, top: int) -> TensorSummary | None:
        """Return the summary with its `top` best weights, if an entry of this key has as many."""
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            body = self.load_body(key)
            if body is None or body["top"] < top:
                return None
            mean_abs, std, max_abs = body["figures"]
            return TensorSummary(
                float(mean_abs),
                float(std),
                float(max_abs),
                int(body["nonfinite"]),
                np.array(body["places"][:top], np.int64),
                np.array(body["values"][:top], np.float64),
                np.array(body["scores"][:top], np.float64),
            )
        return None

    def save(self, key: str, top: int, summary: TensorSummary) -> None:
        """Keep a summary of the `top` best weights of its tensor; whole or not at all."""
        if top > MAX_TOP:
            return
        body = {
            "top": top,
            "figures": [summary.mean_abs, summary.std, summary.max_abs],
            "nonfinite": summary.nonfinite,
            "places": summary.places.tolist(),
            "values": summary.values.tolist(),
            "scores": summary.scores.tolist(),
        }
        self.save_body(key, body)

    def load_body(self, key: str) -> dict[str, Any] | None:
        """Return what is kept under a key, if it is whole."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            path = self._path(key)
            if not path.is_file() or path.stat().st_size > MAX_ENTRY_BYTES:
                return None
            entry = json.loads(path.read_bytes())
            body: dict[str, Any] = entry["body"]
            if entry["sha256"] == _digest(body) and body["key"] == key:
                return body
        return None

    def save_body(self, key: str, body: Mapping[str, Any]) -> None:
        """Keep what JSON has under a key; whole or not at all."""
        keyed = {"key": key, **body}
        path = self._path(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or path.is_fifo():
                path.unlink()
            # What a disk loses of it is noticed by its hash.
            write_whole(path, json.dumps({"sha256": _digest(keyed), "body": keyed}).encode("ascii"), durable=False)

    def size(self) -> tuple[int, int]:
        """Return the number of entries, and their bytes."""
        sizes = []
        for path in self._entries():
            with suppress(OSError):  # another process may have cleared it meanwhile
                sizes.append(path.stat().st_size)
        return len(sizes), sum(sizes)

    def clear(self) -> tuple[int, int]:
        """Delete all entries, and return their number and bytes. Raises SourceError where that is not allowed."""
        size = self.size()
        try:
            for path in list(self._entries()):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise SourceError(f"cannot clear {shown(self.folder)}: {error.strerror}") from error
        return size

    def _entries(self) -> Iterator[Path]:
        """Yield the files of all entries, what an interrupted write may have left, and blocks of unfinished tensors."""
        for pattern in ("??/*.json", "??/*.tmp", f"{BLOCKS}/*/*"):
            yield from (path for path in self.folder.glob(pattern) if path.is_file())

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
