"""A GGUF file as a model: how it is named, and which of a folder's or repository's files are one."""

import os
import shutil

import pytest
from checkpoints import random_downs, refused, write_llama

from analyzer.source.folder import FolderSource
from analyzer.source.hub.hub import HubSource
from analyzer.source.opening import open_model
from analyzer.source.single_file import MAX_PARTS, gguf_files, parts_of_file

PARTS = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def write(folder, *names):
    """Write files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def content(source):
    return {name: bytes(source.read(name, 0, size)).decode() for name, size in source.sizes.items()}


# On the disk


@pytest.mark.parametrize("name", ["{}/x.gguf", "{}:x.gguf", "{}/", "{}/../quant/x.gguf"])
def test_the_ways_to_name_the_only_file_of_a_folder(tmp_path, name):
    folder = write(tmp_path / "quant", "x.gguf", "README.md")
    source = open_model(name.format(folder))
    assert (source.model, source.revision, source.commit) == ("quant:x.gguf", None, None)
    assert content(source) == {"x.gguf": "x.gguf"}
    assert source.content("x.gguf") is None
    assert source.folder(["x.gguf"]) == folder
    assert (source.readers, source.block_bytes) == (FolderSource(folder).readers, FolderSource.block_bytes)


def test_relative_names_and_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "quant", "x.gguf")
    monkeypatch.chdir(tmp_path / "quant")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("x.gguf", "./x.gguf", "~/quant/x.gguf", "~/quant:x.gguf", "."):
        assert open_model(name).model == "quant:x.gguf"


def test_a_file_among_others(tmp_path):
    folder = write(tmp_path / "quant", "x.gguf", "y.gguf", "sub/z.gguf", "model.safetensors")
    assert content(open_model(f"{folder}/y.gguf")) == {"y.gguf": "y.gguf"}
    assert open_model(f"{folder}:sub/z.gguf").model == "quant:sub/z.gguf"
    assert open_model(f"{folder}:z.gguf", subfolder="sub").model == "quant:sub/z.gguf"
    assert content(open_model(f"{folder}/sub/z.gguf")) == {"z.gguf": "sub/z.gguf"}
    assert open_model(f"{folder}:y.gguf", model_id="me/mine").model == "me/mine:y.gguf"


def test_safetensors_go_before_gguf(tmp_path):
    write_llama(tmp_path / "tiny", random_downs())
    write(tmp_path / "tiny", "x.gguf", "y.gguf")
    source = open_model(str(tmp_path / "tiny"))
    assert source.model == "tiny"
    assert "model.safetensors" in source.sizes


def test_several_and_none_named(tmp_path):
    folder = write(tmp_path / "quant", "b.gguf", "a.gguf", "model.bin", *PARTS)
    assert refused(open_model, str(folder)) == (
        "quant has 3 GGUF files, and none is named: give quant:FILE, where FILE is one of a.gguf, b.gguf, "
        "big-00001-of-00003.gguf"
    )
    write(folder, *(f"{number:03}.gguf" for number in range(100)))
    message = refused(open_model, str(folder))
    assert "has 103 GGUF files" in message
    assert message.endswith("038.gguf, 039.gguf, …")


def test_a_file_that_is_not_there(tmp_path):
    folder = write(tmp_path / "quant", "x.gguf")
    assert refused(open_model, f"{folder}:y.gguf") == (
        "quant has no file y.gguf: give quant:FILE, where FILE is one of x.gguf"
    )
    assert "there is no folder or file" in refused(open_model, f"{folder}/y.gguf")
    assert "has no file y.gguf, nor any other GGUF file" in refused(open_model, f"{write(tmp_path / 'n', 'a')}:y.gguf")
    assert "cannot list" in refused(open_model, f"{folder}:sub/y.gguf")
    assert "leads out of" in refused(open_model, f"{folder}:../y.gguf")
    assert "has no revisions" in refused(open_model, f"{folder}/x.gguf", revision="main")


def test_what_is_no_regular_file(tmp_path):
    (tmp_path / "quant").mkdir()
    os.mkfifo(tmp_path / "quant" / "x.gguf")
    assert "has no file x.gguf" in refused(open_model, str(tmp_path / "quant" / "x.gguf"))
    (tmp_path / "y.gguf").mkdir()
    assert open_model(str(tmp_path / "y.gguf")).sizes == {}  # a folder of that name


def test_links_lead_to_files_elsewhere(tmp_path):
    """As in the Hub's own cache: the name counts, not where it leads."""
    write(tmp_path / "blobs", "0a1b")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "x.gguf").symlink_to(tmp_path / "blobs" / "0a1b")
    source = open_model(str(tmp_path / "snapshot" / "x.gguf"))
    assert (source.model, content(source)) == ("snapshot:x.gguf", {"x.gguf": "0a1b"})


# Split files


