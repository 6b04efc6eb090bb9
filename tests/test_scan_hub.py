"""Whole scans of a model on the Hub: what they ask for, what faults do to them, and what a second scan saves."""

import json
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import (
    DTYPES,
    LLAMA_DOWN,
    header_bytes,
    random_downs,
    refused,
    tensor_ranges,
    write_config,
    write_llama,
    write_tensors,
)
from hub_server import PASSING_FAULTS, Reply, on, once_a_read, status

from analyzer.analyze import run_scan
from analyzer.cache import ResultCache, cache_folder
from analyzer.checkpoint import CONFIG, INDEX
from analyzer.hub import HubSource
from analyzer.source import FolderSource, open_source

LAYERS, DOWN_BYTES = 6, 8 * 20 * 2  # of the checkpoints here
INTERRUPTED = 130, "", "\ninterrupted\n"


@pytest.fixture
def sharded(hub, tmp_path):
    """A checkpoint in four shards, on the Hub as owner/tiny; no two of its down projections are side by side."""
    write_llama(tmp_path / "sharded", random_downs(layers=LAYERS), shards=4)
    hub.add("owner/tiny", tmp_path / "sharded")
    return tmp_path / "sharded"


def facts(result):
    """Return what a scan found, without what it took to find it."""
    return result.outliers, result.tensors


def scan_folder(folder, **options):
    return run_scan(FolderSource(folder), **options)


def scan_hub(model="owner/tiny", **options):
    return run_scan(open_source(model), **options)


def shards_of(folder):
    return sorted(folder.glob("*.safetensors"))


def headers_and_json(folder):
    """Return how many bytes config, index and headers have."""
    small = sum((folder / name).stat().st_size for name in (CONFIG, INDEX) if (folder / name).exists())
    return small + sum(header_bytes(shard) for shard in shards_of(folder))


def down_ranges(shard):
    return [ends for name, ends in tensor_ranges(shard).items() if "down_proj" in name]


def read(hub):
    """Return how many bytes of files the server sent, and begin to count anew."""
    sent = sum(hub.body_bytes.values())
    hub.forget()
    return sent


def wait_until(condition, what="what the test waits for"):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come")


