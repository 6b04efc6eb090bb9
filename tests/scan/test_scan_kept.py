"""What scans of the Hub keep: resumed, shared between revisions and forks, never mistaken."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checkpoints import (
    DTYPES,
    random_downs,
    refused,
    write_config,
    write_llama,
    write_tensors,
)
from hub_scans import (
    DOWN_BYTES,
    LAYERS,
    PLACES,
    as_json,
    down_ranges,
    facts,
    finish,
    headers_and_json,
    read,
    scan_folder,
    scan_hub,
    shards_of,
)
from hub_server import Reply

from analyzer.checkpoint.shards import INDEX
from analyzer.source.hub.hub import HubSource

# What is kept


def test_a_failed_scan_goes_on_where_it_failed(hub, sharded, kept, monkeypatch):
    monkeypatch.setattr(HubSource, "readers", 1)
    data = PLACES["data"]
    hub.tamper = lambda request, reply: Reply(416, {}) if data(request) and sum(map(data, hub.requests)) > 4 else reply
    assert "scan again" in refused(scan_hub)
    assert kept.size()[0] == 4
    hub.tamper = lambda request, reply: reply
    hub.forget()
    result = scan_hub()
    assert facts(result) == facts(scan_folder(sharded))
    assert read(hub) == result.bytes_read == headers_and_json(sharded) + (LAYERS - 4) * DOWN_BYTES


@pytest.mark.parametrize("score", ["magnitude", "gain"])
def test_a_second_scan_reads_almost_nothing(hub, sharded, kept, score):
    expected = facts(scan_folder(sharded, score=score))
    assert facts(scan_hub(score=score)) == expected
    assert kept.size()[0] == LAYERS
    hub.forget()
    again = scan_hub(score=score)
    assert facts(again) == expected
    assert read(hub) == again.bytes_read == headers_and_json(sharded)
    assert kept.size()[0] == LAYERS


def test_scores_do_not_share(hub, sharded, kept):
    for score in ("magnitude", "gain"):
        assert facts(scan_hub(score=score)) == facts(scan_folder(sharded, score=score))
    assert kept.size()[0] == 2 * LAYERS
    assert scan_folder(sharded, score="gain").outliers != scan_folder(sharded).outliers


def test_another_top(hub, sharded):
    small = headers_and_json(sharded)
    scan_hub(top=10)
    read(hub)
    for top, data in [(10, 0), (3, 0), (11, LAYERS * DOWN_BYTES), (10, 0), (11, 0)]:
        assert facts(scan_hub(top=top)) == facts(scan_folder(sharded, top=top))
        assert read(hub) == small + data


def test_some_layers_now_and_the_others_later(hub, sharded):
    assert facts(scan_hub(layers=[range(2)])) == facts(scan_folder(sharded, layers=[range(2)]))
    read(hub)
    assert facts(scan_hub()) == facts(scan_folder(sharded))
    assert read(hub) == headers_and_json(sharded) + (LAYERS - 2) * DOWN_BYTES


def test_another_revision_shares_the_shards_that_did_not_change(hub, sharded, tmp_path):
    scan_hub()
    before = {shard.name: shard.read_bytes() for shard in shards_of(sharded)}
    downs = random_downs(layers=LAYERS)
    downs[3][2, 5] = 4.0
    write_llama(sharded, downs, shards=4)
    hub.add("owner/tiny", sharded)
    changed = [shard for shard in shards_of(sharded) if shard.read_bytes() != before[shard.name]]
    assert len(changed) == 1
    read(hub)
    result = scan_hub()
    assert facts(result) == facts(scan_folder(sharded))
    assert [getattr(result.outliers[0], key) for key in ("layer", "row", "col", "value")] == [3, 2, 5, 4.0]
    assert read(hub) == headers_and_json(sharded) + len(down_ranges(changed[0])) * DOWN_BYTES
    # And the first revision is still there.
    first = next(iter(hub.repositories["owner/tiny"].history))
    assert scan_hub(f"owner/tiny@{first}").bytes_read < headers_and_json(sharded) + DOWN_BYTES


def test_a_fork_reads_nothing(hub, sharded):
    scan_hub()
    write_config(sharded, model_type="llama", hidden_size=8, num_hidden_layers=LAYERS, _name_or_path="a fork's own")
    for shard in shards_of(sharded):  # the same shards by other names
        shard.rename(sharded / shard.name.replace("of-00004", "of-00009"))
    index = (sharded / INDEX).read_text().replace("of-00004", "of-00009")
    (sharded / INDEX).write_text(index)
    hub.add("fork/tiny", sharded)
    read(hub)
    result = scan_hub("fork/tiny")
    assert (result.model, facts(result)) == ("fork/tiny", facts(scan_folder(sharded)))
    assert read(hub) == headers_and_json(sharded)


def test_a_fork_that_is_another_model_shares_no_gains(hub, sharded):
    scan_hub(score="gain")
    write_config(sharded, model_type="gemma", hidden_size=8, num_hidden_layers=LAYERS)  # whose norms add 1
    hub.add("fork/tiny", sharded)
    result = scan_hub("fork/tiny", score="gain")
    assert facts(result) == facts(scan_folder(sharded, score="gain"))


def test_the_same_tensors_in_another_file_are_not_confused(hub, sharded, tmp_path):
    scan_hub()
    downs = random_downs(layers=LAYERS)
    write_llama(tmp_path / "whole", downs)
    hub.add("owner/whole", tmp_path / "whole")
    # Layers that changed places: as long, in as large a file, and other content.
    write_llama(tmp_path / "turned", downs[::-1], shards=4)
    hub.add("owner/turned", tmp_path / "turned")
    for name in ("whole", "turned"):
        read(hub)
        assert facts(scan_hub(f"owner/{name}")) == facts(scan_folder(tmp_path / name))
        assert read(hub) == headers_and_json(tmp_path / name) + LAYERS * DOWN_BYTES


def test_experts_of_one_tensor_are_not_confused(hub, tmp_path):
    folder = tmp_path / "experts"
    fused = np.stack(random_downs(layers=4, hidden=8, intermediate=20))  # [experts, hidden, intermediate]
    write_tensors(folder, {"model.layers.0.mlp.experts.down_proj": fused.astype(DTYPES["BF16"])})
    write_config(folder, model_type="qwen3_moe", hidden_size=8, moe_intermediate_size=20)
    hub.add("owner/experts", folder)
    expected = facts(scan_folder(folder))
    assert len({outlier.expert for outlier in expected[0]}) > 1
    for _ in range(2):
        assert facts(scan_hub("owner/experts")) == expected


def test_weights_that_are_not_finite_are_kept(hub, tmp_path):
    downs = random_downs(layers=3)
    downs[0][1, 2], downs[0][3, 4] = np.inf, np.nan
    downs[1][...] = np.nan
    write_llama(tmp_path / "odd", downs)
    hub.add("owner/odd", tmp_path / "odd")
    expected = as_json(scan_folder(tmp_path / "odd"))
    for _ in range(2):
        found = as_json(scan_hub("owner/odd"))
        assert [repr(found[key]) for key in ("tensors", "outliers")] == [
            repr(expected[key]) for key in ("tensors", "outliers")
        ]
    assert [tensor["nonfinite"] for tensor in found["tensors"]] == [2, 160, 0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda paths: paths[0].write_bytes(b""),
        lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:-9]),
        lambda paths: paths[0].write_bytes(paths[0].read_bytes().replace(b"0.0", b"0.9")),
        lambda paths: paths[0].write_bytes(paths[1].read_bytes()),
        lambda paths: paths[0].write_bytes(b"{}"),
        lambda paths: paths[0].unlink() or paths[0].mkdir(),
        lambda paths: paths[0].unlink(),
    ],
    ids=["empty", "cut short", "changed", "another's", "no entry", "a folder", "gone"],
)
def test_a_damaged_entry_is_read_again(hub, sharded, kept, damage):
    expected = facts(scan_hub())
    read(hub)
    damage(sorted(kept.folder.glob("*/*.json")))
    assert facts(scan_hub()) == expected == facts(scan_folder(sharded))
    assert read(hub) == headers_and_json(sharded) + DOWN_BYTES


@pytest.mark.parametrize("where", ["a file", "/proc/superweight"])
def test_a_cache_that_cannot_be_written(hub, sharded, tmp_path, monkeypatch, where):
    (tmp_path / "a file").write_text("here first")
    monkeypatch.setenv("SUPERWEIGHT_CACHE", str(tmp_path / where))
    for _ in range(2):
        assert facts(scan_hub()) == facts(scan_folder(sharded))
        assert read(hub) == headers_and_json(sharded) + LAYERS * DOWN_BYTES


def test_without_the_cache_nothing_is_kept_or_used(hub, sharded, kept):
    everything = headers_and_json(sharded) + LAYERS * DOWN_BYTES
    assert facts(scan_hub(use_cache=False)) == facts(scan_folder(sharded))
    assert kept.size() == (0, 0)
    scan_hub()
    entry = sorted(kept.folder.glob("*/*.json"))[0]
    entry.write_bytes(b"damaged")
    read(hub)
    assert facts(scan_hub(use_cache=False)) == facts(scan_folder(sharded))
    assert read(hub) == everything
    assert entry.read_bytes() == b"damaged"


def test_the_command_may_leave_the_cache_alone(hub, sharded, kept, superweight):
    for number, option in enumerate(["--no-cache", "--quiet", "--no-cache"]):
        hub.forget()
        code, out, err = finish(superweight("scan", "owner/tiny", "--json", option))
        assert (code, err) == (0, "")
        assert json.loads(out)["outliers"] == as_json(scan_folder(sharded))["outliers"]
        assert read(hub) == headers_and_json(sharded) + LAYERS * DOWN_BYTES
        assert kept.size()[0] == (LAYERS if number else 0)


def test_local_files_are_not_kept(hub, sharded, kept):
    from huggingface_hub import snapshot_download

    snapshot_download("owner/tiny")
    assert facts(scan_hub()) == facts(scan_folder(sharded))
    assert kept.size() == (0, 0)
    shutil.rmtree(kept.folder.parent, ignore_errors=True)
    scan_folder(sharded)
    assert not kept.folder.exists()


def test_several_scans_at_once(hub, sharded, kept):
    with ThreadPoolExecutor(4) as pool:
        scans = [pool.submit(scan_hub) for _ in range(4)]
    assert {repr(facts(each.result())) for each in scans} == {repr(facts(scan_folder(sharded)))}
    assert kept.size()[0] == len(list(kept.folder.glob("*/*.json"))) == LAYERS
    read(hub)
    assert facts(scan_hub()) == facts(scan_folder(sharded))
    assert read(hub) == headers_and_json(sharded)
