"""The local folder as a source: what is read of it, and what is refused."""

import os

import pytest
from checkpoints import refused

from analyzer.source.opening import open_model
from analyzer.source.source import is_plain_path

WEIGHTS = "model.safetensors"


def test_a_folder_is_read_exactly(folder):
    source = open_model(str(folder))
    data = (folder / WEIGHTS).read_bytes()
    assert source.sizes == {WEIGHTS: len(data), "config.json": (folder / "config.json").stat().st_size}
    assert (source.model, source.revision, source.commit) == ("tiny", None, None)
    for start, stop in [(0, 0), (0, 1), (5, 77), (len(data) - 1, len(data)), (0, len(data))]:
        assert source.read(WEIGHTS, start, stop) == data[start:stop]
    assert source.folder([WEIGHTS]) == folder


def test_links_to_files_are_followed(folder, tmp_path):
    # So does the Hub's cache keep a snapshot: as links to blobs.
    linked = tmp_path / "snapshot"
    linked.mkdir()
    (linked / WEIGHTS).symlink_to(folder / WEIGHTS)
    (linked / "gone.safetensors").symlink_to(folder / "gone")
    source = open_model(str(linked))
    assert list(source.sizes) == [WEIGHTS]
    assert source.read(WEIGHTS, 3, 9) == (folder / WEIGHTS).read_bytes()[3:9]


def test_only_regular_files_are_listed(folder):
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "sub.safetensors").mkdir()
    assert set(open_model(str(folder)).sizes) == {WEIGHTS, "config.json"}


def test_a_fifo_in_place_of_a_file_does_not_hang(folder):
    source = open_model(str(folder))
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert "is not a regular file" in refused(source.read, WEIGHTS, 0, 8)


def test_files_that_went_away_or_shrank(folder):
    source = open_model(str(folder))
    size = (folder / WEIGHTS).stat().st_size
    assert f"ends at byte {size}, expected {size + 1}: it is truncated" in refused(source.read, WEIGHTS, 90, size + 1)
    assert "it is truncated" in refused(source.read, WEIGHTS, size + 200, size + 300)
    os.truncate(folder / WEIGHTS, 100)
    assert "changed while it was read" in refused(source.read, WEIGHTS, 0, 8)
    (folder / WEIGHTS).unlink()
    assert "No such file" in refused(open_model(str(folder)).read, WEIGHTS, 0, 8)
    (folder / WEIGHTS).mkdir()
    assert "is not a regular file" in refused(open_model(str(folder)).read, WEIGHTS, 0, 8)


def test_subfolders(folder):
    source = open_model(str(folder.parent), subfolder="tiny")
    assert source.read("config.json", 0, 1) == b"{"
    assert source.folder([WEIGHTS]) == folder
    assert "cannot list" in refused(open_model, str(folder), subfolder="missing")
    assert "cannot list" in refused(open_model, str(folder), subfolder=WEIGHTS)


@pytest.mark.parametrize("subfolder", ["..", "../tiny2", "a/../../x", "/etc", "link"])
def test_a_subfolder_that_leads_out(folder, tmp_path, subfolder):
    (tmp_path / "tiny2").mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert "leads out of" in refused(open_model, str(folder), subfolder=subfolder)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a", True),
        ("a/b-1.safetensors", True),
        ("..a/b..", True),
        ("ä", True),
        ("", False),
        (".", False),
        ("..", False),
        ("a/..", False),
        ("a/./b", False),
        ("a//b", False),
        ("a/", False),
        ("/a", False),
        ("a\\b", False),
        ("C:a", False),
        ("a?b", False),
        ("a#b", False),
        ("a%2e", False),
        ("a*", False),
        ("a\0", False),
        ("a\n", False),
        ("a\u202eb", False),
    ],
)
def test_plain_paths(name, plain):
    assert is_plain_path(name) is plain


def test_a_link_that_leads_in_a_circle_is_no_file(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.txt").write_text("abc")
    assert dict(open_model(str(tmp_path)).sizes) == {"a.txt": 3}


def test_files_in_subfolders_are_found_by_their_names(folder, tmp_path):
    (folder / "shards").mkdir()
    (folder / "shards" / "a.safetensors").write_bytes(b"abc")
    (tmp_path / "outside.safetensors").touch()
    source = open_model(str(folder))
    assert set(source.sizes) == {WEIGHTS, "config.json"}
    assert len(source.sizes) == 2
    assert "shards/a.safetensors" in source.sizes
    assert source.sizes["shards/a.safetensors"] == 3
    assert source.read("shards/a.safetensors", 1, 3) == b"bc"
    for name in [
        "shards",
        "shards/b",
        "shards/../" + WEIGHTS,
        "../outside.safetensors",
        f"{folder}/shards/a.safetensors",
    ]:
        assert name not in source.sizes