def finish(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


# What is read


def test_a_scan_reads_what_it_needs_and_nothing_else(hub, sharded):
    commit = hub.repositories["owner/tiny"].branches["main"]
    result = scan_hub("owner/tiny@main")
    assert facts(result) == facts(scan_folder(sharded))
    assert (result.model, result.revision, result.commit) == ("owner/tiny", "main", commit)
    needed = headers_and_json(sharded) + LAYERS * DOWN_BYTES
    assert sum(hub.body_bytes.values()) == result.bytes_read == needed
    resolve = f"/owner/tiny/resolve/{commit}"
    small = [(f"{resolve}/{name}", f"bytes=0-{(sharded / name).stat().st_size - 1}") for name in (CONFIG, INDEX)]
    first = [(f"{resolve}/{shard.name}", "bytes=0-7") for shard in shards_of(sharded)]
    listing, *others = hub.asked("hub")
    assert listing.path == "/api/models/owner/tiny/revision/main?blobs=true"
    assert sorted((r.path, r.range) for r in others) == sorted(small + first)  # a shard is resolved once
    ranges = []
    for shard in shards_of(sharded):
        ranges += [(0, 7), (8, header_bytes(shard) - 1), *down_ranges(shard)]
    assert sorted(r.range for r in hub.asked("cdn")) == sorted(f"bytes={start}-{stop}" for start, stop in ranges)


def test_tensors_side_by_side_are_one_request(hub, tmp_path):
    folder = tmp_path / "downs"
    write_tensors(folder, {LLAMA_DOWN.format(layer): down for layer, down in enumerate(random_downs(layers=LAYERS))})
    write_config(folder, model_type="llama", hidden_size=8)
    hub.add("owner/downs", folder)
    result = scan_hub("owner/downs")
    assert facts(result) == facts(scan_folder(folder))
    (shard,) = shards_of(folder)
    start = header_bytes(shard)
    ranges = ["bytes=0-7", f"bytes=8-{start - 1}", f"bytes={start}-{start + LAYERS * DOWN_BYTES - 1}"]
    assert [r.range for r in hub.asked("cdn")] == ranges
    assert result.bytes_read == sum(hub.body_bytes.values()) == headers_and_json(folder) + LAYERS * DOWN_BYTES


def test_large_tensors_are_read_in_blocks(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(HubSource, "block_bytes", 4096)
    monkeypatch.setattr("analyzer.matrices.TILE_NUMBERS", 1000)
    write_llama(tmp_path / "large", random_downs(layers=2, hidden=64, intermediate=200))
    hub.add("owner/large", tmp_path / "large")
    result = scan_hub("owner/large")
    assert facts(result) == facts(scan_folder(tmp_path / "large"))
    lengths = [int(last) - int(first) + 1 for first, last in (r.range[6:].split("-") for r in hub.asked("cdn")[2:])]
    assert max(lengths) <= 4096
    assert sum(lengths) == 2 * 64 * 200 * 2
    assert len(lengths) == 2 * 7  # of ten lines of 400 bytes


def test_163_shards(hub, tmp_path):
    write_llama(tmp_path / "wide", random_downs(layers=163), shards=163)
    hub.add("owner/wide", tmp_path / "wide")
    hub.delay = 0.02
    result = scan_hub("owner/wide")
    assert facts(result) == facts(scan_folder(tmp_path / "wide"))
    assert result.bytes_read == sum(hub.body_bytes.values()) == headers_and_json(tmp_path / "wide") + 163 * DOWN_BYTES
    assert len(hub.asked("hub")) == 1 + 2 + 163
    assert len(hub.asked("cdn")) == 2 * 163 + 163
    assert hub.most_at_once > 4
    # Connections are kept: one or two a reader and origin, and not one a request.
    assert hub.connections["hub"] <= 2 * HubSource.readers
    assert hub.connections["cdn"] <= 2 * HubSource.readers


def test_files_in_the_local_cache_are_read_from_there(hub, sharded):
    from huggingface_hub import hf_hub_download

    names = [shard.name for shard in shards_of(sharded)]
    hf_hub_download("owner/tiny", names[0])
    hub.forget()
    result = scan_hub(use_cache=False)
    assert facts(result) == facts(scan_folder(sharded))
    assert len(hub.asked("cdn")) == sum(2 + len(down_ranges(shard)) for shard in shards_of(sharded)[1:])
    assert sum(hub.body_bytes.values()) < result.bytes_read == headers_and_json(sharded) + LAYERS * DOWN_BYTES
    for name in [*names, CONFIG, INDEX]:
        hf_hub_download("owner/tiny", name)
    hub.forget()
    assert facts(scan_hub(use_cache=False)) == facts(result)
    assert [r.path for r in hub.requests] == ["/api/models/owner/tiny?blobs=true"]


def test_offline(hub, sharded, superweight):
    from huggingface_hub import snapshot_download

    commit = snapshot_download("owner/tiny").rpartition("/")[2]
    hub.forget()
    code, out, err = finish(superweight("scan", "owner/tiny", "--json", HF_HUB_OFFLINE="1"))
    assert (code, err) == (0, "")
    found, expected = json.loads(out), json.loads(json.dumps(as_json(scan_folder(sharded))))
    assert (found["model"], found["commit"]) == ("owner/tiny", commit)
    assert [found[key] for key in ("outliers", "tensors", "bytes_read")] == [
        expected[key] for key in ("outliers", "tensors", "bytes_read")
    ]
    code, out, err = finish(superweight("scan", "owner/other", HF_HUB_OFFLINE="1"))
    assert (code, out) == (1, "")
    assert err == (
        "error: owner/other is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or download the model "
        "first\n"
    )
    assert hub.requests == []


def as_json(result):
    from analyzer.records import plain

    return plain(result)


@pytest.mark.parametrize("how", ["HF_TOKEN", "HF_TOKEN_PATH", "--token"])
def test_a_private_model_in_a_process_of_its_own(hub, sharded, superweight, tmp_path, how):
    hub.add("owner/secret", sharded, token="hf_right")
    (tmp_path / "token").write_text("hf_right\n")
    options = ["--token", "hf_right"] if how == "--token" else []
    environment = {"HF_TOKEN": "hf_right", "HF_TOKEN_PATH": str(tmp_path / "token")}
    code, out, err = finish(
        superweight("scan", "owner/secret", "--json", *options, **{k: v for k, v in environment.items() if k == how})
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["outliers"] == as_json(scan_folder(sharded))["outliers"]
    assert {r.authorization for r in hub.asked("hub")} == {"Bearer hf_right"}
    assert {r.authorization for r in hub.asked("cdn")} == {None}


# Faults that pass: the answer is the same as without them


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_faults_that_pass_change_nothing(hub, sharded, fault):
    change = PASSING_FAULTS[fault]
    on_hub, on_cdn = once_a_read("hub", change), once_a_read("cdn", change)
    source = open_source("owner/tiny")
    hub.tamper = lambda request, reply: on_hub(request, on_cdn(request, reply))
    result = run_scan(source)
    hub.tamper = lambda request, reply: reply
    assert facts(result) == facts(scan_folder(sharded))
    assert result.bytes_read == headers_and_json(sharded) + LAYERS * DOWN_BYTES
    assert len(hub.asked("cdn")) > 2 * LAYERS


def test_a_storm_of_faults(hub, sharded, monkeypatch):
    monkeypatch.setattr("analyzer.hub.PAUSES", (0.0,) * 40)
    faults, chance, counting = list(PASSING_FAULTS.values()), random.Random(0), threading.Lock()
    faulty = 0

    def tamper(request, reply):
        nonlocal faulty
        with counting:
            if chance.random() < 0.5:
                return reply
            faulty += 1
            return chance.choice(faults)(reply)

    expected = facts(scan_folder(sharded))
    source = open_source("owner/tiny")
    hub.tamper = tamper
    hub.uses_of_a_url = 2
    for _ in range(3):
        assert facts(run_scan(source, use_cache=False)) == expected
    assert faulty > 6 * LAYERS


@pytest.mark.parametrize("cut", [0, 5])
def test_stalled_connections_change_nothing(hub, sharded, monkeypatch, cut):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.tamper = once_a_read("cdn", lambda reply: replace(reply, cut=cut, stall=True))
    assert facts(scan_hub()) == facts(scan_folder(sharded))


def test_trickling_bodies_change_nothing(hub, sharded, monkeypatch):
    monkeypatch.setattr("analyzer.hub.SLOW_S", 0.05)
    hub.tamper = once_a_read("cdn", lambda reply: replace(reply, drip=0.005))
    assert facts(scan_hub()) == facts(scan_folder(sharded))


@pytest.mark.parametrize("uses", [1, 2, 3, 4])
def test_signed_urls_that_expire_change_nothing(hub, sharded, uses):
    hub.uses_of_a_url = uses
    assert facts(scan_hub()) == facts(scan_folder(sharded))
    assert len(hub.asked("hub")) > 1 + 2 + 4 or uses == 4


def test_all_signed_urls_expire_in_the_middle(hub, sharded):
    def tamper(request, reply):
        if len(hub.asked("cdn")) in (7, 10):
            hub.expire_signed_urls()
        return reply

    hub.tamper = tamper
    assert facts(scan_hub()) == facts(scan_folder(sharded))


def test_signed_urls_for_single_ranges_change_nothing(hub, sharded):
    hub.bind_range = True
    hub.tamper = once_a_read("cdn", PASSING_FAULTS["closed in mid-body"])
    assert facts(scan_hub()) == facts(scan_folder(sharded))


# Faults that stay: one line, and never a wrong answer


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_fault_that_never_ends(hub, sharded, fault):
    source = open_source("owner/tiny")
    hub.tamper = lambda request, reply: (
        PASSING_FAULTS[fault](reply) if request.origin == "cdn" and first_byte(request) > 8 else reply
    )
    message = refused(run_scan, source)
    assert message.startswith("owner/tiny/model-0000")
    assert "; tried 4 times over 0 s: " in message
    assert ResultCache(cache_folder()).size() == (0, 0)
    wait_until(lambda: not any(thread.name.endswith("(work)") for thread in threading.enumerate()))  # the other readers
    assert 2 * 4 + 4 <= len(hub.asked("cdn")) <= 2 * 4 + 4 * LAYERS


def first_byte(request):
    return int(request.range.removeprefix("bytes=").split("-")[0]) if request.range else 0


@pytest.mark.parametrize(
    ("origin", "change", "said"),
    [
        ("cdn", lambda reply: replace(reply, status=200), "(HTTP 200): a proxy may be in the way"),
        ("cdn", lambda reply: Reply(200, {"Content-Type": "text/html"}, b"<p>"), "(HTTP 200, text/html): a proxy may"),
        ("cdn", lambda reply: reply.with_headers(Content_Type="text/html"), "(HTTP 206, text/html): a proxy may be in"),
        ("cdn", lambda reply: reply.with_headers(ETag='"new"'), "changed while it was read (ETag new after "),
        (
            "cdn",
            lambda reply: reply.with_headers(Content_Range=reply.headers["Content-Range"] + "0"),
            "of its listing: it changed, scan again",
        ),
        ("cdn", status(416), "it changed since it was listed, scan again"),
        ("hub", lambda reply: reply.with_headers(X_Linked_Etag=f'"{"f" * 64}"'), "is not the file of its listing"),
        ("hub", lambda reply: reply.with_headers(X_Repo_Commit="f" * 40), f"was answered with commit {'f' * 40} in "),
        ("hub", status(404, X_Error_Code="EntryNotFound"), "though it lists one: try again later"),
        ("hub", status(403, X_Error_Code="GatedRepo"), "owner/tiny is gated: accept its terms at "),
        (
            "hub",
            status(403, X_Error_Message="Access to this resource is disabled."),
            "owner/tiny was disabled on the Hub",
        ),
        ("hub", status(401), "the Hub refused access to owner/tiny (HTTP 401): log in"),
    ],
)
def test_what_no_further_try_would_make_right(hub, sharded, origin, change, said):
    if origin == "hub":
        hub.uses_of_a_url = 2  # or the Hub would be asked no more once there are URLs
    hub.tamper = lambda request, reply: change(reply) if request.origin == origin and first_byte(request) > 8 else reply
    assert said in refused(scan_hub)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda hub: setattr(hub, "tamper", on("cdn", lambda reply: replace(reply, status=200))),
            "a proxy may be in the",
        ),
        (lambda hub: hub.add("owner/tiny", hub.folder, gated=True), "is gated: accept its terms at {url}/owner/tiny"),
        (
            lambda hub: hub.lost.add("model-00002-of-00004.safetensors"),
            "has no file model-00002-of-00004.safetensors at ",
        ),
    ],
    ids=["no ranges", "gated", "a lost shard"],
)
def test_the_process_says_one_line(hub, tmp_path, superweight, change, said):
    write_llama(tmp_path / "sharded", random_downs(layers=LAYERS), shards=4)
    hub.folder = tmp_path / "sharded"
    if "gated" not in said:
        hub.add("owner/tiny", hub.folder)
    change(hub)
    code, out, err = finish(superweight("scan", "owner/tiny", "--json"))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said.format(url=hub.url) in err
    assert err.count("\n") == 1


