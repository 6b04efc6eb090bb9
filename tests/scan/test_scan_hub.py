"""Whole scans of a model on the Hub: what they ask for, what faults do to them, and what a second scan saves."""

import json
import random
import signal
import threading
import time
from dataclasses import replace

import pytest
from checkpoints import (
    LLAMA_DOWN,
    header_bytes,
    random_downs,
    refused,
    write_config,
    write_llama,
    write_tensors,
)
from hub_faults import OTHER_RANGES, PASSING_FAULTS, on, once_a_read, read_of, status
from hub_scans import (
    DOWN_BYTES,
    INTERRUPTED,
    LAYERS,
    PLACES,
    as_json,
    down_ranges,
    facts,
    finish,
    first_byte,
    headers_and_json,
    scan_folder,
    scan_hub,
    shards_of,
    wait_until,
)
from hub_server import Reply

from analyzer.analyze.scanning import scan_model
from analyzer.checkpoint.shards import CONFIG, INDEX
from analyzer.scan.kept import ResultCache, cache_folder
from analyzer.scan.records import ScanSettings
from analyzer.source.hub.hub import HubSource
from analyzer.source.opening import open_model

pytestmark = pytest.mark.early

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
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 1000)
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
    # Connections are kept: one or two a reader and origin, a few more on a busy machine, and not one a request.
    assert hub.connections["hub"] <= 4 * HubSource.readers
    assert hub.connections["cdn"] <= 4 * HubSource.readers


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
        "error: there is no folder owner/other, nor such a model in the Hub's cache, and HF_HUB_OFFLINE is set: unset "
        "it, or download the model first\n"
    )
    assert hub.requests == []


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
    source = open_model("owner/tiny")
    hub.tamper = lambda request, reply: on_hub(request, on_cdn(request, reply))
    result = scan_model(source)
    hub.tamper = lambda request, reply: reply
    assert facts(result) == facts(scan_folder(sharded))
    assert result.bytes_read == headers_and_json(sharded) + LAYERS * DOWN_BYTES
    assert len(hub.asked("cdn")) > 2 * LAYERS


def test_a_storm_of_faults(hub, sharded, monkeypatch):
    monkeypatch.setattr("analyzer.source.hub.patience.PAUSES", (0.0,) * 40)
    chance, counting = random.Random(0), threading.Lock()
    faulty, shifted = 0, set()

    def tamper(request, reply):
        nonlocal faulty
        with counting:
            if chance.random() < 0.5:
                return reply
            faulty += 1
            read = read_of(request)
            fault = chance.choice([each for each in PASSING_FAULTS if each not in OTHER_RANGES or read not in shifted])
            if fault in OTHER_RANGES:
                shifted.add(read)  # twice, it would be none that passes
            return PASSING_FAULTS[fault](reply)

    expected = facts(scan_folder(sharded))
    source = open_model("owner/tiny")
    hub.tamper = tamper
    hub.uses_of_a_url = 2
    for _ in range(3):
        assert facts(scan_model(source, ScanSettings(use_cache=False))) == expected
    assert faulty > 6 * LAYERS


@pytest.mark.parametrize("cut", [0, 5])
def test_stalled_connections_change_nothing(hub, sharded, monkeypatch, cut):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.tamper = once_a_read("cdn", lambda reply: replace(reply, cut=cut, stall=True))
    assert facts(scan_hub()) == facts(scan_folder(sharded))


def test_trickling_bodies_change_nothing(hub, sharded, monkeypatch):
    monkeypatch.setattr("analyzer.source.hub.patience.SLOW_S", 0.05)
    hub.tamper = once_a_read("cdn", lambda reply: replace(reply, drip=0.005))
    assert facts(scan_hub()) == facts(scan_folder(sharded))


@pytest.mark.parametrize("uses", [1, 2, 3, 4])
def test_signed_urls_that_expire_change_nothing(hub, sharded, uses):
    hub.uses_of_a_url = uses
    assert facts(scan_hub()) == facts(scan_folder(sharded))
    assert len(hub.asked("hub")) > 1 + 2 + 4 or uses == 4


def test_all_signed_urls_expire_in_the_middle(hub, sharded):
    moments, counting = [7, 10], threading.Lock()

    def tamper(request, reply):
        with counting:
            if moments and len(hub.asked("cdn")) >= moments[0]:
                del moments[0]  # each comes once, or a read whose URLs were all signed just before would be given up
                hub.expire_signed_urls()
        return reply

    hub.tamper = tamper
    assert facts(scan_hub()) == facts(scan_folder(sharded))
    assert not moments


def test_signed_urls_for_single_ranges_change_nothing(hub, sharded):
    hub.bind_range = True
    hub.tamper = once_a_read("cdn", PASSING_FAULTS["closed in mid-body"])
    assert facts(scan_hub()) == facts(scan_folder(sharded))


# Faults that stay: one line, and never a wrong answer


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_fault_that_never_ends(hub, sharded, fault):
    source = open_model("owner/tiny")
    hub.tamper = lambda request, reply: (
        PASSING_FAULTS[fault](reply) if request.origin == "cdn" and first_byte(request) > 8 else reply
    )
    message = refused(scan_model, source)
    assert message.startswith("owner/tiny/model-0000")
    tries = 2 if fault in OTHER_RANGES else 4
    assert f"; tried {tries} times over 0 s: " in message
    assert ResultCache(cache_folder()).size() == (0, 0)
    wait_until(lambda: not any(thread.name.endswith("(work)") for thread in threading.enumerate()))  # the other readers
    assert 2 * 4 + tries <= len(hub.asked("cdn")) <= 2 * 4 + tries * LAYERS


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
        ("hub", status(401), "the Hub refused owner/tiny, file model-0000"),
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