@pytest.mark.parametrize("named", ["", *(f":{part}" for part in PARTS)])
def test_the_parts_of_a_split_file_are_one_model(tmp_path, named):
    folder = write(tmp_path / "quant", *PARTS)
    source = open_model(f"{folder}{named}")
    assert source.model == f"quant:{PARTS[0]}"
    assert content(source) == {part: part for part in PARTS}


def test_a_missing_part(tmp_path):
    folder = write(tmp_path / "quant", *PARTS)
    (folder / PARTS[1]).unlink()
    for name in (str(folder / PARTS[0]), f"{folder}:{PARTS[2]}"):
        assert f"the part {PARTS[1]} is missing: download it too" in refused(open_model, name)
    assert f"the part {PARTS[1]} is missing" in refused(open_model, str(folder))
    (folder / PARTS[0]).unlink()
    assert f"the part {PARTS[0]} is missing" in refused(open_model, str(folder))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("x.gguf", ["x.gguf"]),
        ("x-00001-of-00001.gguf", ["x-00001-of-00001.gguf"]),
        ("x-00002-of-00002.gguf", ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]),
        ("a/x-1-of-2.gguf", ["a/x-1-of-2.gguf"]),
        ("x-00001-of-00000.gguf", ["x-00001-of-00000.gguf"]),
        ("x-00001-of-99999.gguf", ["x-00001-of-99999.gguf"]),  # no file has so many
    ],
)
def test_names_of_parts(name, parts):
    assert parts_of_file(name) == parts


def test_the_largest_number_of_parts():
    assert len(parts_of_file(f"x-00007-of-{MAX_PARTS:05}.gguf")) == MAX_PARTS


def test_names_that_a_terminal_would_obey_are_no_choice():
    assert gguf_files(["a\x1b[2J.gguf", "b.gguf", "c.GGUF", "d.gguf.part1of2"]) == ["b.gguf"]


# On the Hub


@pytest.fixture
def quants(hub, tmp_path):
    """A repository with two files, and one in parts in a folder of its own."""
    folder = write(tmp_path / "repo", "a.gguf", "b.gguf", *(f"Q8/{part}" for part in PARTS))
    return hub.add("owner/quants", folder)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_file_of_a_repository(hub, quants, revision):
    at = "@main" if revision else ""
    source = open_model(f"owner/quants{at}:b.gguf")
    assert (source.model, source.revision, source.commit) == ("owner/quants:b.gguf", revision, quants)
    assert content(source) == {"b.gguf": "b.gguf"}
    assert source.content("b.gguf").startswith("sha256:")
    assert (source.readers, source.block_bytes) == (HubSource.readers, HubSource.block_bytes)
    assert open_model("owner/quants:b.gguf", revision="main").revision == "main"


@pytest.mark.parametrize(
    ("name", "subfolder"),
    [(f"owner/quants:Q8/{PARTS[0]}", None), (f"owner/quants:{PARTS[2]}", "Q8"), ("owner/quants", "Q8/")],
)
def test_a_split_file_in_a_folder_of_a_repository(hub, quants, name, subfolder):
    source = open_model(name, subfolder=subfolder)
    assert source.model == f"owner/quants:Q8/{PARTS[0]}"
    assert content(source) == {part: f"Q8/{part}" for part in PARTS}


def test_several_in_a_repository_and_none_named(hub, quants):
    assert refused(open_model, "owner/quants@main") == (
        f"owner/quants has 3 GGUF files, and none is named: give owner/quants:FILE, where FILE is one of "
        f"Q8/{PARTS[0]}, a.gguf, b.gguf"
    )
    assert "owner/quants has no file c.gguf: give owner/quants:FILE" in refused(open_model, "owner/quants:c.gguf")


def test_the_only_file_of_a_repository_need_not_be_named(hub, tmp_path):
    hub.add("owner/one", write(tmp_path / "one", "Q4/x.gguf", "README.md", "imatrix.dat"))
    source = open_model("owner/one")
    assert source.model == "owner/one:Q4/x.gguf"
    assert content(source) == {"Q4/x.gguf": "Q4/x.gguf"}
    assert open_model("owner/one:Q4/x.gguf").model == source.model


@pytest.mark.parametrize("name", ["owner/quants:b.gguf", f"owner/quants:Q8/{PARTS[1]}"])
def test_a_file_in_the_hubs_cache_without_a_network(hub, quants, name, monkeypatch):
    from huggingface_hub import constants, snapshot_download

    snapshot_download("owner/quants")
    online = open_model(name)
    hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = open_model(name)
    assert (source.model, source.commit) == (online.model, quants)
    assert content(source) == content(online)
    assert hub.requests == []


def test_a_folder_goes_before_a_repository(hub, quants, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "repo", "owner/quants")
    assert open_model("owner/quants:a.gguf").model == "quants:a.gguf"


def test_paths_that_lead_elsewhere(hub, quants):
    assert "is not a plain path inside the repository" in refused(open_model, "owner/quants:../a.gguf")
    assert "has no file Q8/a.gguf: give owner/quants:FILE, where FILE is one of Q8/big-0" in refused(
        open_model, "owner/quants:/Q8/a.gguf"
    )
