"""The script of a job, run on this machine against the stand-in Hub: shards, webhooks, and what is refused."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkpoints import random_downs, write_llama

from analyzer.base.errors import SourceError
from analyzer.scan.records import ScanSettings
from analyzer.survey.store import Folder
from analyzer.survey.units import Job

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "integrations" / "hf-jobs" / "survey.py"
SHELF = "datasets/me/survey"


@pytest.fixture(scope="module")
def survey():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("hf_jobs_survey", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(hub, tmp_path):
    """A Hub with two models, where `me` may write."""
    for number in range(2):
        write_llama(tmp_path / f"model-{number}", random_downs(intermediate=20 + 8 * number, seed=number))
        hub.add(f"owner/model-{number}", tmp_path / f"model-{number}")
    hub.uploads.tokens = {"writer": ("me", "write"), "reader": ("me", "read")}
    (tmp_path / "list.txt").write_text("".join(f"owner/model-{number}\n" for number in range(2)))
    return hub


@pytest.fixture
def job(hub, tmp_path):
    """Run the script as a job does, in a folder of its own."""

    def run(*arguments, status=0, command=(sys.executable, SCRIPT), token="writer", **environment):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "PYTHONPATH": str(ROOT),
            "HF_TOKEN": token,
            **environment,
        }
        done = subprocess.run(
            [*map(str, command), *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def tables(hub):
    repository = hub.repositories[SHELF]
    files = repository.history[repository.branches["main"]]
    return {name: pq.read_table(io.BytesIO(data)).to_pylist() for name, data in files.items() if name[:5] == "data/"}


@pytest.fixture
def rows_of(hub, here, tmp_path, monkeypatch):
    """Return the table of a whole survey, by the command line alone."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)

    def rows(list_file):
        for arguments in (["run", list_file, "--out", "whole", "--top", 2, "--quiet"], ["collect", "whole"]):
            assert here("survey", *arguments).returncode == 0
        return pq.read_table(tmp_path / "whole" / "survey.parquet").to_pylist()

    return rows


@pytest.mark.slow
def test_shards_make_the_table_of_the_whole(hub, job, rows_of):
    for shard in ("1/2", "2/2"):
        done = job("list.txt", "--publish", "me/survey", "--shard", shard, "--top", 2, "--quiet")
        assert "/datasets/me/survey/commit/" in done.stdout
    found = tables(hub)
    (asked,) = {name.split("-")[1] for name in found}
    assert sorted(found) == [f"data/survey-{asked}-0000{number}-of-00002.parquet" for number in (1, 2)]
    rows = sorted((row for table in found.values() for row in table), key=lambda row: (row["model"], row["rank"]))
    assert rows == rows_of("list.txt")
    again = job("list.txt", "--publish", "me/survey", "--shard", "2/2", "--top", 2, "--timeout", 60, "--quiet")
    assert "has them already" in again.stdout


@pytest.mark.slow
def test_a_webhook_surveys_the_new_commit(hub, job, rows_of, tmp_path):
    before = hub.repositories["owner/model-1"].branches["main"]
    write_llama(tmp_path / "model-1", random_downs(intermediate=28, seed=9))
    commit = hub.add("owner/model-1", tmp_path / "model-1")
    event = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": "owner/model-1", "id": "1", "private": False, "headSha": commit},
        "updatedRefs": [
            {"ref": "refs/heads/main", "oldSha": before, "newSha": commit},
            {"ref": "refs/pr/1", "oldSha": None, "newSha": "1" * 40},
            {"ref": "refs/heads/old", "oldSha": "2" * 40, "newSha": None},
        ],
        "webhook": {"id": "2", "version": 3},
    }
    job("webhook", "--publish", "me/survey", "--top", 2, WEBHOOK_PAYLOAD=json.dumps(event))
    (rows,) = tables(hub).values()
    assert {(row["model"], row["commit"], row["failure"]) for row in rows} == {("owner/model-1", commit, None)}
    (tmp_path / "event.txt").write_text(f"owner/model-1@{commit}\n")
    assert rows == rows_of("event.txt")
    event["repo"]["type"] = "dataset"
    done = job("webhook", "--publish", "me/survey", WEBHOOK_PAYLOAD=json.dumps(event))
    assert done.stdout == "the event has no new commit on a branch of a model: nothing to survey\n"


@pytest.mark.slow
def test_uv_runs_it(hub, job, uv, rows_of, tmp_path):
    script = uv.script(SCRIPT, tmp_path / "survey.py")
    command = [uv.program, "run", "--script", script]
    job("list.txt", "--publish", "me/survey", "--top", 2, "--quiet", command=command, **uv.environment)
    (rows,) = tables(hub).values()
    assert rows == rows_of("list.txt")


@pytest.mark.slow
def test_what_cannot_be_pushed_is_told_before_anything_is_read(hub, job):
    done = job("list.txt", "--publish", "me/survey", token="reader", status=1)
    assert done.stderr.startswith("error: this token may not write to datasets/me/survey")
    assert done.stderr.count("\n") == 1
    assert not [request for request in hub.requests if "owner" in request.path]
    assert job("webhook", "--publish", "me/survey").stdout.startswith("no event has triggered this job")
    assert "is no event" in job("webhook", "--publish", "me/survey", status=1, WEBHOOK_PAYLOAD="[]").stderr
    assert "No such file" in job("none.txt", "--publish", "me/survey", status=1).stderr
    assert "is no part of several" in job("list.txt", "--publish", "me/survey", "--shard", "3/2", status=2).stderr


def test_two_shards_that_push_at_once_both_come_through(survey, monkeypatch):
    tries, slept = [], []
    monkeypatch.setattr(survey.time, "sleep", slept.append)

    def act():
        tries.append(1)
        if len(tries) < 3:
            raise SourceError("somebody else has written to it meanwhile")
        return "pushed"

    assert survey.until_it_succeeds(act) == "pushed"
    assert len(tries) == 3
    assert all(0.5 * pause <= s <= 1.5 * pause for s, pause in zip(slept, survey.PAUSES_S[:2], strict=True))
    tries.clear()
    monkeypatch.setattr(survey, "PAUSES_S", ())
    with pytest.raises(SourceError):
        survey.until_it_succeeds(act)


def test_each_list_and_each_job_has_a_table_of_its_own(survey, tmp_path):
    def name(models, *jobs):
        out = tmp_path / survey.shard_name("2/8")
        for job in jobs:
            Folder(out).save_job(job, [])
        return survey.table_name(models, out)

    scan, three = Job("scan"), Job("scan", ScanSettings(top=3))
    assert name(b"owner/name", scan) == name(b"owner/name", scan)
    assert len({name(b"owner/name"), name(b"owner/other"), name(b"owner/name", three)}) == 3
    assert re.fullmatch(r"survey-[0-9a-f]{8}-00002-of-00008", name(b"owner/name"))


def test_what_hf_reads_of_the_script(tmp_path):
    command = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    command += ["jobs", "uv", "run", "--dry-run", str(SCRIPT)]
    command += ["--", "plan.jsonl", "--publish", "me/survey", "--timeout", "60", "--quiet"]
    environment = {**os.environ, "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert " ".join(said["args"]) == "plan.jsonl --publish me/survey --timeout 60 --quiet"
    assert said["timeout"] == ["12h", "(from", "script)"]
    assert said["labels"][0] == "name=superweight-survey"
    assert said["secrets"][0].startswith("HF_TOKEN=")
