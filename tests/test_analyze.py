"""The jobs behind the commands: what a local folder's result is keyed by."""

import json

from checkpoints import random_downs, write_llama

from analyzer.analyze import content_hash, evaluation_text
from analyzer.checkpoint import Checkpoint
from analyzer.source import FolderSource


def hash_of(folder):
    return content_hash(Checkpoint(FolderSource(folder)))


def test_the_hash_is_of_the_content_not_of_its_shards_or_versions(tmp_path):
    downs = random_downs()
    write_llama(tmp_path / "one", downs)
    write_llama(tmp_path / "two", downs, shards=3, transformers_version="5.0", _name_or_path="/somewhere")
    assert hash_of(tmp_path / "one") == hash_of(tmp_path / "two")
    assert hash_of(tmp_path / "one").startswith("sha256:")


def test_the_hash_changes_with_any_weight_and_with_the_config(tmp_path):
    downs = random_downs()
    write_llama(tmp_path / "one", downs)
    write_llama(tmp_path / "config", downs, rope_theta=5.0)
    downs[2][0, 0] += 1
    write_llama(tmp_path / "down", downs)
    write_llama(tmp_path / "other", random_downs(dtype="F32"))
    path = tmp_path / "one" / "model.safetensors"
    hashes = {hash_of(tmp_path / name) for name in ("one", "config", "down", "other")}
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start = 8 + int.from_bytes(data[:8], "little") + header["model.embed_tokens.weight"]["data_offsets"][0]
    data[start] ^= 1  # one bit of a tensor that is not a down projection
    path.write_bytes(data)
    assert len(hashes | {hash_of(tmp_path / "one")}) == 5


def test_the_evaluation_text_has_the_length_that_is_said():
    assert 1500 < len(evaluation_text().split()) < 1800
