"""kept.py: what is kept comes back as it was or not at all; and the command that shows and clears it."""

import json
import os
import resource
import threading
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import random_downs, write_llama
from results import SUMMARY, same

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.numbers.matrices import turned
from analyzer.projections.down_projections import down_projections
from analyzer.scan import kept as cache_module
from analyzer.scan.kept import MAX_ENTRY_BYTES, MAX_TOP, ResultCache, cache_folder, describe
from analyzer.scan.outliers import TensorSummary
from analyzer.source.folder import FolderSource


def entry_of(kept):
    (path,) = kept.folder.glob("*/*")
    return path


@pytest.fixture
def kept(tmp_path):
    return ResultCache(tmp_path / "kept")


def test_what_is_kept_comes_back(kept):
    assert kept.load("key", 1) is None
    assert not kept.folder.exists()
    kept.save("key", 3, SUMMARY)
    assert same(kept.load("key", 3), SUMMARY)
    assert kept.load("another key", 3) is None
    assert entry_of(kept).suffix == ".json"


def test_what_is_not_finite_comes_back(kept):
    odd = replace(
        SUMMARY, mean_abs=float("nan"), std=float("inf"), max_abs=-0.0, scores=np.array([np.inf, np.nan, -np.inf])
    )
    kept.save("key", 3, odd)
    assert same(kept.load("key", 3), odd)
    nothing = TensorSummary(0.0, 0.0, 0.0, 160, np.array([], np.int64), np.array([]), np.array([]))
    kept.save("key", 20, nothing)
    assert same(kept.load("key", 20), nothing)


def test_fewer_weights_are_served_and_more_are_not(kept):
    kept.save("key", 3, SUMMARY)
    fewer = kept.load("key", 2)
    assert (fewer.places.tolist(), fewer.values.tolist(), fewer.scores.tolist()) == (
        [7, 2**40],
        [-2.5, 0.1],
        [2.5, 1e300],
    )
    assert (fewer.mean_abs, fewer.std, fewer.max_abs, fewer.nonfinite) == (0.1, 1 / 3, 2.5, 2)
    assert kept.load("key", 4) is None
    kept.save("key", 4, SUMMARY)  # a tensor with three numbers
    assert same(kept.load("key", 4), SUMMARY)


def test_too_many_weights_are_not_kept(kept):
    kept.save("key", MAX_TOP + 1, SUMMARY)
    assert kept.size() == (0, 0)
    many = np.random.default_rng(0).normal(size=MAX_TOP)
    most = replace(SUMMARY, places=np.arange(MAX_TOP) + 2**40, values=many, scores=many)
    kept.save("key", MAX_TOP, most)
    assert same(kept.load("key", MAX_TOP), most)


def signed(body):
    return json.dumps({"sha256": cache_module._digest(body), "body": body}).encode()


def changed(data, **values):
    return signed({**json.loads(data)["body"], **values})


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"2.5", b"2.6"),
        lambda data: data.replace(b"1099511627776", b"1099511627777"),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data.replace(b'"sha256": "', b'"sha256": "0'),
        lambda data: data + b"x",
        lambda data: data + b" " * MAX_ENTRY_BYTES,
        lambda data: b"\xff\xfe",
        lambda data: b"[" * 100_000,
        lambda data: b"9" * 10_000,
        *(lambda data, text=text: text for text in (b"null", b"[]", b"{}", b"7", b'"text"', b'{"body": null}')),
        lambda data: b'{"sha256": null, "body": {}}',
        # Whole by their own hash, but no entries:
        lambda data: signed(None),
        lambda data: signed({}),
        lambda data: signed([]),
        lambda data: changed(data, key="another key"),
        lambda data: changed(data, top="3"),
        lambda data: changed(data, top=None),
        lambda data: changed(data, figures=[1.0, 2.0]),
        lambda data: changed(data, figures=None),
        lambda data: changed(data, figures=[None, 1.0, 2.0]),
        lambda data: changed(data, nonfinite="many"),
        lambda data: changed(data, nonfinite=float("inf")),
        lambda data: changed(data, places="text"),
        lambda data: changed(data, places=[2**70, 1, 2]),
        lambda data: changed(data, places=None),
        lambda data: changed(data, values={"a": 1}),
        lambda data: changed(data, values=[10**400, 1.0, 2.0]),
        lambda data: changed(data, scores=["x", 1.0, 2.0]),
    ],
)
def test_a_damaged_entry_is_as_good_as_none(kept, damage):
    kept.save("key", 3, SUMMARY)
    path = entry_of(kept)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert kept.load("key", 3) is None
    kept.save("key", 3, SUMMARY)
    assert path.read_bytes() == data
    assert same(kept.load("key", 3), SUMMARY)


def test_every_bit_counts(kept):
    kept.save("key", 3, SUMMARY)
    path = entry_of(kept)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 7)]) + data[place + 1 :])
        loaded = kept.load("key", 3)
        assert loaded is None or same(loaded, SUMMARY)  # as where a space became another space