def test_the_process_survives_faults(hub, sharded, superweight):
    break_off = once_a_read("cdn", PASSING_FAULTS["reset in mid-body"])
    hub.tamper = lambda request, reply: break_off(request, reply) if PLACES["data"](request) else reply
    code, out, err = finish(superweight("scan", "owner/tiny", "--json"))
    assert (code, err) == (0, "")
    assert json.loads(out)["outliers"] == as_json(scan_folder(sharded))["outliers"]


# Ctrl-C


PLACES = {
    "listing": lambda request: request.path.startswith("/api/"),
    "config": lambda request: request.path.endswith(CONFIG),
    "header": lambda request: request.origin == "cdn" and first_byte(request) == 8,
    "data": lambda request: request.origin == "cdn" and first_byte(request) > 8,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "change",
    [lambda reply: replace(reply, cut=0, stall=True), status(503, Retry_After="250")],
    ids=["stalled", "waiting"],
)
def test_ctrl_c(hub, sharded, superweight, place, change):
    there = PLACES[place]
    hub.tamper = lambda request, reply: change(reply) if there(request) else reply
    process = superweight("scan", "owner/tiny", "--json")
    wait_until(lambda: any(there(request) for request in hub.requests))
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert finish(process, timeout=5) == INTERRUPTED
    hub.tamper = lambda request, reply: reply
    assert facts(scan_hub()) == facts(scan_folder(sharded))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_interrupted_scan_goes_on_where_it_stopped(hub, tmp_path, superweight, number):
    folder, layers = tmp_path / "deep", 60
    write_llama(folder, random_downs(layers=layers), shards=2)
    hub.add("owner/deep", folder)
    kept, served = ResultCache(cache_folder()), threading.Semaphore(20)
    hub.tamper = lambda request, reply: (
        replace(reply, cut=0, stall=True) if PLACES["data"](request) and not served.acquire(blocking=False) else reply
    )
    process = superweight("scan", "owner/deep", "--json")
    wait_until(
        lambda: kept.size()[0] == 20 and len([r for r in hub.requests if PLACES["data"](r)]) >= 20 + HubSource.readers
    )
    process.send_signal(number)
    outcome = finish(process, timeout=5)
    assert outcome == (INTERRUPTED if number == signal.SIGINT else (-signal.SIGKILL, "", ""))
    hub.tamper = lambda request, reply: reply
    hub.forget()
    code, out, err = finish(superweight("scan", "owner/deep", "--json"))
    assert (code, err) == (0, "")
    assert json.loads(out)["outliers"] == as_json(scan_folder(folder))["outliers"]
    assert hub.body_bytes["cdn"] == sum(map(header_bytes, shards_of(folder))) + (layers - 20) * DOWN_BYTES
    assert len(list(kept.folder.glob("*/*.json"))) == layers


# What is kept


@pytest.fixture
def kept():
    return ResultCache(cache_folder())


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
