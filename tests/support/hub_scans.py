"""Scans of a model on the stand-in Hub, for the tests of what they read and of what they keep."""

import time

from checkpoints import (
    header_bytes,
    tensor_ranges,
)

from analyzer.analyze.scanning import scan_model
from analyzer.checkpoint.shards import CONFIG, INDEX
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model

LAYERS, DOWN_BYTES = 6, 8 * 20 * 2  # of the checkpoints here
INTERRUPTED = 130, "", "\ninterrupted\n"


def facts(result):
    """Return what a scan found, without what it took to find it."""
    return result.outliers, result.tensors


def scan_folder(folder, **options):
    return scan_model(FolderSource(folder), ScanSettings(**options))


def scan_hub(model="owner/tiny", **options):
    return scan_model(open_model(model), ScanSettings(**options))


def shards_of(folder):
    return sorted(folder.glob("*.safetensors"))


def headers_and_json(folder):
    """Return how many bytes config, index and headers have."""
    small = sum((folder / name).stat().st_size for name in (CONFIG, INDEX) if (folder / name).exists())
    return small + sum(header_bytes(shard) for shard in shards_of(folder))


def down_ranges(shard):
    return [ends for name, ends in tensor_ranges(shard).items() if "down_proj" in name]


def read(hub):
    """Return how many bytes of files the server sent, and begin to count anew."""
    sent = sum(hub.body_bytes.values())
    hub.forget()
    return sent


def wait_until(condition, what="what the test waits for"):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come")


def finish(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def as_json(result):
    from analyzer.base.records import plain

    return plain(result)


def first_byte(request):
    return int(request.range.removeprefix("bytes=").split("-")[0]) if request.range else 0


PLACES = {
    "listing": lambda request: request.path.startswith("/api/"),
    "config": lambda request: request.path.endswith(CONFIG),
    "header": lambda request: request.origin == "cdn" and first_byte(request) == 8,
    "data": lambda request: request.origin == "cdn" and first_byte(request) > 8,
}
