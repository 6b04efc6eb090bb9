"""Where an entry is written: what is told before the work, links, locks, full disks, and what a killed writer left."""

import os
import resource
import time
from contextlib import contextmanager

import pytest
from catalogs import entry

from analyzer.base.errors import CatalogError
from analyzer.catalog.documents import read_document, schema_text
from analyzer.catalog.files import check_destination, left_in, save_entry


@contextmanager
def files_of_at_most(size):
    """Let no file grow beyond so many bytes, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def refused(folder, *fragments, family="x", model="me/model"):
    with pytest.raises(CatalogError) as error:
        check_destination(folder, family, model)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_a_destination_that_will_do_is_made_and_holds_no_file(tmp_path):
    check_destination(tmp_path / "new" / "catalog", "x", "me/model")
    assert [path.name for path in (tmp_path / "new" / "catalog").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["a\nb", "a\u202eb", "x" * 2001, "a\u200bb"])
def test_a_name_that_no_catalog_may_hold_is_told_with_its_cure(tmp_path, name):
    refused(tmp_path, "no catalog may hold the name", "give another (--model-id)", model=name)


def test_a_lock_that_cannot_be_opened_is_the_thing_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    refused(tmp_path, f"cannot make the lock {tmp_path}/.lock: Is a directory", "--catalog")
    with pytest.raises(CatalogError, match=r"cannot make the lock"):
        save_entry(tmp_path, "x", entry())


def test_a_folder_that_cannot_be_one_is_told(tmp_path):
    (tmp_path / "file").write_text("here first")
    refused(tmp_path / "file", "is a file: give a folder")
    refused(tmp_path / "file" / "catalog", "cannot make the folder", "Not a directory")
    refused(tmp_path / ("x" * 300), "File name too long")


def test_a_link_is_written_through(tmp_path):
    shared = tmp_path / "shared"
    save_entry(shared, "x", entry(commit="a" * 40))
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "x.json").symlink_to(shared / "x.json")
    path = save_entry(tmp_path / "catalog", "x", entry(commit="b" * 40))
    assert path.is_symlink()
    assert [each["commit"][0] for each in read_document(shared / "x.json")["entries"]] == ["a", "b"]


def test_a_link_that_leads_nowhere_or_to_another_file_is_refused(tmp_path):
    (tmp_path / "x.json").symlink_to(tmp_path / "gone")
    refused(tmp_path, "x.json is a link that leads nowhere")
    (tmp_path / "secrets").write_text("not a catalog's")
    (tmp_path / "y.json").symlink_to(tmp_path / "secrets")
    refused(tmp_path, "y.json is not JSON", family="y")
    assert (tmp_path / "secrets").read_text() == "not a catalog's"


def test_a_disk_that_fills_before_the_schema_says_what_was_written(tmp_path):
    size = save_entry(tmp_path / "other", "x", entry()).stat().st_size
    assert size < len(schema_text())
    with files_of_at_most(size), pytest.raises(CatalogError) as error:
        save_entry(tmp_path, "x", entry())
    assert str(error.value) == (
        f"{tmp_path}/x.json is written, but not schema.json beside it: File too large; the next write adds it"
    )
    assert not (tmp_path / "schema.json").exists()
    save_entry(tmp_path, "x", entry())
    assert (tmp_path / "schema.json").read_text("utf-8") == schema_text()


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path):
    path = save_entry(tmp_path, "x", entry())
    before = path.read_bytes()
    with files_of_at_most(50), pytest.raises(CatalogError, match=r"x\.json: File too large; what was there is unch"):
        save_entry(tmp_path, "x", entry(commit="b" * 40))
    assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "schema.json", "x.json"]


@pytest.mark.parametrize("what", ["pipe", "link to nothing", "folder"])
def test_what_stands_in_place_of_the_schema_is_left_alone_and_not_waited_for(tmp_path, what):
    path = tmp_path / "schema.json"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "gone")
    before = path.lstat()
    save_entry(tmp_path, "x", entry())
    assert path.lstat().st_ino == before.st_ino
    assert len(read_document(tmp_path / "x.json")["entries"]) == 1


def test_a_huge_file_in_place_of_the_schema_is_not_read(tmp_path):
    with (tmp_path / "schema.json").open("wb") as file:
        file.truncate(1 << 40)
    began = time.monotonic()
    save_entry(tmp_path, "x", entry())
    assert time.monotonic() - began < 5
    assert (tmp_path / "schema.json").stat().st_size == 1 << 40


def test_a_private_file_stays_private(tmp_path):
    path = save_entry(tmp_path, "x", entry())
    path.chmod(0o600)
    save_entry(tmp_path, "x", entry(commit="b" * 40))
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_writer_left_is_named_until_the_next_write(tmp_path):
    save_entry(tmp_path, "x", entry())
    (tmp_path / ".writing.0123.tmp").write_text("half")
    assert left_in(tmp_path) == [".writing.0123.tmp"]
    save_entry(tmp_path, "x", entry(commit="b" * 40))
    assert left_in(tmp_path) == []
