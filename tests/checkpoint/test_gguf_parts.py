"""GGUF files as checkpoints: whole, in parts, and in parts that do not belong together."""

import struct

import pytest
from gguf_files import read_by_the_library, write_llama_gguf

from analyzer.base.errors import CheckpointError, HeaderError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.gguf import FIRST_READ
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model


def test_every_tensor_is_read_as_the_library_reads_it(tmp_path):
    write_llama_gguf(tmp_path / "x.gguf", "Q5_K")
    checkpoint = Checkpoint(open_model(str(tmp_path / "x.gguf")))
    for name, tensor in read_by_the_library(tmp_path / "x.gguf").items():
        assert b"".join(checkpoint.blocks(checkpoint.tensors[name], element_bytes=1)) == tensor.data.tobytes()
    assert checkpoint.model_type == "llama"
    assert checkpoint.shards == ("x.gguf",)
    size = (tmp_path / "x.gguf").stat().st_size
    assert checkpoint.total_bytes == size
    stored = sum(tensor.record.stop - tensor.record.start for tensor in checkpoint.tensors.values())
    assert checkpoint.bytes_read == stored + min(FIRST_READ, size)


def split(path, **options):
    """Write a file in three parts, and return these."""
    write_llama_gguf(path, "Q8_0", layers=3, split_max_tensors=4, **options)
    assert not path.exists()
    return sorted(path.parent.glob("*.gguf"))


def read_parts(folder):
    return Checkpoint(FolderSource(folder))


def parts_refused(folder):
    with pytest.raises(CheckpointError) as caught:
        read_parts(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "is a Git LFS pointer, not the file"),
        ("<!DOCTYPE html><html>", "is a web page (HTML)"),
        (
            '{"error": "no"}',
            "is text, perhaps a server's message that was saved in the file's place: download it again",
        ),
        ("", "is no GGUF file"),
    ],
)
def test_what_lies_in_the_place_of_a_file(tmp_path, text, said):
    (tmp_path / "x.gguf").write_text(text)
    assert f"x.gguf {said}" in parts_refused(tmp_path)


def test_a_split_file_is_one_model(tmp_path):
    parts = split(tmp_path / "parts" / "x.gguf")
    assert [part.name for part in parts] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    write_llama_gguf(tmp_path / "x.gguf", "Q8_0", layers=3)
    checkpoint, whole = read_parts(tmp_path / "parts"), Checkpoint(open_model(str(tmp_path / "x.gguf")))
    assert checkpoint.shapes == whole.shapes
    assert checkpoint.config == whole.config
    for name, tensor in whole.tensors.items():
        (expected,) = whole.blocks(tensor, element_bytes=1)
        assert b"".join(checkpoint.blocks(checkpoint.tensors[name], element_bytes=1)) == expected


def test_parts_that_do_not_belong_together(tmp_path):
    _, second, third = split(tmp_path / "x.gguf")
    third.rename(tmp_path / "kept")
    assert "x-00001-of-00003.gguf says that it is part 0 of 3, not 0 of 2, counted from 0" in parts_refused(tmp_path)
    third.write_bytes(second.read_bytes())
    assert "x-00003-of-00003.gguf says that it is part 1 of 3, not 2 of 3" in parts_refused(tmp_path)
    second.rename(tmp_path / "a.gguf")  # comes first by its name
    (tmp_path / "kept").rename(third)
    assert "a.gguf says that it is part 1 of 3, not 0 of 3" in parts_refused(tmp_path)


def edit(path, old, new):
    """Change one place of a file."""
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def test_a_tensor_in_two_parts(tmp_path):
    parts = split(tmp_path / "x.gguf")
    edit(parts[1], b"blk.1.ffn_norm.weight", b"blk.0.ffn_norm.weight")
    assert "blk.0.ffn_norm.weight is in two parts" in parts_refused(tmp_path)


def test_fewer_tensors_than_the_first_part_tells_of(tmp_path):
    parts = split(tmp_path / "x.gguf")
    key = b"split.tensors.count" + struct.pack("<I", 5)
    edit(parts[0], key + struct.pack("<i", 10), key + struct.pack("<i", 11))
    assert "has 10 tensors, not the 11 that x-00001-of-00003.gguf tells of" in parts_refused(tmp_path)


def test_errors_name_the_model_and_the_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(HeaderError, match=rf"^{tmp_path.name}: x.gguf is GGUF of version 1"):
        read_parts(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(HeaderError, match=rf"^{tmp_path.name}: x.gguf names no general.architecture"):
        read_parts(tmp_path)
