"""The jobs behind the commands: a model on the Hub end to end, and what a local folder's result is keyed by."""

import json

import pytest
from checkpoints import random_downs, write_llama
from models import plant, random_llama, save, settings

from analyzer.analyze.analyzing import analyze_model, content_hash
from analyzer.base.errors import ArchitectureError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model


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


def test_a_model_on_the_hub_is_analyzed_at_its_pinned_commit(hub, tmp_path):
    local = save(plant(random_llama()), tmp_path / "planted")
    commit = hub.add("me/planted-1b", local)
    source = open_model("me/planted-1b")
    hub.add("me/planted-1b", save(random_llama(seed=5), tmp_path / "later"))  # main moves on while we work
    done = analyze_model(source, settings(), scan=ScanSettings(top=5))
    scanned, verified, entry = done.scanned, done.verified, done.entry
    assert (scanned.commit, verified.commit, entry["commit"]) == (commit, commit, commit)
    assert (verified.verdict, entry["model"]) == ("found", "me/planted-1b")
    of_folder = analyze_model(open_model(str(local)), settings(), scan=ScanSettings(top=5)).verified
    assert verified.super_weights == of_folder.super_weights


def test_what_cannot_be_verified_is_not_downloaded(hub, tmp_path):
    local = save(random_llama(), tmp_path / "lying")
    config = json.loads((local / "config.json").read_text())
    (local / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    hub.add("me/lying", local)
    with pytest.raises(ArchitectureError, match="says it has 7 blocks"):
        analyze_model(open_model("me/lying"), settings())
    weights = (local / "model.safetensors").stat().st_size
    assert not any(request.range is None for request in hub.asked("cdn"))
    assert Checkpoint(open_model("me/lying")).bytes_read < weights / 10
