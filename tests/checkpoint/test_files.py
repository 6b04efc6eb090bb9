"""Files of a checkpoint that are something else: a pointer, a web page, a message, no text at all."""

import pytest
from checkpoints import POINTER, random_downs, write_llama

from analyzer.base.errors import CheckpointError, HeaderError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX, SINGLE
from analyzer.source.folder import FolderSource


def refused(folder, error=CheckpointError):
    with pytest.raises(error) as caught:
        Checkpoint(FolderSource(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download"),
        ("<!doctype html><html><body>Sign in</body></html>", "is a web page (HTML), a login or an error"),
        ("\ufeff\n <HTML lang='en'>\n", "is a web page (HTML)"),
        ('{"error":"Entry not found"}', 'is text, perhaps a server\'s message that was saved in the file\'s'),
        ('{"error":"Entry not found"}', 'download it again ({"error":"Entry not found"})'),
        ("Entry not found", "(Entry not found)"),
        ("Accès\trefusé\r\n" * 100, "(Accès refusé Accès refusé "),
        ("<?xml version='1.0'?><Error/>", "is text, perhaps a server's message"),
        ("404", "is text, perhaps"),
    ],
)  # fmt: skip
def test_what_was_saved_in_a_shards_place(tmp_path, shards, text, said):
    write_llama(tmp_path, random_downs(), shards=shards)
    name = "model-00002-of-00002.safetensors" if shards == 2 else SINGLE
    (tmp_path / name).write_text(text, encoding="utf-8")
    message = refused(tmp_path, HeaderError)
    assert message.startswith(f"{tmp_path.name}: {name} is ")
    assert said in message
    assert "header" not in message


@pytest.mark.parametrize(
    "data", [b"\x80\x02}q\x00.", bytes(range(200)), b"PK\x03\x04\x14\0\0\0" + bytes(99), b"\xff" * 9]
)
def test_what_is_no_text_is_not_called_so(tmp_path, data):
    write_llama(tmp_path, random_downs())
    (tmp_path / SINGLE).write_bytes(data)
    assert "is text" not in refused(tmp_path, HeaderError)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    ("text", "said"), [(POINTER, "is a Git LFS pointer"), ("<html>", "is a web page"), ("Not found", "is not JSON")]
)
def test_what_was_saved_in_the_place_of_json(tmp_path, name, text, said):
    write_llama(tmp_path, random_downs(), shards=2)
    (tmp_path / name).write_text(text)
    assert refused(tmp_path).startswith(f"{tmp_path.name}: {name} {said}")


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_byte_order_mark_is_no_part_of_json(tmp_path, name):
    write_llama(tmp_path, random_downs(), shards=2)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert Checkpoint(FolderSource(tmp_path)).model_type == "llama"
