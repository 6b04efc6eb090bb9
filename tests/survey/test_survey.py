"""Whole surveys, of folders and of the stand-in Hub, against scans of each model; killed, shared, in parts, hostile."""

import hashlib
import io
import json
import random
import signal
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import random_downs, write_config, write_llama, write_tensors

from analyzer.analyze.scanning import scan_model
from analyzer.scan.records import ScanSettings
from analyzer.source.opening import open_model

pytestmark = pytest.mark.early
COUNT = 4
SOON_AGAIN = """
from analyzer.__main__ import main
from analyzer.survey import schedule
schedule.BUSY_S = 0.2  # until a unit in the other's hands is looked at again
main()
"""


def rows(table):
    return pq.read_table(io.BytesIO(table)).to_pylist()


def test_the_table_is_what_scans_of_each_model_say(town, whole):
    found = rows((whole / "survey.parquet").read_bytes())
    assert len(found) == 3 * COUNT
    for number in range(COUNT):
        expected = scan_model(open_model(town.root / f"model-{number}"), ScanSettings(top=3))
        mine = [row for row in found if row["model"].endswith(f"model-{number}")]
        assert [(r["rank"], r["layer"], r["row"], r["col"], r["value"], r["score"], r["zscore"]) for r in mine] == [
            (o.rank, o.layer, o.row, o.col, o.value, o.score, o.zscore) for o in expected.outliers
        ]
        assert {r["commit"] is None for r in mine} == {number == 0}
        assert {(r["do"], r["failure"], r["num_layers"], r["hidden_size"]) for r in mine} == {("scan", None, 2, 8)}
    status = json.loads(town.run("status", whole, "--json"))
    assert (status["total"], status["done"], status["failed"], status["missing"]) == (COUNT, COUNT, {}, 0)
    assert status["bytes_done"] == status["bytes_total"] == sum(2 * 8 * (20 + 8 * n) * 2 for n in range(COUNT))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(town, whole, tmp_path):
    draw, kills = random.Random(5), 0
    command = ["run", town.list_file, "--out", tmp_path, "--top", 3, "--quiet"]
    for _ in range(5):
        process = town.start(*command)
        try:
            process.wait(timeout=draw.uniform(0.3, 1.2))
            process.communicate()
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    town.run(*command)
    assert kills >= 2
    assert town.table(tmp_path) == (whole / "survey.parquet").read_bytes()
    assert list(tmp_path.rglob("*.claim")) == []
    done = json.loads(town.run(*command, "--json"))
    assert (done["done"], done["before"]) == (0, COUNT)


@pytest.mark.slow
def test_two_processes_share_a_folder_and_do_each_unit_once(town, whole, tmp_path):
    town.hub.forget()
    command = ["run", town.list_file, "--out", tmp_path, "--top", 3, "--quiet", "--json"]
    processes = [town.start(*command, program=("-c", SOON_AGAIN)) for _ in range(2)]
    for process in processes:
        said = json.loads(town.end(process))
        assert said["done"] + said["before"] == COUNT  # each has waited for the other
    assert town.table(tmp_path) == (whole / "survey.parquet").read_bytes()
    asked = Counter(r.path.split("/")[4].partition("?")[0] for r in town.hub.asked("hub") if "/api/" in r.path)
    assert asked == {f"model-{number}": 2 for number in range(1, COUNT)}  # once for its commit, once to be scanned


@pytest.mark.slow
def test_shards_of_one_plan_are_the_whole(town, whole, tmp_path):
    plan = tmp_path / "plan.jsonl"
    plan.write_text(town.run("plan", town.list_file))
    town.hub.forget()
    for shard in ("1/2", "2/2"):
        said = town.run("run", plan, "--out", tmp_path, "--top", 3, "--shard", shard, "--quiet", "--json")
        assert json.loads(said)["done"] == COUNT // 2
    assert town.table(tmp_path) == (whole / "survey.parquet").read_bytes()
    # What the plan has pinned is not looked up again by its name.
    assert all("/revision/" in r.path for r in town.hub.requests if r.path.startswith("/api/models/owner"))


@pytest.fixture
def hostile(town, tmp_path):
    """A list of models that each do harm, with one that does none."""
    good, claim, pickle, eats = (tmp_path / name for name in ("good", "claim", "pickle", "eats"))
    for folder in (good, claim):
        write_llama(folder, random_downs())
    (claim / "model.safetensors").write_bytes((10_000_000_000).to_bytes(8, "little") + b"{}")
    write_config(pickle, model_type="llama")
    (pickle / "pytorch_model.bin").write_bytes(b"not opened")
    write_config(eats, model_type="llama", hidden_size=8, num_hidden_layers=1)
    write_tensors(eats, {f"{'x' * 200}.{number}": np.zeros(1, np.int8) for number in range(120_000)})
    town.hub.add("owner/gated", good, token="secret", gated=True)
    write_llama(tmp_path / "hangs", random_downs(seed=99))
    town.hub.add("owner/hangs", tmp_path / "hangs")
    weights = hashlib.sha256((tmp_path / "hangs" / "model.safetensors").read_bytes()).hexdigest()

    def hang(request, reply):  # once its header has been read
        start = int((request.range or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        return replace(reply, stall=True, cut=-1) if weights in request.path and start > 8 else reply

    town.hub.tamper = hang
    names = [*map(str, (claim, pickle, tmp_path / "nowhere", good, eats)), "owner/gated", "owner/hangs", "owner/none"]
    (tmp_path / "hostile.txt").write_text("\n".join(names))
    yield tmp_path / "hostile.txt"
    town.hub.tamper = lambda request, reply: reply


@pytest.mark.slow
def test_a_hostile_list_ends_with_every_other_model_done(town, hostile, tmp_path):
    out = tmp_path / "out"
    said = town.run("run", hostile, "--out", out, "--timeout", 7, "--max-memory", "150MB")
    assert said.startswith("1 done, 1 failed (1 timeout); 6 could not be opened")
    found = {row["model"].rpartition("/")[2]: (row["failure"], row["line"]) for row in rows(town.table(out))}
    assert {name: kind for name, (kind, _) in found.items()} == {
        **{"good": None, "claim": "unsupported", "pickle": "unsupported", "nowhere": "gone", "eats": "memory"},
        **{"gated": "gated", "hangs": "timeout", "none": "gone"},
    }
    assert found["eats"][1] == "it took more than the 150 MB of --max-memory: give it more, and --retry-failed"
    assert found["hangs"][1] == "it took longer than the 7 s of --timeout: give it more, and --retry-failed"
    text = town.run("status", out)
    assert "1 of 8 units done" in text
    assert "7 failed (1 gated, 2 gone, 1 memory, 1 timeout, 2 unsupported), 0 missing" in text
    assert list(out.rglob("*.claim")) == []
