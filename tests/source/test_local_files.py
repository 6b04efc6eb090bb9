"""Local files that are held open: what is read is of one state of them, and a change is told."""

import gc
import os
import threading
from pathlib import Path

import pytest

from analyzer.base.errors import SourceError
from analyzer.source.local_files import MAX_HELD, LocalFiles


def replaced(path, data):
    """Put other bytes in a file's place as a writer that renames does, with the times of the one before."""
    before = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def in_place(path, data):
    with path.open("r+b") as file:
        file.write(data)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old!" * 1000)
    return path


def removed(path, _):
    path.unlink()


@pytest.mark.parametrize("change", [replaced, in_place])
def test_a_file_that_changed_since_it_was_listed_is_not_read(path, change):
    files = LocalFiles()
    files.see(path, path.stat())
    change(path, b"new!" * 1000)
    with pytest.raises(SourceError, match=r"weights changed while it was read: run it again when nothing writes"):
        files.read(path, 0, 8)


@pytest.mark.parametrize("change", [replaced, in_place, removed])
def test_a_change_of_what_is_held_is_noticed_by_the_next_read_and_at_the_end(path, change):
    files = LocalFiles()
    assert files.read(path, 0, 8) == b"old!old!"
    files.check()
    change(path, b"new!" * 1000)
    with pytest.raises(SourceError, match="weights changed while it was read"):
        files.read(path, 8, 16)
    with pytest.raises(SourceError, match=r"weights (changed while it was read|was read, and is gone \(No such file)"):
        files.check()


def test_only_what_was_read_or_handed_out_is_checked(path):
    files = LocalFiles()
    files.see(path, path.stat())
    in_place(path, b"new!")
    files.check()
    files.hand_out(path)
    with pytest.raises(SourceError, match="changed"):
        files.check()


def test_a_change_of_what_a_link_leads_to_is_one_of_the_file(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    files = LocalFiles()
    files.read(link, 0, 4)
    replaced(path, b"new!")
    with pytest.raises(SourceError, match="link changed"):
        files.check()


def test_many_files_and_many_threads_hold_few_descriptors(tmp_path):
    files, paths, wrong = LocalFiles(), [tmp_path / str(number) for number in range(MAX_HELD + 40)], []
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    gc.collect()  # else what other tests left open may be closed meanwhile
    before = open_files()

    def read():
        for path in paths:
            if files.read(path, 0, len(path.name)) != path.name.encode():
                wrong.append(path)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert open_files() - before == MAX_HELD
    files.check()
    in_place(paths[-1], b"!")
    with pytest.raises(SourceError, match="changed"):
        files.read(paths[-1], 0, 1)


def test_what_is_held_is_closed_with_the_last_reference(path):
    before = open_files()
    files = LocalFiles()
    files.read(path, 0, 4)
    assert open_files() == before + 1
    del files
    assert open_files() == before


def test_a_read_into_memory_is_of_one_state_and_is_whole(path, monkeypatch):
    files, memory = LocalFiles(), bytearray(b"-" * 12)
    files.read_into(path, 2, memoryview(memory)[1:9])
    assert memory == b"-d!old!ol---"
    with pytest.raises(SourceError, match=r"weights ends at byte 4000, expected 4008: it is truncated"):
        files.read_into(path, 3996, memoryview(memory))
    with pytest.raises(SourceError, match=r"cannot read .*: No such file"):
        files.read_into(path.with_name("other"), 0, memoryview(memory))
    in_place(path, b"new!" * 1000)
    with pytest.raises(SourceError, match="weights changed while it was read"):
        files.read_into(path, 0, memoryview(memory))


@pytest.mark.parametrize("has_preadv", [True, False])
def test_a_read_into_memory_goes_on_where_one_stops_short(path, monkeypatch, has_preadv):
    """As at 2 GiB on Linux."""
    if has_preadv:
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda descriptor, parts, at: preadv(descriptor, [parts[0][:3]], at))
    else:
        monkeypatch.delattr(os, "preadv")
    memory = bytearray(10)
    LocalFiles().read_into(path, 4, memoryview(memory))
    assert memory == b"old!old!ol"
