"""What the options of `superweight survey` do: what is planned, left out, tried again, and given up."""

import io
import json
import signal
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from analyzer.base.text import byte_size

COUNT = 4


def summary(said):
    return {key: value for key, value in json.loads(said).items() if value and key not in ("out", "bytes")}


def test_what_would_run_is_told_from_headers_alone(town, tmp_path):
    town.hub.forget()
    command = ["run", town.list_file, "--out", tmp_path, "--max-bytes", "1kB", "--dry-run", "--quiet"]
    plan = json.loads(town.run(*command, "--json"))
    expected = [2 * 8 * (20 + 8 * number) * 2 for number in range(2)]
    assert ([unit["bytes"] for unit in plan["units"]], plan["bytes"], plan["others"]) == (expected, sum(expected), 2)
    assert town.hub.body_bytes["cdn"] < 10_000
    text = town.run(*command)
    assert text.splitlines()[0] == "Would run 2 units, 1.54 kB; 2 are done, failed or left out."
    assert text.splitlines()[2].split()[:3] == ["640", "B", "model-0"]
    assert not (tmp_path / "scan").exists()


def test_what_is_downloaded_for_good_is_told_before(town, tmp_path):
    command = ["run", town.list_file, "--out", tmp_path, "--dry-run"]
    of_hub = [name.partition("/")[2] for name in town.list_file.read_text().split() if name.startswith("owner/")]
    size = byte_size(sum((town.root / name / "model.safetensors").stat().st_size for name in of_hub))
    for options, is_told in ((["--do", "analyze"], True), (["--do", "verify", "--early-stop"], False), ([], False)):
        said = town.call(*command, *options).stderr
        told = [line for line in said.splitlines() if "downloaded" in line]
        assert [line.partition(":")[0] for line in told] == [
            f"up to {size} of weights are downloaded into the Hub's cache, and stay there"
        ] * is_told
        assert all(f": {town.root / 'hub-cache'} has room for " in line for line in told)


def test_names_that_stand_for_one_commit_are_one_unit_and_said(town, tmp_path):
    commit = town.hub.repositories["owner/model-1"].resolve("main")
    (tmp_path / "list.txt").write_text(f"owner/model-1\nowner/model-1@main\nowner/model-1@{commit}\n")
    planned = town.call("plan", tmp_path / "list.txt")
    assert len(planned.stdout.splitlines()) == 2
    assert planned.stderr == "planned 1 of 1 model (2 more names stand for the same): 896 B to scan, of 2.8 kB in all\n"
    said = town.run("run", tmp_path / "list.txt", "--out", tmp_path / "out", "--quiet")
    assert said.startswith("1 done, 0 failed; 2 more names that stand for the same. See ")


@pytest.mark.slow
def test_what_failed_is_tried_again_where_one_says_so(town, tmp_path):
    refused = [True]

    def away(request, reply):
        gone = refused[0] and "/owner/model-1/resolve" in request.path
        return replace(reply, status=403, headers={"X-Error-Code": "Forbidden"}, body=b"") if gone else reply

    (tmp_path / "list.txt").write_text(f"owner/model-1\n{town.root / 'model-0'}\n")
    command = ["run", tmp_path / "list.txt", "--out", tmp_path, "--quiet", "--json"]
    try:
        town.hub.tamper = away
        assert summary(town.run(*command)) == {"done": 1, "not_opened": 1}
        refused[0] = False
        assert summary(town.run(*command)) == {"before": 1, "not_opened": 1}
        status = json.loads(town.run("status", tmp_path, "--json"))
        assert [(each["model"], each["failure"], each["attempts"]) for each in status["failures"]] == [
            ("owner/model-1", "gated", 1)
        ]
        assert summary(town.run(*command, "--retry-failed")) == {"done": 1, "before": 1}
        status = json.loads(town.run("status", tmp_path, "--json"))
        assert (status["total"], status["done"], status["failures"]) == (2, 2, [])
        refused[0] = True
        done = town.call(*command, "--again")
        assert summary(done.stdout) == {"done": 1, "failed": {"gated": 1}}
        assert done.stderr.startswith("warning: what owner/model-1 stood for before is taken: ")
    finally:
        town.hub.tamper = lambda request, reply: reply
    assert summary(town.run(*command, "--again")) == {"done": 2}


@pytest.mark.slow
def test_ctrl_c_finishes_what_runs_and_a_second_gives_it_up(town, tmp_path):
    held = [True]

    def hold(request, reply):
        while held[0] and request.origin == "cdn":
            time.sleep(0.05)
        return reply

    plan = tmp_path / "plan.jsonl"
    plan.write_text(town.run("plan", town.list_file))
    command = ["run", plan, "--out", tmp_path, "--quiet"]
    try:
        town.hub.tamper = hold
        for presses in (2, 1):
            held[0] = True
            process = town.start(*command)
            while not list(tmp_path.glob("scan/*/*.claim")) or town.hub._at_once == 0:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert "in hand; Ctrl-C again gives them up" in process.stderr.readline()
            if presses == 2:
                process.send_signal(signal.SIGINT)
            else:
                held[0] = False
            assert town.end(process, status=130) == "\ninterrupted\n"  # the line that ^C began
            found = len(list(tmp_path.glob("scan/*/*.json")))
            assert list(tmp_path.rglob("*.claim")) == []
            assert found < COUNT
        assert found >= 1
    finally:
        held[0] = False
        town.hub.tamper = lambda request, reply: reply
    assert sum(summary(town.run(*command, "--json")).values()) == COUNT


