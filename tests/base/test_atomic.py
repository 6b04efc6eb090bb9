"""A file is written whole or not at all, with the modes that its user wants, and what was left is cleared away."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from analyzer.base.atomic import check_writable, leftovers, write_whole


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "x", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "x").read_bytes() == b"new"
    assert mode_of(tmp_path / "x") == mode
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(mode)
    write_whole(tmp_path / "x", b"new")
    assert (mode_of(tmp_path / "x"), (tmp_path / "x").read_bytes()) == (mode, b"new")


def test_the_same_content_again_is_not_written(tmp_path, monkeypatch):
    write_whole(tmp_path / "x", b"same")
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("it is written again"))
    write_whole(tmp_path / "x", b"same")


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "x", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "y").write_bytes(b"old")
    (tmp_path / "x").symlink_to("there/y")
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").is_symlink()
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == {"y": b"new"}


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="not a regular file"):
        write_whole(tmp_path / "pipe", b"new")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(tmp_path / "a", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "pipe"]


WRITER = """
import os, pathlib, sys, time
def wait(_):
    print("writing", flush=True)
    time.sleep(60)
os.fsync = wait
from analyzer.base.atomic import write_whole
write_whole(pathlib.Path(sys.argv[1]), b"half")
"""


def test_the_next_writer_clears_away_what_a_killed_one_left_and_not_what_another_holds(tmp_path):
    write_whole(tmp_path / "x", b"old")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        (begun,) = tmp_path.glob(".writing.*.tmp")
        write_whole(tmp_path / "x", b"new")
        assert begun.exists()
        assert leftovers(tmp_path) == []
        writer.send_signal(signal.SIGKILL)
    assert leftovers(tmp_path) == [begun]
    assert (tmp_path / "x").read_bytes() == b"new"
    write_whole(tmp_path / "x", b"newer")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"newer"}


MANY = """
import pathlib, sys
from analyzer.base.atomic import write_whole
for number in range(400):
    write_whole(pathlib.Path(sys.argv[1]), str(number).encode(), durable=False)
"""


def test_writers_of_one_folder_take_nothing_from_each_other(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path / str(name))], stderr=subprocess.PIPE, text=True)
        for name in range(4)
    ]
    assert [writer.communicate()[1] for writer in writers] == [""] * 4
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("0123", "399")


def test_what_cannot_be_written_is_known_before(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "x")
    (tmp_path / "file").write_text("")
    for name, said in (
        ("pipe", "not a regular file"),
        ("circle", "symbolic links"),
        ("nowhere", "No such file"),
        ("file/x", "Not a directory"),
        ("gone/x", "No such file"),
    ):
        with pytest.raises(OSError, match=said):
            check_writable(tmp_path / name)
        with pytest.raises(OSError, match=said):
            write_whole(tmp_path / name, b"new")
    assert check_writable(tmp_path / "x") == tmp_path / "x"
