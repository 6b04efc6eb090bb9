"""A file is written whole or not at all."""

import os
import stat

import pytest

from analyzer.base.atomic import write_whole


def test_a_file_is_written_for_all_to_read(tmp_path):
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


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