def test_an_entry_in_the_place_of_another(kept):
    kept.save("key", 3, SUMMARY)
    first = entry_of(kept)
    kept.save("another key", 3, replace(SUMMARY, max_abs=9.0))
    (second,) = set(kept.folder.glob("*/*")) - {first}
    second.write_bytes(first.read_bytes())
    assert kept.load("another key", 3) is None
    assert same(kept.load("key", 3), SUMMARY)


@pytest.mark.parametrize("what", ["folder", "fifo", "link in a circle", "link to nothing"])
def test_what_is_no_file_in_the_place_of_an_entry(kept, what):
    kept.save("key", 3, SUMMARY)
    path = entry_of(kept)
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path if what == "link in a circle" else path.parent / "gone")
    assert kept.load("key", 3) is None
    kept.save("key", 3, SUMMARY)
    loaded = kept.load("key", 3)
    assert loaded is None if what == "folder" else same(loaded, SUMMARY)
    assert list(kept.folder.glob("*/*")) == [path]  # and nothing half written
    kept.clear()


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("here first")
    kept = ResultCache(tmp_path / "file" / "scans")
    kept.save("key", 3, SUMMARY)
    assert kept.load("key", 3) is None
    assert kept.size() == kept.clear() == (0, 0)
    assert (tmp_path / "file").read_text() == "here first"


def test_a_full_disk(kept):
    kept.save("key", 1, SUMMARY)
    path = entry_of(kept)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # that much of a file still has room
    try:
        kept.save("key", 3, SUMMARY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(kept.folder.glob("*/*")) == [path]
    assert path.read_bytes() == before


def test_two_writers_at_once(kept):
    summaries = [replace(SUMMARY, values=np.full(3, float(number))) for number in range(4)]
    stop = threading.Event()

    def write(summary):
        while not stop.is_set():
            kept.save("key", 3, summary)

    kept.save("key", 3, summaries[0])
    threads = [threading.Thread(target=write, args=(summary,)) for summary in summaries]
    for thread in threads:
        thread.start()
    try:
        loaded = [kept.load("key", 3) for _ in range(300)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(any(same(one, summary) for summary in summaries) for one in loaded)
    assert len(list(kept.folder.glob("*/*"))) == 1


# Keys


class HashedSource(FolderSource):
    """A folder whose files have a hash, as those of the Hub do."""

    hashes = "sha256:1"

    def content(self, filename):
        return self.hashes


def key_of(folder, *, score="magnitude", content="sha256:1", **changes):
    source = HashedSource(folder)
    source.hashes = content
    checkpoint = Checkpoint(source)
    checkpoint.config |= changes.pop("config", {})
    matrix = down_projections(checkpoint)[1].matrix
    matrix = turned(matrix) if changes.pop("turned", False) else replace(matrix, **changes)
    return describe(checkpoint, score, matrix, matrix.parts)


def test_the_key_is_what_makes_a_result_true(tmp_path):
    write_llama(tmp_path / "a", random_downs())
    write_llama(tmp_path / "b", random_downs(), vocab_size=99)
    key = key_of(tmp_path / "a")
    assert key_of(tmp_path / "b") == key  # of the config, only what matters
    others = [
        key_of(tmp_path / "a", score="gain"),
        key_of(tmp_path / "a", content="sha256:2"),
        key_of(tmp_path / "a", turned=True),
        key_of(tmp_path / "a", encoding="another"),
        key_of(tmp_path / "a", shape=(20, 8)),
        key_of(tmp_path / "a", config={"model_type": "gemma"}),
        key_of(tmp_path / "a", config={"text_config": {"model_type": "gpt_oss"}}),
        key_of(tmp_path / "a", config={"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ]
    assert len({key, *others}) == 1 + len(others)
    assert key_of(tmp_path / "a", content=None) is None


def test_the_key_tells_places(tmp_path):
    write_llama(tmp_path, random_downs())
    checkpoint = Checkpoint(HashedSource(tmp_path))
    matrices = [projection.matrix for projection in down_projections(checkpoint)]
    keys = [describe(checkpoint, "magnitude", matrix, matrix.parts) for matrix in matrices]
    part = matrices[0].data
    parts = [
        [part, part],
        [replace(part, stop=part.stop - 2)],
        [replace(part, dtype="F16")],
        [replace(part, shape=(20, 8))],
    ]
    keys += [describe(checkpoint, "magnitude", matrices[0], each) for each in parts]
    assert len(set(keys)) == len(keys) == 7


def test_another_method_has_another_key(tmp_path, monkeypatch):
    write_llama(tmp_path, random_downs())
    key = key_of(tmp_path)
    monkeypatch.setattr(cache_module, "METHOD", cache_module.METHOD + 1)
    assert key_of(tmp_path) != key


# The folder and the command


def test_where_entries_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SUPERWEIGHT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine" / "scans"
    monkeypatch.delenv("SUPERWEIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().is_relative_to(tmp_path)
    assert cache_folder().parts[-2:] == ("superweight", "scans")
