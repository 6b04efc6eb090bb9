"""Scans over a slow link that breaks down: what it brought is not asked for twice, nor trusted blindly."""

import threading
import time

import pytest
from checkpoints import random_downs, write_llama
from hub_scans import facts, scan_folder

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import down_projections
from analyzer.scan import kept_blocks
from analyzer.scan.kept import BLOCKS, ResultCache
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource

LAYERS, ROWS, COLS = 2, 512, 2048
TENSOR = ROWS * COLS * 2  # bytes: two blocks
RATE = 12e6


class CutOffError(Exception):
    pass


class Link(FolderSource):
    """A folder behind a link of so many bytes a second that breaks down after `most` bytes of weights."""

    readers, block_bytes = 4, 1 << 20

    def __init__(self, folder, *, rate=RATE, most=1 << 40):
        super().__init__(folder)
        self.readers = 4
        self.rate, self.most, self.sent, self.free_at = rate, most, 0, 0.0
        self.sending = threading.Lock()

    def content(self, filename):
        return "sha256:abc"

    def read(self, filename, start, stop):
        data = super().read(filename, start, stop)
        if filename == "config.json" or stop - start < 10_000:
            return data
        with self.sending:
            broken = self.sent + len(data) > self.most
            if not broken:
                self.sent += len(data)
                self.free_at = max(self.free_at, time.monotonic()) + len(data) / self.rate
            until = self.free_at + 0.1 * broken  # what was sent before arrives
        time.sleep(max(0.0, until - time.monotonic()))
        if broken:
            raise CutOffError
        return data


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "large"
    write_llama(folder, random_downs(layers=LAYERS, hidden=ROWS, intermediate=COLS))
    return folder


@pytest.fixture
def kept(tmp_path):
    return ResultCache(tmp_path / "scans")


def run(large, cache, **link):
    source = Link(large, **link)
    checkpoint = Checkpoint(source)
    try:
        return source, scan(checkpoint, down_projections(checkpoint), cache=cache)
    except CutOffError:
        return source, None


def blocks_of(cache):
    return sorted(path for path in (cache.folder / BLOCKS).rglob("*") if path.is_file())


def test_a_link_that_is_cut_off_again_and_again_brings_a_tensor_at_last(large, kept):
    """Each time less than a tensor, and less than one block, comes through."""
    sent, result = [], None
    while result is None:
        source, result = run(large, kept, most=TENSOR // 4)
        sent.append(source.sent)
        assert len(sent) < 40
    assert facts(result) == facts(scan_folder(large))
    assert len(sent) > 4
    assert sum(sent) < 1.1 * LAYERS * TENSOR
    assert blocks_of(kept) == []
    assert kept.size()[0] == LAYERS


def test_what_was_here_already_is_not_counted_as_read(large, kept):
    first, nothing = run(large, kept, most=TENSOR // 2)
    assert nothing is None
    second, result = run(large, kept)
    assert result.bytes_read == second.sent + Checkpoint(FolderSource(large)).bytes_read
    assert first.sent + second.sent == LAYERS * TENSOR


def test_a_fast_link_keeps_no_blocks(large, kept, monkeypatch):
    monkeypatch.setattr(kept_blocks, "_add", lambda *_: pytest.fail("a block is kept"))
    source, result = run(large, kept, rate=1e12)
    assert facts(result) == facts(scan_folder(large))
    assert source.sent == LAYERS * TENSOR


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        lambda data: data + data,
        lambda data: data + b"more",
    ],
    ids=["cut", "half", "empty", "header", "bit", "twice", "more"],
)
def test_a_damaged_block_is_read_again_from_the_damage_on(large, kept, damage):
    _, nothing = run(large, kept, most=TENSOR // 2)
    assert nothing is None
    paths = blocks_of(kept)
    assert paths
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    _, result = run(large, kept)
    assert facts(result) == facts(scan_folder(large))
    assert blocks_of(kept) == []


def test_blocks_are_bounded_and_old_ones_are_cleared_away(large, kept, monkeypatch):
    run(large, kept, most=TENSOR // 2)
    assert kept.size()[1] >= sum(path.stat().st_size for path in blocks_of(kept)) > 0
    monkeypatch.setattr(kept_blocks, "MAX_AGE_S", -1.0)
    kept_blocks.KeptBlocks(Checkpoint(FolderSource(large)), kept.folder)
    assert blocks_of(kept) == []
    monkeypatch.setattr(kept_blocks, "MAX_BYTES", TENSOR // 8)
    run(large, kept, most=TENSOR // 2)
    assert sum(path.stat().st_size for path in blocks_of(kept)) < TENSOR // 6


def test_the_cache_shows_and_clears_them(large, kept):
    run(large, kept, most=TENSOR // 2)
    count = len(blocks_of(kept))
    assert kept.clear()[0] >= count > 0
    assert blocks_of(kept) == []
