"""Checkpoints of one shard and of several, read as the library reads them; hostile indexes and configs are refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import LLAMA_DOWN, header_bytes, random_downs, write_config, write_gpt2, write_llama, write_tensors
from safetensors import safe_open

from analyzer.base.errors import CheckpointError, HeaderError, SourceError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def open_checkpoint(folder):
    return Checkpoint(FolderSource(folder))


def read_all(checkpoint, name, element_bytes=2):
    return b"".join(checkpoint.blocks(checkpoint.tensors[name], element_bytes=element_bytes))


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def refused(folder, *, error=CheckpointError):
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_every_tensor_is_read_as_the_library_reads_it(tmp_path, shards, dtype):
    write_llama(tmp_path, random_downs(dtype=dtype), shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    names = set()
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not iterable
                expected = opened.get_tensor(name)
                names.add(name)
                assert read_all(checkpoint, name) == expected.view(torch.uint8).numpy().tobytes()
                assert checkpoint.tensors[name].record.shape == tuple(expected.shape)
    assert checkpoint.tensors.keys() == names


def test_sizes_and_the_bytes_read_so_far(tmp_path):
    write_llama(tmp_path, random_downs(), shards=2)
    checkpoint = open_checkpoint(tmp_path)
    shards = [tmp_path / FIRST, tmp_path / SECOND]
    assert checkpoint.shards == (FIRST, SECOND)
    assert checkpoint.total_bytes == sum(shard.stat().st_size for shard in shards)
    opened = sum(map(header_bytes, shards)) + sum((tmp_path / n).stat().st_size for n in (INDEX, "config.json"))
    assert checkpoint.bytes_read == opened
    assert checkpoint.read(checkpoint.tensors[LLAMA_DOWN.format(1)], 2, 6) == random_downs()[1].tobytes()[2:6]
    assert checkpoint.bytes_read == opened + 4
    assert checkpoint.model_type == "llama"


class PlainSource(FolderSource):
    """A source that only gives bytes, as the Hub does."""

    read_into = None


@pytest.mark.parametrize("source", [FolderSource, PlainSource])
def test_tensors_are_read_into_memory_in_pieces(tmp_path, monkeypatch, source):
    monkeypatch.setattr("analyzer.checkpoint.checkpoint.PIECE_BYTES", 1001)
    monkeypatch.setattr(source, "block_bytes", 777)
    downs = random_downs()
    write_llama(tmp_path, downs, shards=2)
    checkpoint = Checkpoint(source(tmp_path))
    opened = checkpoint.bytes_read
    memory = bytearray(b"-" * (downs[0].nbytes + downs[1].nbytes + 3))
    parts = {0: slice(1, 1 + downs[0].nbytes), 1: slice(2 + downs[0].nbytes, len(memory) - 1)}
    checkpoint.read_into({LLAMA_DOWN.format(layer): memoryview(memory)[part] for layer, part in parts.items()})
    assert memory == b"-%b-%b-" % (downs[0].tobytes(), downs[1].tobytes())
    assert checkpoint.bytes_read == opened + downs[0].nbytes + downs[1].nbytes


def test_blocks_are_whole_elements_of_about_the_block_size(tmp_path):
    weights = np.random.default_rng(0).normal(size=1000)
    write_tensors(tmp_path, {"w": weights, "empty": weights[:0]})
    write_config(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.source.block_bytes = 1001
    blocks = list(checkpoint.blocks(checkpoint.tensors["w"], element_bytes=8))
    assert [len(block) for block in blocks] == [1000] * 8
    assert b"".join(blocks) == weights.tobytes()
    assert list(checkpoint.blocks(checkpoint.tensors["empty"], element_bytes=8)) == []


def test_one_safetensors_file_of_another_name(tmp_path):
    write_llama(tmp_path, random_downs())
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.fp16.safetensors")
    assert open_checkpoint(tmp_path).shards == ("weights.fp16.safetensors",)


def test_the_single_file_goes_before_an_index(tmp_path):
    write_llama(tmp_path, random_downs(seed=1), shards=2)
    write_llama(tmp_path, random_downs(seed=2))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == ("model.safetensors",)
    assert read_all(checkpoint, LLAMA_DOWN.format(0)) == random_downs(seed=2)[0].tobytes()


def test_a_tensor_in_two_shards_is_read_from_the_one_that_the_index_names(tmp_path):
    write_llama(tmp_path, random_downs(seed=1), shards=2)
    other = tmp_path / "other"
    write_llama(other, random_downs(seed=2))
    (other / "model.safetensors").rename(tmp_path / "more.safetensors")
    name = LLAMA_DOWN.format(1)
    change_index(tmp_path, lambda index: index["weight_map"].update({name: "more.safetensors"}))
    checkpoint = open_checkpoint(tmp_path)
    assert read_all(checkpoint, name) == random_downs(seed=2)[1].tobytes()
    assert read_all(checkpoint, LLAMA_DOWN.format(0)) == random_downs(seed=1)[0].tobytes()


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "../../../api/whoami-v2",
        "a/../../model.safetensors",
        "/etc/model.safetensors",
        "https://example.com/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "./model.safetensors",
        "a//model.safetensors",
        "model.safetensors?x=.safetensors",
        "model%2f.safetensors",
        "model\n.safetensors",
        "pytorch_model.bin",
        "",
        None,
        7,
        ["model.safetensors"],
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path, shard):
    folder = tmp_path / "model"
    write_llama(folder, random_downs(), shards=2)
    write_llama(tmp_path, random_downs())  # what `..` would find
    change_index(folder, lambda index: index["weight_map"].update({"model.embed_tokens.weight": shard}))
    assert "not a safetensors file of the model" in refused(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map(tmp_path, weight_map):
    write_llama(tmp_path, random_downs(), shards=2)
    change_index(tmp_path, lambda index: index.update(weight_map=weight_map))
    assert "has no weight_map" in refused(tmp_path)


def test_a_missing_shard(tmp_path):
    write_llama(tmp_path, random_downs(), shards=2)
    (tmp_path / SECOND).unlink()
    assert f"the shard {SECOND} that {INDEX} names is missing" in refused(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_opened(tmp_path, name):
    write_config(tmp_path)
    os.mkfifo(tmp_path / "x.safetensors")  # not a file either
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "only as pickle files, which can run code and are never opened" in refused(tmp_path)


def test_no_weights(tmp_path):
    write_config(tmp_path)
    assert "has no safetensors file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "has no config.json"),
        (b"", "config.json is not a JSON object"),
        (b"{", "config.json is not JSON"),
        (b"\xff\xfe{\0}\0", "config.json is not JSON"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "config.json is not JSON"),
        (b'{"a":' + b"1" * 5000 + b"}", "config.json is not JSON"),
        (b"[]", "config.json is not a JSON object"),
        (b"null", "config.json is not a JSON object"),
    ],
)  # fmt: skip
def test_hostile_configs(tmp_path, text, fault):
    write_llama(tmp_path, random_downs())
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=fault):
        open_checkpoint(tmp_path)


def test_a_hostile_index(tmp_path):
    write_llama(tmp_path, random_downs(), shards=2)
    (tmp_path / INDEX).write_bytes(b'{"weight_map":' + b"[" * 100_000)
    assert f"{INDEX} is not JSON" in refused(tmp_path)


def test_a_config_too_large_to_be_one(tmp_path):
    write_llama(tmp_path, random_downs())
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(100_000_001)  # sparse
    assert "config.json has 100000001 bytes" in refused(tmp_path)


@pytest.mark.parametrize("model_type", [None, 7, ["llama"]])
def test_a_model_type_that_is_no_name(tmp_path, model_type):
    write_llama(tmp_path, random_downs(), model_type=model_type)
    assert open_checkpoint(tmp_path).model_type is None


def test_truncated_shards(tmp_path):
    write_llama(tmp_path, random_downs(), shards=2)
    shard = tmp_path / SECOND
    whole = shard.read_bytes()
    header = header_bytes(shard)
    for length, fault in [
        (len(whole) - 1, "is truncated"),
        (header, "is truncated"),
        (header - 1, "truncated or not safetensors"),
        (8, "truncated or not safetensors"),
        (7, "too short"),
        (0, "too short"),
    ]:
        shard.write_bytes(whole[:length])
        message = refused(tmp_path, error=HeaderError)
        assert SECOND in message
        assert fault in message


def test_a_file_that_shrinks_while_it_is_scanned(tmp_path):
    write_gpt2(tmp_path, random_downs())
    checkpoint = open_checkpoint(tmp_path)
    tensor = checkpoint.tensors["transformer.h.2.mlp.c_proj.weight"]
    os.truncate(tmp_path / "model.safetensors", tensor.record.stop - 1)
    with pytest.raises(SourceError, match="changed while it was read"):
        list(checkpoint.blocks(tensor, element_bytes=2))


def test_how_a_model_was_found_is_among_its_notes(hub, tmp_path):
    write_llama(tmp_path / "new", random_downs())
    (tmp_path / "new" / "adapter_model.safetensors").touch()
    hub.add("owner/new", tmp_path / "new")
    hub.renamed["owner/old"] = "owner/new"
    assert Checkpoint(open_model("owner/old")).notes == (
        "owner/old is now called owner/new",
        "not among the model's files, so not read: adapter_model.safetensors",
    )


@pytest.mark.parametrize("source", ["folder", Path("folder"), None])
def test_a_name_is_no_opened_model(source):
    with pytest.raises(SourceError) as caught:
        Checkpoint(source)
    assert str(caught.value) == f"{source!r} is no opened model: give what open_model returns"