def test_a_plan_of_what_the_hub_lists(town):
    town.hub.listed = {
        "owner/model-1": {"tags": ["transformers", "safetensors"], "downloads": 5},
        "owner/model-3": {"tags": ["transformers"], "downloads": 7},
        "owner/model-2": {"tags": ["transformers", "safetensors"], "downloads": 9},
    }
    said = town.run("plan", "--hub", "--author", "owner", "--library", "transformers", "--sort", "downloads")
    assert [json.loads(line).get("model") for line in said.splitlines()[1:]] == [
        *("owner/model-2", "owner/model-3", "owner/model-1"),
    ]
    said = town.run("plan", "--hub", "--tag", "safetensors", "--search", "MODEL", "--limit", 1)
    (pin,) = (json.loads(line) for line in said.splitlines()[1:])
    assert pin["commit"] == town.hub.repositories[pin["model"]].resolve("main")
    assert pin["scan_bytes"] == 2 * 8 * 28 * 2
    said = town.run("plan", "--hub", "--author", "nobody", status=1)
    assert said == "error: the Hub lists no such model: give other filters\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan"], "give either LIST or --hub"),
        (["plan", "x.txt", "--author", "me"], "go with --hub"),
        (["run", "x.txt", "--out", "o", "--prompt", "Hi"], "--prompt is not an option of `superweight scan`"),
        (["run", "x.txt", "--out", "o", "--do", "verify", "--layers", "1"], "--layers is not an option of"),
        (["run", "x.txt", "--out", "o", "--do", "analyze", "--early-stop"], "--early-stop is not an option of"),
        (["run", "x.txt", "--out", "o", "--max-bytes", "much"], "is no number of bytes"),
        (["run", "x.txt", "--out", "o", "--max-memory", "nan"], "is no number of bytes"),
        (["run", "x.txt", "--out", "o", "--max-bytes", "0"], "is no number of bytes"),
        *(
            (["run", "x.txt", "--out", "o", "--timeout", time], "is no number of seconds")
            for time in ("nan", "inf", "1e400", "-1", "0", "soon")
        ),
        (["run", "x.txt", "--out", "o", "--shard", "4/3"], "is no part of several"),
        (["collect", "o", "--private"], "go with --publish"),
        (["collect", "o", "--publish", "me"], "has no owner"),
    ],
)
def test_wrong_usage(here, arguments, line):
    done = here("survey", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in " ".join(done.stderr.split())


def test_what_cannot_be_used_is_one_line(here, tmp_path):
    def refused(*arguments):
        done = here("survey", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        return done.stderr

    (tmp_path / "file").write_text("owner/name\n")
    assert "is no list of models" in refused("run", tmp_path / "none", "--out", tmp_path / "out")
    assert "cannot write to the folder" in refused("run", tmp_path / "file", "--out", tmp_path / "file" / "x")
    assert "is no survey's folder" in refused("status", tmp_path)
    assert "is no survey's folder" in refused("collect", tmp_path)
    assert "is no survey's folder" in refused("report", tmp_path)


def test_a_report_is_a_page_and_all_of_its_figures(town, whole, tmp_path):
    said = json.loads(town.run("report", whole, "--json"))
    first = [row for row in pq.read_table(whole / "survey.parquet").to_pylist() if row["rank"] == 1]
    assert sorted((w["model"], w["place"], w["value"], w["zscore"]) for w in said["weights"]) == sorted(
        (row["model"], f"{row['layer']},{row['row']},{row['col']}", row["value"], row["zscore"]) for row in first
    )
    assert (said["outcomes"], said["failed"], said["page"]) == ({"scanned": COUNT}, {}, str(whole / "report.html"))
    assert {each["rho"] for each in said["predictions"]} == {None}
    page = (whole / "report.html").read_bytes()
    assert all(row["model"].encode() in page for row in first)
    out = tmp_path / "page.html"
    assert f"Written: {out}. Models: {COUNT}, of which 0 were run." in town.run("report", whole, "--out", out)
    assert out.read_bytes() == page
    out.write_text("<p>mine")
    assert "is no report that this tool wrote" in town.run("report", whole, "--out", out, status=1)


@pytest.mark.slow
def test_a_table_is_published_and_nothing_of_another_lost(town, whole, tmp_path):
    command = ["collect", whole, "--catalog", tmp_path / "none", "--publish", "me/survey", "--token", "writer"]
    town.hub.uploads.tokens = {"writer": ("me", "write")}
    said = town.run(*command)
    assert "data/survey.parquet" in said
    repository = town.hub.repositories["datasets/me/survey"]
    held = repository.history[repository.branches["main"]]["data/survey.parquet"]
    assert held == (whole / "survey.parquet").read_bytes()
    assert pq.read_table(io.BytesIO(held)).num_rows == 3 * COUNT
    assert "Nothing has changed" in town.run(*command)
    town.run("run", town.list_file, "--out", tmp_path / "part", "--shard", "1/3", "--quiet")
    command[1] = tmp_path / "part"
    assert "datasets/me/survey/data/survey.parquet has what is not here: " in town.run(*command, status=1)
    assert "data/survey.parquet" in town.run(*command, "--replace")
